"""Which device runs a bundle, and with how many threads: decided here, in values.

`choose_device` turns what was asked for and what onnxruntime reports into a device, and refuses
rather than falls back. What really runs is asked of the session afterwards, in `edgeclip.session`.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclip.errors import DeviceError
from edgeclip.manifest import Target

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A kind of device and its number, as `cpu` or `cuda:0`."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @property
    def provider(self) -> str:
        """onnxruntime's name for it."""
        return PROVIDERS[self.kind]


def choose_device(request: str, available: Sequence[str], target: Target) -> Device:
    """The device for `request`: "auto", "cpu", "cuda[:n]" or "tensorrt[:n]".

    `available` is what onnxruntime.get_available_providers() reports. "auto" takes the device the
    bundle's graphs are shaped for when onnxruntime has it, else the CPU. DeviceError for a name that
    is no device and for one that this onnxruntime does not have.
    """
    if request == "auto":
        return Device(kind=target if PROVIDERS[target] in available else "cpu")
    match = re.fullmatch(r"(cpu)|(cuda|tensorrt)(?::(\d+))?", request) if isinstance(request, str) else None
    if match is None:
        raise DeviceError(f"unknown device {request!r}; devices are auto, cpu, cuda[:n] and tensorrt[:n]")
    device = Device(kind=match[1] or match[2], index=int(match[3] or 0))
    if device.provider not in available:
        raise DeviceError(
            f"device {request!r} asked for, but this onnxruntime has only {', '.join(available)}; "
            "`pip uninstall onnxruntime && pip install edgeclip[gpu]` brings CUDA and TensorRT"
        )
    return device


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The processors this process may use: its affinity, cut to the container's quota.

    onnxruntime sizes its pool from the host's cores (microsoft/onnxruntime#29510), which in a
    container of two cores on a host of 64 is 64 threads.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_quota(cgroup)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _read_quota(cgroup: Path) -> float | None:
    """The processors of the cgroup's CPU quota (version 2, then 1); None without one."""
    try:
        try:
            quota, period = (cgroup / "cpu.max").read_text().split()
        except FileNotFoundError:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        processors = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or no number: version 2 says "max"
        return None
    return processors if processors > 0 else None  # version 1 says -1
