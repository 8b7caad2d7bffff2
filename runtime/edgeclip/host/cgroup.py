"""The CPU quota and memory limit of a container: the smallest of this process's control group and of all above it.

Any group above may hold the limit (a pod's above its container's, a systemd slice's above its service's). Both
versions of cgroups are read, also side by side: /proc/self/cgroup names the process's group, /proc/self/mountinfo the
place of the trees (cgroups(7), kernel's cgroup-v2.rst).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

_Limit = TypeVar("_Limit", int, float)

# Version 1 says "no limit" with the largest whole page.
_NO_MEMORY_LIMIT = 2**62
# The files of a group that hold a limit of its memory and what it uses: version 2's, version 1's. memory.high kills
# nothing, but slows a group above it down until it stands still.
_HARD = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
_SOFT = (("memory.high", "memory.current"),)
# What the kernel drops when a group needs room, in memory.stat of version 2 and version 1.
_DROPPED = ("inactive_file", "active_file", "slab_reclaimable"), ("total_inactive_file", "total_active_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMemory:
    """A memory limit of a control group: of what it holds without what the kernel can drop, and of its swap.

    A group above its limit is killed, or where the limit is soft (memory.high) slowed down. With `swap_bytes` None
    the machine alone says how much may be swapped.
    """

    limit_bytes: int
    held_bytes: int
    swap_bytes: int | None
    is_soft: bool


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest CPU quota as a number of processors, as 1.5; None without a quota.

    `root` is the folder that holds /proc and /sys. A value that cannot be read or is no number sets no limit.
    """
    return _smallest(root, "cpu", _read_cpu)


def memory_limit(root: Path = Path("/")) -> int | None:
    """The smallest memory limit in bytes; None without one."""
    return _smallest(root, "memory", _read_memory)


def memory_groups(root: Path = Path("/")) -> list[GroupMemory]:
    """Every memory limit of this process's control group and of all above it."""
    found = []
    for folder in _groups(root, "memory"):
        for is_soft, names in ((False, _HARD), (True, _SOFT)):
            for limit_name, used_name in names:
                if (limit := _read_bytes(folder / limit_name)) is not None:
                    held, swap = _held(folder, used_name), _swap(folder, limit)
                    found.append(GroupMemory(limit_bytes=limit, held_bytes=held, swap_bytes=swap, is_soft=is_soft))
    return found


def _held(folder: Path, used_name: str) -> int:
    """The bytes that a group uses and that the kernel cannot simply drop."""
    pairs = (line.split() for line in _lines(folder / "memory.stat"))
    stat = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    dropped = sum(stat.get(name, 0) for name in _DROPPED[used_name == _HARD[1][1]])
    return max(0, (_read_bytes(folder / used_name) or 0) - dropped)


def _swap(folder: Path, limit: int) -> int | None:
    """The bytes that a group may swap; None without a bound."""
    if (swap := _read_bytes(folder / "memory.swap.max", least=0)) is not None:
        return swap
    both = _read_bytes(folder / "memory.memsw.limit_in_bytes")
    return None if both is None else max(0, both - limit)


def _smallest(root: Path, controller: str, read: Callable[[Path], _Limit | None]) -> _Limit | None:
    limits = [limit for folder in _groups(root, controller) if (limit := read(folder)) is not None]
    return min(limits, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of our groups in each tree that may limit `controller`, from our own up to the mount."""
    paths = dict(_own_paths(root, controller))
    for is_v2, mounted, point in _mounts(root, controller):
        if (own := paths.get(is_v2)) is None:
            continue
        # Without a cgroup namespace the path is the host's, and a container sees the tree from its own group down.
        relative = own.relative_to(mounted) if own.is_relative_to(mounted) else PurePosixPath()
        folder = root / point.relative_to("/")
        yield folder
        for part in relative.parts:
            if part not in ("/", ".."):
                folder = folder / part
                yield folder


def _own_paths(root: Path, controller: str) -> Iterator[tuple[bool, PurePosixPath]]:
    """Parse lines as `0::/user.slice` (version 2) and `4:cpu,cpuacct:/docker/1f3a` (version 1): is it 2, our path."""
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or controller in controllers.split(","):
            yield number == "0", PurePosixPath(path or "/")


def _mounts(root: Path, controller: str) -> Iterator[tuple[bool, PurePosixPath, PurePosixPath]]:
    """Parse lines as `32 31 0:29 /docker/1f3a /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu`: is it 2, root, mount
    point.
    """
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, kind = line.partition(" - ")
        place, (filesystem, _, options) = fields.split(), (kind.split(maxsplit=2) + [""] * 3)[:3]
        is_v2 = filesystem == "cgroup2"
        is_v1 = filesystem == "cgroup" and controller in options.split(",")
        if (is_v1 or is_v2) and len(place) > 4 and place[4].startswith("/"):
            yield is_v2, PurePosixPath(place[3]), PurePosixPath(place[4])


def _read_cpu(folder: Path) -> float | None:
    try:
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except FileNotFoundError:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        processors = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or no number: version 2 says "max"
        return None
    return processors if processors > 0 else None  # version 1 says -1


def _read_memory(folder: Path) -> int | None:
    limits = (_read_bytes(folder / name) for name, _ in _HARD)
    return next((limit for limit in limits if limit is not None), None)


def _read_bytes(path: Path, *, least: int = 1) -> int | None:
    """The number in a file; None for a file that is not there, and for no limit: version 2 says "max"."""
    try:
        found = int(path.read_text())
    except (OSError, ValueError):
        return None
    return found if least <= found < _NO_MEMORY_LIMIT else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:  # no Linux
        return []
