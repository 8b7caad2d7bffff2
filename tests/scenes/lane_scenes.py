"""A tower that a test holds up and spoils, and how a test asks a lane: for the tests of
`edgeclip.serve.queue.lanes`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.serve.queue.lanes import Lane, LaneLimits

Vectors = NDArray[np.float32]

PATIENCE_S = 20.0


def limits(**changed: Any) -> LaneLimits:
    return LaneLimits(**{"max_queued": 100, "wedged_s": 60.0} | changed)


def sizes(**changed: Any) -> BatchPolicy:
    """Batches of 64 tokens, or a single image."""
    return BatchPolicy(**{"tokens": 64, "images": 1} | changed)


def ids(length: int, value: int = 7) -> NDArray[np.int64]:
    return np.full(length, value, np.int64)


class Tower:
    """Gives each row its first id and its length. Waits at a gate, and fails as it is told."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.is_busy = threading.Event()
        self.shapes: list[tuple[int, ...]] = []
        self.fault: Callable[[NDArray[Any]], BaseException | None] = lambda batch: None

    def __call__(self, batch: NDArray[Any]) -> Vectors:
        self.shapes.append(batch.shape)
        self.is_busy.set()
        assert self.gate.wait(PATIENCE_S)
        if error := self.fault(batch):
            raise error
        return np.stack([batch[:, 0], np.full(len(batch), batch.shape[1])], axis=1).astype(np.float32)

    async def held(self) -> None:
        """Until a batch stands at the gate."""
        while not self.is_busy.is_set():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def lane(tower: Callable[[NDArray[Any]], Vectors], **options: Any) -> AsyncIterator[Lane]:
    opened = Lane("text", tower, **{"limits": limits(), "policy": sizes()} | options)
    await opened.start()
    try:
        yield opened
    finally:
        if isinstance(tower, Tower):
            tower.gate.set()
        await opened.close()


async def depth(opened: Lane, wanted: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while opened.depth != wanted:
            await asyncio.sleep(0.001)


def asked(opened: Lane, *items: NDArray[Any], timeout_s: float = PATIENCE_S) -> "asyncio.Task[Vectors]":
    return asyncio.create_task(opened.submit(items, timeout_s=timeout_s))
