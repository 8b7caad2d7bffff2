"""What is special about a session on CUDA: which graph it opens, with which options, and how it is run.

`edgeclip.engine.opening` opens the session.
"""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.adapters import Adapters
from edgeclip.engine.batch_policy import GPU_TOKENS, MOST_IMAGES, Shape, is_captured, slot_rows
from edgeclip.engine.cuda.bound_runs import BoundGraph
from edgeclip.engine.cuda.memory import Memory
from edgeclip.manifest import FIRST_GRAPH

Arrays = Mapping[str, NDArray[Any]]
# With CUDA graphs; with bound buffers alone; by onnxruntime's session.run, which binds and copies by itself.
CudaWay = Literal["graphs", "bound", "plain"]
CUDA_WAYS: tuple[CudaWay, ...] = ("graphs", "bound", "plain")


class Stream(Memory, Protocol):
    """The stream of a session, `edgeclip.engine.cuda.cudart.CudaStream`."""

    @property
    def handle(self) -> int:
        """The address of the stream, for onnxruntime."""


class Run(Protocol):
    """`GraphSession.run`."""

    def __call__(self, feed: Arrays, fetch: None = None, adapter: str | None = None) -> dict[str, NDArray[Any]]:
        """Every output of the graph."""


class CudaGraph:
    """What a session on CUDA is opened with (`model`), and `bind`, which makes the object that runs it.

    `unmasked` is the file of the graph's form that never masks, None where it has none, and `pad_id` the id of the
    token that the other form masks. `stream` is the device's stream, which the session must use too. With `captures`
    the shapes of `edgeclip.engine.batch_policy` get CUDA graphs; without it, every run starts its kernels one by one.
    """

    def __init__(
        self,
        path: Path,
        graph: str,
        stream: Stream,
        *,
        unmasked: Path | None = None,
        pad_id: int | None = None,
        captures: bool = True,
    ) -> None:
        self._path, self._graph, self._memory, self._captures = path, graph, stream, captures
        self._unmasked, self._pad_id = unmasked, pad_id

    @property
    def stream(self) -> int:
        """The address of the stream."""
        return self._memory.handle

    @property
    def model(self) -> Path:
        """The file to open: that of the form that never masks, where there is one."""
        return self._unmasked or self._path

    def bind(self, session: Any, adapters: Adapters, open_masked: Callable[[], Run]) -> "CudaLane":
        """The object that runs the session. `open_masked` opens the unchanged file when the first text with padding
        comes.
        """
        items = GPU_TOKENS
        if self._graph == FIRST_GRAPH["image"]:
            items = MOST_IMAGES * int(np.prod(session.get_inputs()[0].shape[1:]))
        bound = BoundGraph(
            session,
            self._memory,
            most_items=items,
            most_rows=slot_rows(self._graph),
            is_captured=partial(is_captured, self._graph) if self._captures else _never,
            adapters=adapters,
        )
        return CudaLane(bound, self._pad_id if self._unmasked else None, open_masked)


class CudaLane:
    """Runs a bound graph; texts with a literal padding token, which need a mask, run in a second session."""

    def __init__(self, bound: BoundGraph, pad_id: int | None, open_masked: Callable[[], Run]) -> None:
        self.bound = bound
        self._pad_id, self._open_masked = pad_id, open_masked
        self._masked: Run | None = None
        self._lock = threading.Lock()

    def run(self, feed: Arrays, adapter: str | None) -> dict[str, NDArray[Any]]:
        """Every output for a batch in the graph's own form."""
        if self._pad_id is None or not any((array == self._pad_id).any() for array in feed.values()):
            return self.bound.run(feed, adapter)
        with self._lock:  # it holds the weights once more, so it is opened when it is needed, which is hardly ever
            if self._masked is None:
                self._masked = self._open_masked()
            return self._masked(feed, adapter=adapter)

    def allocate(self, shape: Shape) -> NDArray[np.uint8]:
        """Page-locked memory for pixels."""
        return self.bound.allocate(shape)

    def recycle(self, memory: NDArray[np.uint8]) -> None:
        """Keep memory that nothing uses any more for the next call of `allocate`."""
        self.bound.recycle(memory)


def _never(shape: Shape) -> bool:
    return False
