"""What is special about a session on CUDA: which graph it opens, with which options, and how it is run.

`edgeclip.engine.session` opens the session.
"""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.batch_policy import GPU_TOKENS, MOST_IMAGES, Shape, is_captured, slot_rows
from edgeclip.engine.cuda.bound_runs import BoundTower, Memory
from edgeclip.engine.cuda.maskless_graph import Unmasked, without_mask
from edgeclip.errors import BundleError
from edgeclip.manifest import TowerName

Rows = NDArray[np.float32]
Run = Callable[[NDArray[Any]], Rows]
# With CUDA graphs; with bound buffers alone; by onnxruntime's session.run, which binds and copies by itself.
CudaWay = Literal["graphs", "bound", "plain"]
CUDA_WAYS: tuple[CudaWay, ...] = ("graphs", "bound", "plain")


class CudaTower:
    """What a session on CUDA is opened with (`model` and `entries`), and `bind`, which makes the object that runs it.

    `memory` is the device's `edgeclip.engine.cuda.cudart.CudaStream`, which the session must use too. With `captures`
    the shapes of `edgeclip.engine.batch_policy` get CUDA graphs; without it, every run starts its kernels one by one.
    Raises BundleError for a graph that cannot be read.
    """

    def __init__(self, path: Path, tower: TowerName, memory: Memory, *, captures: bool = True) -> None:
        self._path, self._tower, self._memory, self._captures = path, tower, memory, captures
        self._unmasked = _unmasked(path) if tower == "text" else None

    @property
    def model(self) -> Path | bytes:
        """The graph to open: the file, or the bytes of a text graph from which the test for padding was removed."""
        return self._unmasked.model if self._unmasked else self._path

    @property
    def entries(self) -> tuple[tuple[str, str], ...]:
        """The session's config entries; for a graph that is given as bytes they say where its weights lie."""
        return (("session.model_external_initializers_file_folder_path", str(self._path.parent)),)

    def bind(self, session: Any, open_masked: Callable[[], Run]) -> "CudaLane":
        """The object that runs the session. `open_masked` opens the unchanged file when the first text with padding
        comes.
        """
        items = GPU_TOKENS
        if self._tower == "vision":
            items = MOST_IMAGES * int(np.prod(session.get_inputs()[0].shape[1:]))
        bound = BoundTower(
            session,
            self._memory,
            most_items=items,
            most_rows=slot_rows(self._tower),
            is_captured=partial(is_captured, self._tower) if self._captures else _never,
        )
        return CudaLane(bound, self._unmasked.pad_id if self._unmasked else None, open_masked)


class CudaLane:
    """Runs a bound tower; texts with a literal padding token, which need a mask, run in a second session."""

    def __init__(self, bound: BoundTower, pad_id: int | None, open_masked: Callable[[], Run]) -> None:
        self.bound = bound
        self._pad_id, self._open_masked = pad_id, open_masked
        self._masked: Run | None = None
        self._lock = threading.Lock()

    def run(self, batch: NDArray[Any]) -> Rows:
        """The rows (B, D) float32 of a batch in the graph's own form."""
        if self._pad_id is None or not (batch == self._pad_id).any():
            return self.bound.run(batch)
        with self._lock:  # it holds the weights once more, so it is opened when it is needed, which is hardly ever
            if self._masked is None:
                self._masked = self._open_masked()
            return self._masked(batch)


def _unmasked(path: Path) -> Unmasked | None:
    try:
        return without_mask(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error


def _never(shape: Shape) -> bool:
    return False
