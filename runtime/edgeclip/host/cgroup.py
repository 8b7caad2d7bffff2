"""The CPU quota and memory limit of a container: the smallest of this process's control group and of all above it.

Any group above may hold the limit (a pod's above its container's, a systemd slice's above its service's). Both
versions of cgroups are read, also side by side: /proc/self/cgroup names the process's group, /proc/self/mountinfo the
place of the trees (cgroups(7), kernel's cgroup-v2.rst).
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

_Limit = TypeVar("_Limit", int, float)

# Version 1 says "no limit" with the largest whole page.
_NO_MEMORY_LIMIT = 2**62


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest CPU quota as a number of processors, as 1.5; None without a quota.

    `root` is the folder that holds /proc and /sys. A value that cannot be read or is no number sets no limit.
    """
    return _smallest(root, "cpu", _read_cpu)


def memory_limit(root: Path = Path("/")) -> int | None:
    """The smallest memory limit in bytes; None without one."""
    return _smallest(root, "memory", _read_memory)


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
    try:
        try:
            limit = int((folder / "memory.max").read_text())
        except FileNotFoundError:
            limit = int((folder / "memory.limit_in_bytes").read_text())
    except (OSError, ValueError):
        return None
    return limit if 0 < limit < _NO_MEMORY_LIMIT else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:  # no Linux
        return []
