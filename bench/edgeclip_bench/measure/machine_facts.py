"""The facts that a figure depends on besides the code: processor, memory, system."""

import platform
from pathlib import Path

import psutil

from edgeclip.engine.devices import usable_cpus
from edgeclip.host.processor import processor_name


def machine() -> dict[str, str | int]:
    """The machine, as a report holds it."""
    return {
        "processor": processor_name(),
        "threads": usable_cpus(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def graphics_cards() -> list[str]:
    """The models of NVIDIA's cards in the driver's order; none without a driver."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for card in cards for line in card.read_text(encoding="utf-8").splitlines()]
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
