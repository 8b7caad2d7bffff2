"""Where a bundle is written: beside its target under a name that ends in `.tmp`, and renamed when it is whole.

Whatever goes wrong on the way (a bad input, a full disk, Ctrl-C) leaves nothing that opens. What a killed writer left
is removed by the next one: a writer holds a lock on its folder, which ends with its process. A process id would not
tell the two apart, for in containers it is 1 every time.
"""

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from edgeclip.errors import BuildError
from edgeclip.manifest import FileFacts

try:
    import fcntl
except ImportError:  # Windows has none: what is left there stays
    fcntl = None  # type: ignore[assignment]

_STAGE = re.compile(r"\.(\w+)-[0-9a-f]{8}\.tmp")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NOWHERE = "0"
# Of a lock on a network disk another machine may know nothing, so what it writes is left alone for so long.
_FOREIGN_S = 24 * 3600.0


def check_place(out: Path, needed_bytes: int) -> None:
    """Find out before the work what `staged` would find after it; makes the folders above `out`.

    Raises BuildError when `out` exists, cannot be written, or the disk has not `needed_bytes` free.
    """
    if out.exists() or out.is_symlink():
        raise BuildError(f"{out}: exists already; remove it or choose another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_left_behind(out)
        free = shutil.disk_usage(out.parent).free
    except OSError as error:
        raise _cannot_write(out, error) from error
    if not os.access(out.parent, os.W_OK):
        raise BuildError(f"{out}: cannot be written (no right to write in {out.parent})")
    if free < needed_bytes:
        raise BuildError(
            f"{out}: the bundle needs {needed_bytes / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free"
        )


@contextmanager
def staged(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all went well and disappears when not.

    Raises BuildError when `out` exists, cannot be written, or the disk has not `needed_bytes` free.
    """
    check_place(out, needed_bytes)
    try:
        with stage_folder(out) as stage:
            yield stage
            stage.rename(out)
    except OSError as error:
        raise _cannot_write(out, error) from error


@contextmanager
def stage_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, nobody else's while the block runs, and removed then unless it was renamed.

    Raises OSError where none can be made.
    """
    stage, lock = _make_stage(out)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def stage_name(name: str) -> str:
    """What is called `name` when it is whole, until then: nobody else's name, and on which machine it is written."""
    return f"{name}.{_machine()}-{secrets.token_hex(4)}.tmp"


def remove_left_behind(out: Path) -> None:
    """Remove the stages of `out` whose writers were killed; never one that may be written.

    Raises OSError when the folder that they lie in cannot be read.
    """
    for stage in out.parent.iterdir():
        match = _STAGE.fullmatch(stage.name, len(out.name)) if stage.name.startswith(out.name) else None
        if match and _is_left_alone(stage, match[1]) and (lock := _lock(stage)) is not None:
            shutil.rmtree(stage, ignore_errors=True)
            os.close(lock)


def file_facts(folder: Path, progress: Callable[[str, int, int], None]) -> tuple[FileFacts, ...]:
    """Size and hash of every file in a folder, by name."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    facts = []
    for done, path in enumerate(paths):
        progress("hashing", done, len(paths))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        facts.append(FileFacts(name=path.name, size_bytes=path.stat().st_size, sha256=digest))
    return tuple(facts)


def _cannot_write(out: Path, error: OSError) -> BuildError:
    return BuildError(f"{out}: cannot be written ({error.strerror or error})")


def _make_stage(out: Path) -> tuple[Path, int | None]:
    """A stage and its lock; None on a disk that knows no locks."""
    while True:
        stage = out.with_name(stage_name(out.name))
        stage.mkdir()
        lock = _lock(stage, waits=True)
        if stage.is_dir():
            return stage, lock
        if lock is not None:  # between the two another writer took it for left behind
            os.close(lock)


def _lock(folder: Path, *, waits: bool = False) -> int | None:
    """A descriptor that holds the folder's lock until it is closed or its process ends; None when none can be had."""
    if fcntl is None:
        return None
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
    return None


def _is_left_alone(stage: Path, machine: str) -> bool:
    """Whether its lock says all: it was begun here, or nothing in it changed for long."""
    if machine == _machine() != _NOWHERE:
        return True
    try:
        changed = max(path.lstat().st_mtime for path in (stage, *stage.rglob("*")))
    except OSError:  # somebody is at work in it
        return False
    return time.time() - changed > _FOREIGN_S


@cache
def _machine() -> str:
    """What sees the locks of this process: the running kernel, as 8 hex digits; "0" where it has no number."""
    try:
        return _BOOT_ID.read_text()[:8]
    except OSError:
        return _NOWHERE
