"""The few calls of CUDA's runtime that onnxruntime's Python lacks: page-locked memory, a stream, and copies on it.

They use the library that onnxruntime itself has loaded, so nothing else has to be installed. Semantics:
https://docs.nvidia.com/cuda/cuda-runtime-api, "Memory Management" and "Stream Management".
"""

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import DeviceError

_SUCCESS = 0
_STREAM_NON_BLOCKING = 1
_HOST_ALLOC_PORTABLE = 1  # page-locked for every device of the process
_TO_DEVICE, _TO_HOST = 1, 2
_CAPTURE_RELAXED = 2
_WINDOWS, _LINUX = ("cudart64_13.dll", "cudart64_12.dll"), ("libcudart.so.13", "libcudart.so.12")
_LIBRARIES = _WINDOWS if sys.platform == "win32" else _LINUX


class CudaStream:
    """A stream of one device, with page-locked memory and asynchronous copies in the stream's order.

    onnxruntime uses the same stream, so its kernels wait for the copies before them.
    """

    kind = "cuda"

    def __init__(self, index: int) -> None:
        self.index = index
        self._library = _library()
        handle = ctypes.c_void_p()
        with self._selected():
            self._call("cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(_STREAM_NON_BLOCKING))
        # Never destroyed: the session that runs on it may outlive this object, and a stream holds little.
        self.handle = int(handle.value or 0)

    def enter(self) -> None:
        """Select the device for the calling thread; needed once per thread that copies."""
        self._call("cudaSetDevice", ctypes.c_int(self.index))

    def host(self, size_bytes: int) -> NDArray[np.uint8]:
        """Page-locked memory; it is freed when no view of it is left."""
        with self._selected():
            return np.asarray(_PageLocked(self._library, size_bytes, self._call))

    def owns(self, array: NDArray[Any]) -> bool:
        """Whether the array lies in page-locked memory that `host` returned."""
        root: Any = array
        while isinstance(root, np.ndarray):
            root = root.base
        return isinstance(root, _PageLocked)

    def upload(self, source: NDArray[np.uint8], target: int) -> None:
        """Begin to copy bytes of `host` memory to an address of the device; they must not change before `wait`."""
        self._copy(target, source.ctypes.data, source.nbytes, _TO_DEVICE)

    def download(self, source: int, target: NDArray[np.uint8]) -> None:
        """Begin to copy from an address of the device into `host` memory."""
        self._copy(target.ctypes.data, source, target.nbytes, _TO_HOST)

    def wait(self) -> None:
        """Return when all that was begun is done; DeviceError if any of it failed."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.handle))

    def memory(self) -> tuple[int, int]:
        """The device's free and total bytes; memory of other processes counts as used."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self._selected():
            self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _copy(self, target: int, source: int, size_bytes: int, direction: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size_bytes),
            ctypes.c_int(direction),
            ctypes.c_void_p(self.handle),
        )

    @contextlib.contextmanager
    def _selected(self) -> Iterator[None]:
        """Select the device for a thread, in which the program may have selected another; restore that after."""
        before = ctypes.c_int()
        self._call("cudaGetDevice", ctypes.byref(before))
        self._call("cudaSetDevice", ctypes.c_int(self.index))
        try:
            yield
        finally:
            self._call("cudaSetDevice", before)

    def _call(self, name: str, *arguments: Any) -> None:
        if (status := getattr(self._library, name)(*arguments)) != _SUCCESS:
            reason = self._library.cudaGetErrorString(status)
            raise DeviceError(f"cuda:{self.index}: {name} failed ({reason.decode(errors='replace')}, error {status})")


class _PageLocked:
    """An allocation that numpy's views keep alive."""

    def __init__(self, library: ctypes.CDLL, size_bytes: int, call: Any) -> None:
        self._library, self._address = library, ctypes.c_void_p()
        call(
            "cudaHostAlloc",
            ctypes.byref(self._address),
            ctypes.c_size_t(size_bytes),
            ctypes.c_uint(_HOST_ALLOC_PORTABLE),
        )
        self.__array_interface__ = {
            "version": 3,
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (self._address.value, False),
        }

    def __del__(self) -> None:
        if self._address.value:  # at the process's end the driver may be gone already, and says so
            # Whichever thread drops the last view, and whatever another captures just then: in the default mode this
            # call would break that capture ("Stream Management", cudaThreadExchangeStreamCaptureMode).
            mode = ctypes.c_int(_CAPTURE_RELAXED)
            self._library.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
            self._library.cudaFreeHost(self._address)
            self._library.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))  # back to what it was


@functools.cache
def _library() -> ctypes.CDLL:
    for name in (*_loaded(), *_LIBRARIES):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            library.cudaGetErrorString.restype = ctypes.c_char_p
            return library
    raise DeviceError(
        f"CUDA's runtime library was not found ({' or '.join(_LIBRARIES)}); "
        '`pip install "onnxruntime-gpu[cuda,cudnn]"` brings it'
    )


def _loaded() -> list[str]:
    """The path of the library that the process has loaded, where the system can say; a second copy would have its own
    state.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = (line.split(maxsplit=5)[5] for line in lines if "libcudart.so" in line)
    return list(dict.fromkeys(paths))
