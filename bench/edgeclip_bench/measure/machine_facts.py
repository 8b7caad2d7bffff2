"""The facts that a figure depends on besides the code: processor, memory, system, graphics cards."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from edgeclip.engine.devices import usable_cpus
from edgeclip.engine.products import probe_products
from edgeclip.host.processor import processor_name


def machine() -> dict[str, Any]:
    """The machine, in every document; `products` show the instruction sets that onnxruntime sees, perhaps not all."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for card in cards for line in card.read_text(encoding="utf-8").splitlines()]
    return {
        "processor": processor_name(),
        "products": asdict(probe_products()),
        "threads": usable_cpus(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "graphics_cards": [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")],
    }
