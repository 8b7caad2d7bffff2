"""Items that a graph hands on go to the next graph's lane, and vectors come back in the order of the call."""

import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.engine.unit_vectors import Vectors
from edgeclip.families.family import Item
from edgeclip.manifest import Space
from edgeclip.serve.queue.calls import HandOn, LaneAnswer
from edgeclip.serve.queue.chain import run_through
from edgeclip.serve.queue.lanes import Lane, LaneFailed, RunBatch
from tests.scenes.lane_scenes import PATIENCE_S, HeldGraph, batch_of, ids, limits, sizes


class TwoSteps:
    """A made-up family: the vision graph turns an image's numbers into a text of twice the length for the text graph.

    An image of the number 0 gets its vector from the vision graph already.
    """

    def __init__(self) -> None:
        self.text = HeldGraph()
        self.seen: list[tuple[str, int]] = []

    def run_batch(self, items: Sequence[Item], /, *, space: Space = "single") -> Vectors | list[Item]:
        self.seen.append((items[0].graph, len(items)))
        if items[0].graph == "text":
            return self.text(items, space=space)
        if items[0].arrays["input_ids"][0] == 0:
            return np.zeros((len(items), 2), np.float32)
        return [ids(2 * item.tokens, int(item.arrays["input_ids"][0])) for item in items]


class Lanes:
    """The lanes of both graphs."""

    def __init__(self, run: RunBatch, most_ahead_bytes: int = 1 << 20) -> None:
        bounds = limits(most_ahead_bytes=most_ahead_bytes)
        self.lanes = {name: Lane(name, run, limits=bounds, policy=sizes(images=2)) for name in ("vision", "text")}

    async def submit(self, graph: str, items: list[Item], *, hand_on: HandOn, is_handed_on: bool) -> LaneAnswer:
        lane = self.lanes[graph]
        return await lane.submit(items, timeout_s=PATIENCE_S, hand_on=hand_on, is_handed_on=is_handed_on)

    async def __aenter__(self) -> "Lanes":
        for lane in self.lanes.values():
            await lane.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(lane.close() for lane in self.lanes.values()))


def image(number: int, tokens: int) -> Item:
    return replace(ids(tokens, number, "vision"), alike=(tokens, number == 0))


def test_images_pass_both_graphs_beside_texts_that_pass_one() -> None:
    family = TwoSteps()

    async def scene() -> tuple[Vectors, Vectors]:
        async with Lanes(family.run_batch) as lanes:
            images = run_through(lanes.submit, [image(3, 5), image(4, 7), image(5, 5)])
            texts = run_through(lanes.submit, [ids(9, 1)])
            return await asyncio.gather(images, texts)

    images, texts = asyncio.run(scene())
    assert images.tolist() == [[3, 10], [4, 14], [5, 10]]
    assert texts.tolist() == [[1, 9]]
    assert ("vision", 2) in family.seen and {graph for graph, _ in family.seen} == {"vision", "text"}


def test_some_items_of_a_call_may_end_a_graph_earlier() -> None:
    family = TwoSteps()

    async def scene() -> Vectors:
        async with Lanes(family.run_batch) as lanes:
            return await run_through(lanes.submit, [image(3, 5), image(0, 5), image(4, 6)])

    assert asyncio.run(scene()).tolist() == [[3, 10], [0, 0], [4, 12]]


def test_a_failure_of_the_second_graph_is_the_call_s() -> None:
    family = TwoSteps()
    family.text.fault = lambda batch: ValueError("broken") if (batch == 4).any() else None

    async def scene() -> list[object]:
        async with Lanes(family.run_batch) as lanes:
            calls = [run_through(lanes.submit, [image(number, 5)]) for number in (3, 4)]
            return await asyncio.gather(*calls, return_exceptions=True)

    good, bad = asyncio.run(scene())
    assert isinstance(good, np.ndarray) and good.tolist() == [[3, 10]]
    assert isinstance(bad, LaneFailed) and str(bad) == "the text graph failed"


@pytest.mark.parametrize("held", ["vision", "text"])
def test_a_call_that_is_cancelled_leaves_nothing_in_either_queue(held: str) -> None:
    family = TwoSteps()

    def run(items: Sequence[Item], /, *, space: Space) -> Vectors | list[Item]:
        assert batch_of(items).size
        if items[0].graph == held:
            gate.is_busy.set()
            assert gate.gate.wait(PATIENCE_S)
        return family.run_batch(items, space=space)

    gate = HeldGraph()
    gate.gate.clear()

    async def scene() -> None:
        async with Lanes(run) as lanes:
            call = asyncio.create_task(run_through(lanes.submit, [image(3, 5), image(4, 6), image(5, 7)]))
            await gate.held()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert [lane.depth for lane in lanes.lanes.values()] == [0, 0]
            gate.gate.set()

    asyncio.run(scene())


class Kept:
    """Made-up pages: the vision graph gives each a megabyte, and the text graph waits at a gate for each of them."""

    def __init__(self) -> None:
        self.steps: SimpleQueue[None] = SimpleQueue()
        self.features: list[weakref.ref[NDArray[np.uint8]]] = []
        self.pixels: list[weakref.ref[NDArray[np.int64]]] = []

    def run_batch(self, items: Sequence[Item], /, *, space: Space = "single") -> Vectors | list[Item]:
        if items[0].graph == "text":
            self.steps.get(timeout=PATIENCE_S)
            return np.array([[item.tokens, 1] for item in items], np.float32)
        features = np.zeros(1 << 20, np.uint8)
        self.features.append(weakref.ref(features))
        return [replace(ids(items[0].tokens), arrays={"features": features}, alike=len(self.features))]

    def page(self, tokens: int) -> Item:
        item = ids(tokens, graph="vision")
        self.pixels.append(weakref.ref(item.arrays["input_ids"]))
        return item

    @property
    def alive(self) -> int:
        """The pages whose features are in memory."""
        return sum(ref() is not None for ref in self.features)


async def comes_to(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not claim():
            await asyncio.sleep(0.005)


def test_what_lies_between_two_graphs_is_bounded_and_dropped_page_by_page() -> None:
    """The pages of one request, however many: the first graph waits for the second."""
    pages = Kept()

    async def scene() -> Vectors:
        async with Lanes(pages.run_batch, 3 << 20) as lanes:
            items = [pages.page(tokens) for tokens in range(5, 17)]
            call = asyncio.create_task(run_through(lanes.submit, items))
            await comes_to(lambda: len(pages.features) == 3)
            await asyncio.sleep(0.1)
            assert (len(pages.features), pages.alive) == (3, 3)
            for done in range(1, 9):
                pages.steps.put(None)
                await comes_to(lambda done=done: len(pages.features) == done + 3)
                assert pages.alive <= 4  # with the one that was just made
                assert sum(ref() is not None for ref in pages.pixels) <= 12 - done
            for _ in range(4):
                pages.steps.put(None)
            return await call

    assert asyncio.run(scene())[:, 0].tolist() == list(range(5, 17))
    assert pages.alive == 0


def test_a_lane_that_waits_for_the_next_one_finishes_what_it_accepted() -> None:
    """Also where it is closed meanwhile."""
    pages = Kept()

    async def scene() -> Vectors:
        async with Lanes(pages.run_batch, 1) as lanes:
            call = asyncio.create_task(run_through(lanes.submit, [pages.page(5), pages.page(6)]))
            await comes_to(lambda: len(pages.features) == 1)
            closed = asyncio.create_task(lanes.lanes["vision"].close())
            for _ in range(2):
                pages.steps.put(None)
            found = await call
            await closed
            return found

    assert asyncio.run(scene())[:, 0].tolist() == [5, 6]


def test_a_short_text_passes_pages_however_few_tokens_they_have() -> None:
    """They were admitted, so the second queue takes them though it is full; the worker of long texts runs them."""
    pages = Kept()
    passing = HeldGraph()

    def run(items: Sequence[Item], /, *, space: Space = "single") -> Vectors | list[Item]:
        return (
            passing(items, space=space)
            if "input_ids" in items[0].arrays and items[0].graph == "text"
            else (pages.run_batch(items, space=space))
        )

    async def scene() -> None:
        policy = sizes(long_tokens=512)
        lanes = Lanes(run, 4 << 20)
        lanes.lanes["text"] = Lane("text", run, limits=limits(max_queued=1), policy=policy)
        async with lanes:
            call = asyncio.create_task(run_through(lanes.submit, [pages.page(tokens) for tokens in (5, 6, 7)]))
            await comes_to(lambda: len(pages.features) == 3)
            await comes_to(lambda: lanes.lanes["text"].depth == 2)
            for _ in range(3):
                pages.steps.put(None)
            await call
            call = asyncio.create_task(run_through(lanes.submit, [pages.page(5)]))
            await comes_to(lambda: len(pages.features) == 4)
            await comes_to(lambda: lanes.lanes["text"].depth == 0)
            text = await run_through(lanes.submit, [ids(9, 1)])
            assert np.asarray(text).tolist() == [[1, 9]] and not call.done()
            pages.steps.put(None)
            assert np.asarray(await call).tolist() == [[5, 1]]

    asyncio.run(scene())


def test_the_first_error_of_a_page_ends_the_others() -> None:
    """Before the first graph has run all of them."""
    family = TwoSteps()
    family.text.fault = lambda batch: ValueError("broken")
    gate = threading.Event()

    def run(items: Sequence[Item], /, *, space: Space = "single") -> Vectors | list[Item]:
        if items[0].graph == "vision" and items[0].tokens > 5:
            assert gate.wait(PATIENCE_S)
        return family.run_batch(items, space=space)

    async def scene() -> None:
        async with Lanes(run) as lanes:
            with pytest.raises(LaneFailed, match="the text graph failed") as caught:
                await run_through(lanes.submit, [image(3, 5), image(4, 6), image(5, 7)])
            assert isinstance(caught.value.__cause__, ValueError)
            assert [lane.depth for lane in lanes.lanes.values()] == [0, 0]
            gate.set()

    asyncio.run(scene())
    assert ("vision", 1) in family.seen
