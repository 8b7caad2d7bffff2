"""Choose the device that runs a bundle, and the number of threads. Pure functions, but for reading /proc and /sys.

`choose_device` takes the requested name and what onnxruntime reports, and raises an error instead of falling back to
another device. `edgeclip.engine.providers` chooses the options; `edgeclip.engine.session` asks onnxruntime afterwards
what really runs.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from edgeclip.errors import DeviceError
from edgeclip.host.cgroup import cpu_quota
from edgeclip.host.installation import install_command
from edgeclip.manifest import Manifest, Target

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
# What a user may ask for, as messages and --help say it.
DEVICES = "auto, cpu, cuda[:n], tensorrt[:n] or openvino[:CPU|GPU|NPU]"

# Parameters of a bundle's largest graph up to which it runs on one thread. 0.9 million (the demo's): on two threads a
# text of 16 tokens takes 1.09 of the time (int8 1.44) and an image 0.96 (1.19), for 1.8 to 2.4 times the processor
# time. 2.7 million, 192 wide: 0.88 and 0.62. jina-clip-v1: 0.55 and 0.53. Two cores with AVX-512 VNNI, onnxruntime
# 1.31, the first two in bench/results/threads_small.json.
_TINY_PARAMETERS = 1_500_000

Unit = Literal["CPU", "GPU", "NPU"]

_REQUEST = re.compile(r"(cpu)|(cuda|tensorrt)(?::(\d{1,4}))?|(openvino)(?::(CPU|GPU|NPU))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A kind of device and its number, as `cpu` or `cuda:0`; for OpenVINO its unit, as `openvino:CPU`."""

    kind: str
    index: int = 0
    unit: Unit = "CPU"

    def __str__(self) -> str:
        if self.kind == "cpu":
            return self.kind
        return f"{self.kind}:{self.unit if self.kind == 'openvino' else self.index}"

    @property
    def provider(self) -> str:
        """onnxruntime's name of the provider for this device."""
        return PROVIDERS[self.kind]


def choose_device(request: str, available: Sequence[str], target: Target) -> Device:
    """The device for `request`: "auto", "cpu", "cuda[:n]", "tensorrt[:n]" or "openvino[:CPU|GPU|NPU]".

    `available` is what onnxruntime.get_available_providers() reports. "auto" takes the device that the bundle's
    graphs are made for when onnxruntime has it, else the CPU. DeviceError for an unknown name, for a device that this
    onnxruntime does not have, and for OpenVINO with graphs of onnxruntime's own operators, which it would leave to
    the CPU.
    """
    if request == "auto":
        return Device(kind=target if PROVIDERS[target] in available else "cpu")
    match = _REQUEST.fullmatch(request) if isinstance(request, str) else None
    if match is None:
        raise DeviceError(f"unknown device {request!r}; devices are {DEVICES}")
    cpu, gpu, index, openvino, unit = match.groups()
    device = Device(kind=cpu or gpu or openvino, index=int(index or 0), unit=cast(Unit, unit or "CPU"))
    if device.provider not in available:
        extra, brought = ("openvino", "OpenVINO") if openvino else ("gpu", "CUDA and TensorRT")
        raise DeviceError(
            f"device {request!r} asked for, but this onnxruntime has only {', '.join(available)}; "
            f"`pip uninstall onnxruntime && {install_command(extra)}` brings {brought}"
        )
    if openvino and target != "tensorrt":
        raise DeviceError(
            f"device {request!r} runs graphs of standard operators, and this bundle's are for {target}; "
            "make one with `edgeclip export --target tensorrt`"
        )
    return device


def check_index(device: Device, gpus: Sequence[str]) -> None:
    """DeviceError for a GPU number beyond the GPUs that were found; no check when none were found."""
    if device.kind in ("cuda", "tensorrt") and gpus and device.index >= len(gpus):
        found = ", ".join(f"{number} ({name})" for number, name in enumerate(gpus))
        raise DeviceError(f"device {device} asked for, but the GPUs here are {found}")


def check_unit(device: Device, units: Sequence[str]) -> None:
    """DeviceError for an OpenVINO unit that is not in `units`, which are OpenVINO's names: CPU, GPU.0, GPU.1, NPU."""
    if device.kind == "openvino" and device.unit not in {unit.partition(".")[0] for unit in units}:
        raise DeviceError(f"device {device} asked for, but OpenVINO finds only {', '.join(units) or 'nothing'} here")


def choose_threads(manifest: Manifest, cpus: int) -> int:
    """The number of threads that a bundle's graphs compute with where a caller asks for none: all of `cpus`, or one
    where the graphs are so small that starting and awaiting others takes longer than they save.
    """
    largest = max(graph.parameters for graph in manifest.graphs.values())
    return 1 if largest <= _TINY_PARAMETERS else cpus


def usable_cpus(root: Path = Path("/")) -> int:
    """The number of processors this process may use: its affinity, limited by the smallest quota of its control
    groups.

    onnxruntime sizes its pool by the host's cores (microsoft/onnxruntime#29510): 64 threads in a container of two
    cores on a host of 64. `root` is the folder that holds /proc and /sys.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))
