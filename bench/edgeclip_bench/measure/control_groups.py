"""Control groups of Linux, version 1 or 2: a process is measured with so much memory, or with so slow a disk."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from edgeclip.errors import DeviceError

_ROOT = Path("/sys/fs/cgroup")
_LOOK_EVERY_S = 0.05


@contextmanager
def control_group(controller: Literal["memory", "blkio"]) -> Iterator[Path]:
    """Make a control group with this controller; in the end all that runs in it is killed, and it is removed.

    Raises DeviceError where none can be made: it needs Linux, and the rights that root has.
    """
    trees = (_ROOT / controller, _ROOT)  # version 1 has a tree for each controller
    group = next((tree for tree in trees if (tree / "cgroup.procs").exists()), _ROOT) / f"edgeclip-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        why = f"{group}: no control group can be made ({error.strerror}); it needs Linux, and the rights of root"
        raise DeviceError(why) from error
    try:
        yield group
    finally:
        while processes := (group / "cgroup.procs").read_text().split():
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            time.sleep(_LOOK_EVERY_S)
        group.rmdir()


def enter(group: Path, *command: str) -> list[str]:
    """A command that runs `command` in a control group from its first moment on."""
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]


def limit_memory(group: Path, limit_bytes: int) -> None:
    """Limit the memory of a group, pages of files among it. What is above it is killed."""
    _write(group, {"memory.max": str(limit_bytes), "memory.limit_in_bytes": str(limit_bytes)})


def limit_reading(group: Path, folder: Path, bytes_per_s: int) -> None:
    """Limit what a group reads of the disk that a folder lies on."""
    device = Path(f"/sys/dev/block/{os.major(folder.stat().st_dev)}:{os.minor(folder.stat().st_dev)}").resolve()
    disk = device.parent if (device / "partition").exists() else device
    number = (disk / "dev").read_text().strip()
    _write(
        group,
        {"io.max": f"{number} rbps={bytes_per_s}", "blkio.throttle.read_bps_device": f"{number} {bytes_per_s}"},
    )


def _write(group: Path, by_name: dict[str, str]) -> None:
    """Write to the file that the group has: each version has a name of its own."""
    name = next((name for name in by_name if (group / name).exists()), None)
    if name is None:
        raise DeviceError(f"{group}: has none of {', '.join(by_name)}; the controller is not switched on there")
    (group / name).write_text(by_name[name])
