"""The versions of NVIDIA's driver, CUDA, cuDNN and TensorRT, and the GPUs, as the libraries themselves report them.

They are asked through ctypes, so any onnxruntime may be installed. The answer is None where a library is not there.
"""

import ctypes
import sys
from dataclasses import dataclass

_NAME_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The newest CUDA that the driver runs, as "13.0", and the GPUs it reports, in CUDA's order."""

    cuda: str
    gpus: tuple[str, ...]


def read_driver() -> Driver | None:
    """The driver; None without one. Its GPUs are those that CUDA_VISIBLE_DEVICES leaves."""
    library = _load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    if library is None:
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    gpus = []
    if library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0:
        for index in range(count.value):
            device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
            library.cuDeviceGet(ctypes.byref(device), index)
            library.cuDeviceGetName(name, _NAME_BYTES, device)
            gpus.append(name.value.decode(errors="replace"))
    return Driver(cuda=format_cuda(version.value), gpus=tuple(gpus))


def cuda_version(major: int) -> str | None:
    """The CUDA runtime of that major version, as "13.0"."""
    library = _load(f"cudart64_{major}.dll" if sys.platform == "win32" else f"libcudart.so.{major}")
    version = ctypes.c_int()
    if library is None or library.cudaRuntimeGetVersion(ctypes.byref(version)):
        return None
    return format_cuda(version.value)


def cudnn_version() -> str | None:
    """cuDNN 9, as "9.8.0"."""
    library = _load("cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9")
    if library is None:
        return None
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = library.cudnnGetVersion()  # 90800
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def tensorrt_version() -> str | None:
    """TensorRT 10 or later, as "10.9.0"."""
    for major in (11, 10):
        library = _load(f"nvinfer_{major}.dll" if sys.platform == "win32" else f"libnvinfer.so.{major}")
        if library is not None:
            number = library.getInferLibVersion()  # 100900
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None


def format_cuda(number: int) -> str:
    """CUDA's version from its one-number form: 12080 is "12.8"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
