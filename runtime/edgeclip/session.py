"""One tower in onnxruntime: open it, ask what really runs, run it.

The thin shell round the decisions of `edgeclip.devices`. onnxruntime is imported here, on first use.
"""

import contextlib
import functools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.devices import Device
from edgeclip.errors import BundleError, DeviceError, MissingExtraError
from edgeclip.manifest import TowerName

# Add and LayerNormalization as two nodes beat the fused one on the CPU: 2.1 ms against 2.4 for the 48 of
# a 16-token text, 30 against 135 for 47 at 1297 tokens (onnxruntime 1.31).
_SLOWER_FUSIONS = ["SkipLayerNormFusion"]
# Without VNNI, x86 adds pairs of products of unsigned inputs and signed weights in 16 bits, which overflow; with this
# onnxruntime makes the weights unsigned, slower and right (onnxruntime #5644). It does so wherever x86 has AVX2, with
# VNNI too, where it takes twice the time for nothing: 3.8 ms for 256 rows of 1024 to 4096, 8.0 with it.
_RIGHT_WITHOUT_VNNI = ("session.x64quantprecision", "1")
# y = MatMulInteger(x, w) as a model: x (1, 4) uint8, w (4, 4) int8, all 127.
_PRODUCT = (
    b'\x08\x08:f\n\x1a\n\x01x\n\x01w\x12\x01y"\rMatMulInteger:\x00\x12\x01g*\x1b\x08\x04\x08\x04\x10\x03*\x10'
    + b"\x7f" * 16
    + b"B\x01wZ\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x04"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x04B\x04\n\x00\x10\r"
)
# onnxruntime prints an error that it then raises; what it raises is told, once.
_FATAL_ONLY = 4


def import_onnxruntime() -> ModuleType:
    """onnxruntime, or a MissingExtraError that says what brings it."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "onnxruntime is not installed: `pip install edgeclip[cpu]`, or `edgeclip[gpu]` for CUDA and TensorRT"
        ) from error
    except ImportError as error:  # a library that it needs is missing
        raise MissingExtraError(
            f"onnxruntime is installed but cannot be loaded ({_first_line(error)}); "
            "`pip install --force-reinstall edgeclip[cpu]` or `edgeclip[gpu]`"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):  # an empty folder left by uninstalling one of two wheels
        raise MissingExtraError(
            "onnxruntime is broken, as it is when both of its wheels were installed and one removed: "
            "`pip uninstall onnxruntime onnxruntime-gpu`, then `pip install edgeclip[cpu]` or `edgeclip[gpu]`"
        )
    module: ModuleType = onnxruntime
    return module


@functools.cache
def adds_in_16_bits() -> bool:
    """Whether this processor's integer GEMM overflows: found out by one."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_PRODUCT, options, providers=["CPUExecutionProvider"])
    found: NDArray[np.int32] = session.run(None, {"x": np.full((1, 4), 255, np.uint8)})[0]
    return bool((found != 4 * 255 * 127).any())


class TowerSession:
    """A graph with one input and one output, on the device that was asked for or not at all.

    Calling it from several threads at once is safe.
    """

    def __init__(self, path: Path, tower: TowerName, device: Device, threads: int) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _FATAL_ONLY
        if adds_in_16_bits():
            options.add_session_config_entry(*_RIGHT_WITHOUT_VNNI)
        provider: Any = device.provider
        if device.kind != "cpu":
            provider = (device.provider, {"device_id": str(device.index)})
            with contextlib.redirect_stdout(sys.stderr):  # where it tells what it did not find
                onnxruntime.preload_dlls()
        try:
            self._session = onnxruntime.InferenceSession(
                path,
                options,
                providers=[provider],
                disabled_optimizers=_SLOWER_FUSIONS,
                enable_fallback=0,  # else it prints on stdout and tries other providers
            )
        except RuntimeError as error:  # onnxruntime's about a provider
            raise DeviceError(f"device {device} cannot be started ({_first_line(error)})") from error
        except Exception as error:  # its others, about the graph, share no base class
            raise BundleError(f"{path}: onnxruntime cannot load the {tower} graph ({_first_line(error)})") from error
        # A provider whose libraries are missing is left out with a word in the log only.
        if (running := self._session.get_providers()[0]) != device.provider:
            raise DeviceError(f"device {device} asked for, but onnxruntime could start only {running}")
        self._input = self._session.get_inputs()[0].name
        self._tower, self._device = tower, device

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """The tower's unit vectors for a batch (B, ...): (B, D) float32."""
        try:
            output: NDArray[np.float32] = self._session.run(None, {self._input: batch})[0]
        except Exception as error:
            raise DeviceError(
                f"the {self._tower} graph failed on {self._device} with a batch of shape {batch.shape} "
                f"({_first_line(error)})"
            ) from error
        return output


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
