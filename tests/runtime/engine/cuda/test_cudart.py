"""CUDA's runtime is called as its header has it: a library of the same functions over malloc and memcpy answers."""

import ctypes
import gc
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.engine.cuda import cudart as cuda
from edgeclip.engine.cuda.cudart import CudaStream
from edgeclip.errors import DeviceError

COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

# Signatures as in cuda_runtime_api.h. Copies are done when the stream is waited for, and only on the device that
# was chosen; `live` counts page-locked allocations, `failing` is the error that the next wait gives.
SOURCE = """
#include <stdlib.h>
#include <string.h>
static __thread int device = 0;
static __thread int mode = 0;
static struct { void *dst; const void *src; size_t count; } copies[64];
static int begun = 0;
static char stream;
int live = 0, failing = 0, last_kind = 0, freed_in_mode = -1;
unsigned int stream_flags = 0, host_flags = 0;
int cudaGetDevice(int *out) { *out = device; return 0; }
int cudaSetDevice(int wanted) { if (wanted > 1) return 101; device = wanted; return 0; }
int cudaStreamCreateWithFlags(void **out, unsigned int flags) { stream_flags = flags; *out = &stream; return 0; }
int cudaHostAlloc(void **out, size_t size, unsigned int flags) {
  host_flags = flags; live++; *out = malloc(size); return *out ? 0 : 2;
}
int cudaThreadExchangeStreamCaptureMode(int *wanted) {
  int before = mode; mode = *wanted; *wanted = before; return 0;
}
int cudaFreeHost(void *p) { freed_in_mode = mode; live--; free(p); return 0; }
int cudaMemcpyAsync(void *dst, const void *src, size_t count, int kind, void *on) {
  if (on != &stream) return 400;
  if (device != 1) return 101;
  copies[begun].dst = dst; copies[begun].src = src; copies[begun++].count = count; last_kind = kind; return 0;
}
int cudaStreamSynchronize(void *on) {
  if (on != &stream) return 400;
  int error = failing; failing = 0;
  for (int i = 0; i < begun; i++) memcpy(copies[i].dst, copies[i].src, copies[i].count);
  begun = 0; return error;
}
int cudaMemGetInfo(size_t *free_, size_t *total) { *free_ = 5000000000ULL; *total = 9000000000ULL; return 0; }
const char *cudaGetErrorString(int error) { return error == 101 ? "invalid device ordinal" : "an illegal address"; }
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cudart")
    (folder / "cudart.c").write_text(SOURCE)
    assert COMPILER is not None
    library = folder / "stand_in.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, folder / "cudart.c"], check=True)
    return library


@pytest.fixture
def library(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """What CudaStream takes for CUDA's runtime."""
    monkeypatch.setattr(cuda, "_loaded", lambda: [str(runtime)])
    cuda._library.cache_clear()
    yield ctypes.CDLL(str(runtime))
    cuda._library.cache_clear()


def read(library: ctypes.CDLL, name: str) -> Any:
    return ctypes.c_int.in_dll(library, name).value


@needs_compiler
def test_bytes_go_there_and_back(library: ctypes.CDLL) -> None:
    """More of them than 32 bits count in no step; the copy is done after `wait`, not before."""
    stream = CudaStream(1)
    assert stream.handle > 0 and read(library, "stream_flags") == 1
    stream.enter()
    source, target, device = stream.host(1000), stream.host(1000), np.zeros(1000, np.uint8)
    source[:], target[:] = np.arange(1000) % 256, 0
    stream.upload(source, device.ctypes.data)
    assert read(library, "last_kind") == 1 and not device.any()
    stream.download(device.ctypes.data, target)
    assert read(library, "last_kind") == 2
    stream.wait()
    assert (target == source).all() and (device == source).all()


@needs_compiler
def test_page_locked_memory_lives_as_long_as_its_views(library: ctypes.CDLL) -> None:
    stream = CudaStream(1)
    before = read(library, "live")
    memory = stream.host(64)
    assert read(library, "host_flags") == 1
    view = memory.view(np.int64)[:3].reshape(3, 1)
    del memory
    gc.collect()
    view[...] = 7
    assert read(library, "live") == before + 1 and stream.owns(view)
    assert not stream.owns(view.copy()) and not stream.owns(np.zeros(3))
    del view
    gc.collect()
    assert read(library, "live") == before
    assert read(library, "freed_in_mode") == 2  # relaxed: another thread's capture goes on
    mode = ctypes.c_int(0)
    library.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    assert mode.value == 0  # as it was


@needs_compiler
def test_the_callers_device_stays_chosen(library: ctypes.CDLL) -> None:
    library.cudaSetDevice(0)
    stream = CudaStream(1)
    stream.host(8)
    assert stream.memory() == (5_000_000_000, 9_000_000_000)
    found = ctypes.c_int(-1)
    library.cudaGetDevice(ctypes.byref(found))
    assert found.value == 0


@needs_compiler
def test_a_failure_says_which_call_and_why(library: ctypes.CDLL) -> None:
    with pytest.raises(DeviceError, match=r"cuda:7: cudaSetDevice failed \(invalid device ordinal, error 101\)"):
        CudaStream(7)
    stream = CudaStream(1)
    ctypes.c_int.in_dll(library, "failing").value = 700
    with pytest.raises(DeviceError, match=r"cuda:1: cudaStreamSynchronize failed \(an illegal address, error 700\)"):
        stream.wait()


def test_without_the_library_the_error_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_loaded", list)
    monkeypatch.setattr(cuda, "_LIBRARIES", ("libcudart.so.nowhere",))
    cuda._library.cache_clear()
    with pytest.raises(DeviceError, match=r'`pip install "onnxruntime-gpu\[cuda,cudnn\]"`'):
        CudaStream(0)
    cuda._library.cache_clear()
