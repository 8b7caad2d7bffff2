"""The resident memory of this process or of another, and its peak, which only Linux reports and lets reset."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import psutil


def resident_bytes(process: int | None = None) -> int:
    """The resident memory now, of this process where no id is given."""
    return int(psutil.Process(process).memory_info().rss)


def anonymous_bytes(process: int | None = None) -> int:
    """The part of the resident memory that is no mapped file, so that the system cannot drop it."""
    memory = psutil.Process(process).memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))  # only Linux reports what is shared


def reset_peak() -> None:
    """Reset the peak; where that cannot be done, the peak stays that of the process's whole life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(process: int | None = None) -> int:
    """The highest resident memory since the process's start or its last `reset_peak`."""
    status = Path(f"/proc/{process or 'self'}/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return resident_bytes(process)


def gpu_bytes(index: int) -> int | None:
    """The memory in use on an NVIDIA GPU, of all processes together; None where nvidia-smi does not report it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--id={index}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return int(done.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
