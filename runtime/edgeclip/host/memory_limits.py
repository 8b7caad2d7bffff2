"""The limits of this process's memory, and what is left of each: control groups, `ulimit`, and the machine.

Three things are counted, each by another limit:

    resident   pages in memory that the kernel cannot drop: the limits of control groups, the machine's memory
    data       writable memory of this process alone, used or not: `ulimit -d`
    address    every address that stands for something, mapped files among them: `ulimit -v`

On other systems than Linux no limit is known, and none is found.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeclip.host.cgroup import memory_groups

Counted = Literal["resident", "data", "address"]
_ROOT = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """A limit of memory by the words that a message has for it.

    `free_bytes` is what is left of it beside other processes at present. `is_hard` says that what exceeds it fails or
    is killed.
    """

    name: str
    counted: Counted
    limit_bytes: int
    free_bytes: int
    is_hard: bool = True


def read_limits(root: Path = _ROOT) -> tuple[MemoryLimit, ...]:
    """Every limit of this process's memory. `root` is the folder that holds /proc and /sys."""
    if root == _ROOT and sys.platform != "linux":
        return ()
    return (*_of_groups(root), *_of_process(root), *_of_machine(root))


def held_bytes(root: Path = _ROOT) -> dict[Counted, int]:
    """What this process holds of each that is counted; zeros where that is not known.

    Pages of files count as held only where they were changed: the kernel drops the others.
    """
    found = _sizes(root / "proc/self/status")
    return {"resident": found.get("RssAnon", 0), "data": found.get("VmData", 0), "address": found.get("VmSize", 0)}


def has_threads(root: Path = _ROOT) -> bool:
    """Whether this process has more than one thread, those of libraries among them."""
    try:
        return sum(1 for _ in (root / "proc/self/task").iterdir()) > 1
    except OSError:
        return True


def _of_groups(root: Path) -> Iterator[MemoryLimit]:
    machine = _sizes(root / "proc/meminfo")
    for group in memory_groups(root):
        swap = min(group.swap_bytes or 0, machine.get("SwapTotal", 0)) if group.swap_bytes is not None else None
        swap = machine.get("SwapTotal", 0) if swap is None else swap
        yield MemoryLimit(
            name="the control group's soft limit (memory.high)" if group.is_soft else "the control group's limit",
            counted="resident",
            limit_bytes=group.limit_bytes + swap,
            free_bytes=max(0, group.limit_bytes - group.held_bytes) + min(swap, machine.get("SwapFree", 0)),
            is_hard=not group.is_soft,
        )


def _of_process(root: Path) -> Iterator[MemoryLimit]:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    held = held_bytes(root)
    limits: tuple[tuple[str, Counted, int], ...] = (
        ("`ulimit -v`", "address", resource.RLIMIT_AS),
        ("`ulimit -d`", "data", resource.RLIMIT_DATA),
    )
    for name, counted, number in limits:
        limit, _ = resource.getrlimit(number)
        if limit != resource.RLIM_INFINITY:
            yield MemoryLimit(name=name, counted=counted, limit_bytes=limit, free_bytes=max(0, limit - held[counted]))


def _of_machine(root: Path) -> Iterator[MemoryLimit]:
    found = _sizes(root / "proc/meminfo")
    if "MemTotal" in found:
        yield MemoryLimit(
            name="the memory of this machine",
            counted="resident",
            limit_bytes=found["MemTotal"] + found.get("SwapTotal", 0),
            free_bytes=found.get("MemAvailable", found["MemTotal"]) + found.get("SwapFree", 0),
        )


def _sizes(path: Path) -> dict[str, int]:
    """The lines `Name:  123 kB` of a file of /proc, in bytes."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    parts = (line.replace(":", " ").split() for line in lines)
    return {part[0]: int(part[1]) << 10 for part in parts if len(part) == 3 and part[2] == "kB"}
