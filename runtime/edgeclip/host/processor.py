"""The processor's name and its instruction sets, from Linux's /proc/cpuinfo; on other systems the name alone, and the
instruction sets that numpy sees.
"""

import importlib
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_IDENTITY = re.compile(r"^(?:model name|flags|CPU implementer|CPU part|Features)\s*:\s*(.+)$", re.MULTILINE)
_NAME = re.compile(r"^(?:model name|Model)\s*:\s*(.+)$", re.MULTILINE)  # x86's and ARM's
_FEATURES = re.compile(r"^(?:flags|Features)\s*:\s*(.+)$", re.MULTILINE)


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The model of the first processor; its architecture where the system does not say."""
    found = _NAME.search(_read(cpuinfo))
    return found[1].strip() if found else platform.processor() or platform.machine()


def processor_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The instruction sets of the first processor by the kernel's names, as avx2 or i8mm; none where unknown."""
    found = _FEATURES.search(_read(cpuinfo))
    return frozenset(found[1].split() if found else ())


def visible_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The instruction sets that this process sees, in lower case: those that numpy asked the processor for itself, on
    every system, else the kernel's. An emulator, or a hypervisor, may hide some that the kernel lists.
    """
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):  # numpy 2, numpy 1
        try:
            found: dict[str, bool] = importlib.import_module(name).__cpu_features__
        except (ImportError, AttributeError):
            continue
        return frozenset(feature.lower() for feature, is_here in found.items() if is_here)
    return processor_features(cpuinfo)


def read_processor(cpuinfo: Path = CPUINFO) -> str:
    """All facts about the first processor that decide kernels and so the layout of packed weights, in lines."""
    first = _read(cpuinfo)[:16384].split("\n\n")[0]
    return "\n".join(_IDENTITY.findall(first)) if first else platform.processor() or platform.machine()


def _read(cpuinfo: Path) -> str:
    try:
        return cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return ""
