"""A graph that a test can hold up and make fail, and calls of a lane, for the tests of `edgeclip.serve.queue`."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.engine.unit_vectors import Vectors
from edgeclip.families.family import Item
from edgeclip.manifest import Space
from edgeclip.serve.queue.lanes import Lane, LaneLimits, RunBatch

PATIENCE_S = 20.0


def limits(**changed: Any) -> LaneLimits:
    return LaneLimits(**{"max_queued": 100, "wedged_s": 60.0} | changed)


def sizes(**changed: Any) -> BatchPolicy:
    """Batches of 64 tokens, or a single image."""
    return BatchPolicy(**{"tokens": 64, "images": 1} | changed)


def ids(length: int, value: int = 7, graph: str = "text") -> Item:
    """A text of one id, repeated."""
    return Item(
        graph=graph, arrays={"input_ids": np.full(length, value, np.int64)}, tokens=length, alike=(length, False)
    )


def batch_of(items: Sequence[Item]) -> NDArray[np.int64]:
    """The ids (B, T) of a batch."""
    return np.stack([item.arrays["input_ids"] for item in items])


class HeldGraph:
    """Gives each text its first id and its length, in the space "multi" once for each token.

    It waits at a gate, and fails where `fault` gives an error.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.is_busy = threading.Event()
        self.shapes: list[tuple[int, ...]] = []
        self.fault: Callable[[NDArray[Any]], BaseException | None] = lambda batch: None

    def __call__(self, items: Sequence[Item], /, *, space: Space = "single") -> Vectors:
        batch = batch_of(items)
        self.shapes.append(batch.shape)
        self.is_busy.set()
        assert self.gate.wait(PATIENCE_S)
        if error := self.fault(batch):
            raise error
        vectors = np.stack([batch[:, 0], np.full(len(batch), batch.shape[1])], axis=1).astype(np.float32)
        return vectors if space == "single" else np.repeat(vectors[:, None], batch.shape[1], axis=1)

    async def held(self) -> None:
        """Wait until a batch stands at the gate."""
        while not self.is_busy.is_set():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def lane(graph: RunBatch, **options: Any) -> AsyncIterator[Lane]:
    opened = Lane("text", graph, **{"limits": limits(), "policy": sizes()} | options)
    await opened.start()
    try:
        yield opened
    finally:
        if isinstance(graph, HeldGraph):
            graph.gate.set()
        await opened.close()


async def depth(opened: Lane, wanted: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while opened.depth != wanted:
            await asyncio.sleep(0.001)


async def submit(opened: Lane, items: Sequence[Item], timeout_s: float = PATIENCE_S) -> Vectors:
    answer = await opened.submit(list(items), timeout_s=timeout_s)
    assert answer.vectors is not None
    return answer.vectors


def asked(opened: Lane, *items: Item, timeout_s: float = PATIENCE_S) -> "asyncio.Task[Vectors]":
    return asyncio.create_task(submit(opened, items, timeout_s))
