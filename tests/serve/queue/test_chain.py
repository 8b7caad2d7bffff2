"""Items that a graph hands on go to the next graph's lane, and vectors come back in the order of the call."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from edgeclip.engine.unit_vectors import Vectors
from edgeclip.families.family import Item
from edgeclip.manifest import Space
from edgeclip.serve.queue.chain import run_through
from edgeclip.serve.queue.lanes import Lane, LaneAnswer, LaneFailed, RunBatch
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

    def __init__(self, run: RunBatch) -> None:
        self.lanes = {name: Lane(name, run, limits=limits(), policy=sizes(images=2)) for name in ("vision", "text")}

    async def submit(self, graph: str, items: Sequence[Item]) -> LaneAnswer:
        return await self.lanes[graph].submit(items, timeout_s=PATIENCE_S)

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
