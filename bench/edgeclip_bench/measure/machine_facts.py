"""The facts that a figure depends on besides the code: processor, memory, system."""

import platform
from pathlib import Path

import psutil

from edgeclip.engine.devices import usable_cpus


def machine() -> dict[str, str | int]:
    """The machine, as a report holds it."""
    return {
        "processor": processor(),
        "threads": usable_cpus(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def processor() -> str:
    """The model of the processor; its architecture where the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def graphics_cards() -> list[str]:
    """The models of NVIDIA's cards in the driver's order; none without a driver."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for card in cards for line in card.read_text(encoding="utf-8").splitlines()]
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
