"""A lane answers everyone his own rows, forgets who is gone, refuses what does not fit, and outlives its graph."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.engine.unit_vectors import Vectors
from edgeclip.errors import DeviceError, InputError
from edgeclip.families.family import Item
from edgeclip.manifest import Space
from edgeclip.serve.queue.lanes import Lane, LaneFailed, QueueFull, TimedOut
from tests.scenes.lane_scenes import PATIENCE_S, HeldGraph, asked, batch_of, depth, ids, lane, limits, sizes, submit


class Seen:
    """An observer."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[float], float]] = []

    def batch(self, size: int, waits_s: Sequence[float], compute_s: float, *, cost: int) -> None:
        self.batches.append((size, list(waits_s), compute_s))


def test_rows_come_in_the_order_of_the_items_whatever_their_lengths() -> None:
    async def scene() -> Vectors:
        async with lane(HeldGraph()) as opened:
            return await submit(opened, [ids(3, 1), ids(9, 2), ids(3, 3), ids(40, 4)])

    vectors = asyncio.run(scene())
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 3], [2, 9], [3, 3], [4, 40]]


def test_real_texts_get_the_vectors_that_the_encoder_gives(encoder: Encoder) -> None:
    texts = ["a red bicycle", "ein Fahrrad", "a", "two words", "a red bicycle"]

    async def scene() -> list[Vectors]:
        items = encoder.prepare_texts(texts).items
        async with lane(encoder.run_batch) as opened:
            return await asyncio.gather(*(submit(opened, [item]) for item in items))

    vectors = np.concatenate(asyncio.run(scene()))
    np.testing.assert_allclose(vectors, encoder.encode_text(texts), atol=1e-6)  # the order of sums in a batch


def test_an_idle_lane_runs_at_once_and_what_comes_meanwhile_shares_the_next_batch() -> None:
    graph, seen = HeldGraph(), Seen()

    async def scene() -> list[Vectors]:
        async with lane(graph, observer=seen) as opened:
            graph.gate.clear()
            first = asked(opened, ids(16, 1))
            await graph.held()
            others = [asked(opened, ids(16, value)) for value in (2, 3, 4)]
            await depth(opened, 3)
            graph.gate.set()
            return await asyncio.gather(first, *others)

    vectors = asyncio.run(scene())
    assert graph.shapes == [(1, 16), (3, 16)]
    assert [int(rows[0, 0]) for rows in vectors] == [1, 2, 3, 4]
    assert [size for size, _, _ in seen.batches] == [1, 3]
    assert all(len(waits_s) == size and min(waits_s) >= 0 for size, waits_s, _ in seen.batches)


def test_a_single_text_overtakes_a_large_request() -> None:
    graph = HeldGraph()
    order: list[str] = []

    async def scene() -> None:
        async with lane(graph) as opened:
            graph.gate.clear()
            bulk = asked(opened, *[ids(16)] * 40)
            await graph.held()
            single = asked(opened, ids(5))
            await depth(opened, 37)
            bulk.add_done_callback(lambda _: order.append("bulk"))
            single.add_done_callback(lambda _: order.append("single"))
            graph.gate.set()
            await asyncio.gather(bulk, single)

    asyncio.run(scene())
    assert graph.shapes[:2] == [(4, 16), (1, 5)]
    assert order == ["single", "bulk"]


def test_a_full_queue_says_when_there_will_be_room() -> None:
    graph = HeldGraph()

    async def scene() -> QueueFull:
        async with lane(graph, limits=limits(max_queued=3)) as opened:
            await submit(opened, [ids(16)])
            graph.gate.clear()
            graph.is_busy.clear()
            running = asked(opened, ids(16))
            await graph.held()
            waiting = asked(opened, ids(16), ids(16), ids(16))
            await depth(opened, 3)
            with pytest.raises(QueueFull) as caught:
                await submit(opened, [ids(16)])
            graph.gate.set()
            await asyncio.gather(running, waiting)
            return caught.value

    assert 0 < asyncio.run(scene()).retry_after_s < PATIENCE_S


def test_when_there_is_room_is_told_from_the_pace_of_the_lane() -> None:
    """200 ms a text: room for one more comes with the next that is done."""
    graph = HeldGraph()

    def slow(items: Sequence[Item], /, *, space: Space) -> Vectors:
        time.sleep(0.2)
        return graph(items, space=space)

    async def scene() -> float:
        async with lane(slow, limits=limits(max_queued=2), policy=sizes(max_batch=1)) as opened:
            await submit(opened, [ids(16)])
            tasks = [asked(opened, ids(16))]
            await asyncio.sleep(0.05)
            tasks.append(asked(opened, ids(16), ids(16)))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull) as caught:
                await submit(opened, [ids(16)])
            await asyncio.gather(*tasks)
            return caught.value.retry_after_s

    assert 0.15 < asyncio.run(scene()) < 2.0


@pytest.mark.parametrize("count", [0, 4])
def test_what_will_never_fit_is_an_error_of_the_input(count: int) -> None:
    async def scene() -> None:
        async with lane(HeldGraph(), limits=limits(max_queued=3)) as opened:
            await submit(opened, [ids(2)] * count)

    with pytest.raises(InputError, match=f"found {count} inputs, wanted 1 to 3"):
        asyncio.run(scene())


def test_a_request_that_times_out_takes_its_items_along_and_the_running_batch_is_dropped() -> None:
    graph = HeldGraph()

    async def scene() -> Vectors:
        async with lane(graph) as opened:
            graph.gate.clear()
            bulk = asked(opened, *[ids(16)] * 20, timeout_s=0.1)
            with pytest.raises(TimedOut):
                await bulk
            assert opened.depth == 0
            graph.gate.set()
            return await submit(opened, [ids(3, 5)])

    assert asyncio.run(scene()).tolist() == [[5, 3]]
    assert graph.shapes == [(4, 16), (1, 3)]


def test_a_client_that_goes_away_takes_its_items_along() -> None:
    graph = HeldGraph()

    async def scene() -> None:
        async with lane(graph) as opened:
            graph.gate.clear()
            running = asked(opened, ids(16))
            await graph.held()
            gone = asked(opened, *[ids(16)] * 20)
            await depth(opened, 20)
            gone.cancel()
            await depth(opened, 0)
            with pytest.raises(asyncio.CancelledError):
                await gone
            graph.gate.set()
            await running

    asyncio.run(scene())
    assert graph.shapes == [(1, 16)]


@pytest.mark.parametrize("error", [MemoryError(), DeviceError("the text graph failed (Failed to allocate memory)")])
def test_out_of_memory_splits_the_batch_once_and_answers(error: Exception) -> None:
    graph = HeldGraph()
    graph.fault = lambda batch: error if len(batch) > 2 else None

    async def scene() -> Vectors:
        async with lane(graph) as opened:
            return await submit(opened, [ids(16, value) for value in range(4)])

    assert asyncio.run(scene())[:, 0].tolist() == [0, 1, 2, 3]
    assert graph.shapes == [(4, 16), (2, 16), (2, 16)]


def test_out_of_memory_in_a_half_fails_and_is_not_split_again() -> None:
    graph = HeldGraph()
    graph.fault = lambda batch: MemoryError()

    async def scene() -> None:
        async with lane(graph) as opened:
            with pytest.raises(LaneFailed) as caught:
                await submit(opened, [ids(16)] * 4)
            assert isinstance(caught.value.__cause__, MemoryError)

    asyncio.run(scene())
    assert graph.shapes == [(4, 16), (2, 16), (2, 16)]


class Panic(BaseException):
    """What a native extension may raise; no Exception."""


@pytest.mark.parametrize("error", [DeviceError("NaN"), ValueError("shape"), Panic()])
def test_a_failure_is_only_that_request_s_which_caused_it_and_the_lane_goes_on(error: BaseException) -> None:
    graph = HeldGraph()
    graph.fault = lambda batch: error if (batch == 13).any() else None

    async def scene() -> list[Any]:
        async with lane(graph) as opened:
            graph.gate.clear()
            first = asked(opened, ids(2))
            await graph.held()
            tasks = [asked(opened, ids(16, value)) for value in (12, 13, 14)]
            await depth(opened, 3)
            graph.gate.set()
            await first
            return await asyncio.gather(*tasks, return_exceptions=True)

    good, bad, other = asyncio.run(scene())
    assert (good.tolist(), other.tolist()) == ([[12, 16]], [[14, 16]])
    assert isinstance(bad, LaneFailed) and bad.__cause__ is error
    assert str(bad) == "the text graph failed"  # what it says may be shown to anyone


def test_a_graph_that_gives_too_few_rows_fails_the_request() -> None:
    async def scene() -> None:
        async with lane(lambda batch: np.zeros((len(batch) - 1, 2), np.float32)) as opened:
            await submit(opened, [ids(3), ids(3)])

    with pytest.raises(LaneFailed):
        asyncio.run(scene())


def test_closing_finishes_what_was_accepted_and_takes_no_more() -> None:
    graph = HeldGraph()

    async def scene() -> Vectors:
        async with lane(graph) as opened:
            graph.gate.clear()
            accepted = asked(opened, *[ids(16, value) for value in range(12)])
            await graph.held()
            closing = asyncio.create_task(opened.close())
            await asyncio.sleep(0.01)
            with pytest.raises(LaneFailed, match="shutting down"):
                await submit(opened, [ids(3)])
            assert not closing.done()
            graph.gate.set()
            await closing
            return await accepted

    assert asyncio.run(scene())[:, 0].tolist() == list(range(12))


def test_closing_waits_no_longer_than_it_is_told() -> None:
    graph = HeldGraph()

    async def scene() -> None:
        async with lane(graph) as opened:
            graph.gate.clear()
            task = asked(opened, *[ids(16)] * 8)
            await graph.held()
            await opened.close(within_s=0.05)
            with pytest.raises(LaneFailed, match="shutting down"):
                await task

    asyncio.run(scene())
    assert graph.shapes == [(4, 16)]


def test_a_lane_is_wedged_while_a_batch_runs_too_long() -> None:
    graph = HeldGraph()

    async def scene() -> list[bool]:
        async with lane(graph, limits=limits(wedged_s=0.05)) as opened:
            states = [opened.is_wedged]
            graph.gate.clear()
            task = asked(opened, ids(3))
            await graph.held()
            await asyncio.sleep(0.1)
            states.append(opened.is_wedged)
            graph.gate.set()
            await task
            await asyncio.sleep(0.01)
            return [*states, opened.is_wedged]

    assert asyncio.run(scene()) == [False, True, False]


def test_the_event_loop_goes_on_while_a_batch_runs() -> None:
    graph = HeldGraph()

    async def scene() -> int:
        async with lane(graph) as opened:
            graph.gate.clear()
            task = asked(opened, ids(3))
            await graph.held()
            for _ in range(100):
                await asyncio.sleep(0)
            graph.gate.set()
            await task
            return 100

    assert asyncio.run(scene()) == 100


def test_a_thousand_clients_at_once_are_all_answered() -> None:
    graph = HeldGraph()

    async def scene() -> list[Vectors]:
        async with lane(graph, limits=limits(max_queued=10_000)) as opened:
            return await asyncio.gather(*(submit(opened, [ids(1 + value % 7, value)]) for value in range(1000)))

    assert [int(rows[0, 0]) for rows in asyncio.run(scene())] == list(range(1000))


@pytest.mark.parametrize("name", ["max_queued", "wedged_s"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(InputError, match="positive"):
        limits(**{name: 0})


@pytest.mark.parametrize("cost", [1, 300])
def test_images_of_one_request_come_before_those_of_the_next(cost: int) -> None:
    """Whatever an image costs: pages of 300 patches as images of one size.

    Else four requests of eight would all be answered at the end.
    """
    graph = HeldGraph()
    order: list[int] = []

    def run(items: Sequence[Item], /, *, space: Space) -> Vectors:
        order.append(int(batch_of(items)[0, 0]))
        return graph(items, space=space)

    async def scene() -> None:
        opened = Lane("vision", run, limits=limits(), policy=sizes(max_batch=1), quantum=8 * cost)
        await opened.start()
        graph.gate.clear()
        requests = [asked(opened, *[ids(cost, number, "vision")] * 8) for number in range(3)]
        await depth(opened, 23)
        graph.gate.set()
        await asyncio.gather(*requests)
        await opened.close()

    asyncio.run(scene())
    assert order == [0] * 8 + [1] * 8 + [2] * 8
