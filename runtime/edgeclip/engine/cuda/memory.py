"""Memory of a lane's buffers: what is asked of it, and ordinary memory, which serves tests without a GPU.

`edgeclip.engine.cuda.cudart` has a GPU's.
"""

import ctypes
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Memory(Protocol):
    """The memory of a lane's buffers and the copies between host and device: `cudart.CudaStream` or `HostMemory`."""

    @property
    def kind(self) -> str:
        """onnxruntime's name of the device."""

    @property
    def index(self) -> int:
        """The device's number."""

    def enter(self) -> None:
        """Prepare the lane's thread; called in it before anything else."""

    def host(self, size_bytes: int) -> NDArray[np.uint8]:
        """Host memory for inputs and outputs, which copies start from or end in."""

    def owns(self, array: NDArray[Any]) -> bool:
        """Whether the array lies in memory that `host` returned."""

    def upload(self, source: NDArray[np.uint8], target: int) -> None:
        """Begin a copy from host memory to an address of the device."""

    def download(self, source: int, target: NDArray[np.uint8]) -> None:
        """Begin a copy from an address of the device to host memory."""

    def wait(self) -> None:
        """Return when all copies and runs that were begun are done."""


class HostMemory:
    """Ordinary memory for tests without a GPU; a copy is done at once."""

    kind, index = "cpu", 0

    def enter(self) -> None:
        """Do nothing."""

    def host(self, size_bytes: int) -> NDArray[np.uint8]:
        """An array of zeros."""
        return np.zeros(size_bytes, np.uint8).view(_Ordinary)

    def owns(self, array: NDArray[Any]) -> bool:
        """Whether the array is a view of one that `host` returned."""
        return isinstance(array, _Ordinary)

    def upload(self, source: NDArray[np.uint8], target: int) -> None:
        """Copy to an address at once."""
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def download(self, source: int, target: NDArray[np.uint8]) -> None:
        """Copy from an address at once."""
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def wait(self) -> None:
        """Do nothing."""


class _Ordinary(np.ndarray[Any, Any]):
    """An array that `HostMemory` made; its views know that too."""
