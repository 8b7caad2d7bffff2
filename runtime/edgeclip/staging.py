"""Where a bundle is written: beside its target under a name that ends in `.tmp`, and renamed when it is whole.

Whatever goes wrong on the way (a bad input, a full disk, Ctrl-C) leaves nothing that opens. The process id in
the name keeps two writers of one target apart, and tells the stages of those that were killed.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeclip.errors import BuildError
from edgeclip.manifest import FileFacts


def check_place(out: Path, needed_bytes: int) -> None:
    """Find out before the work what `staged` would find after it; makes the folders above `out`.

    Raises BuildError when `out` exists, cannot be written, or the disk has not `needed_bytes` free.
    """
    if out.exists() or out.is_symlink():
        raise BuildError(f"{out}: exists already; remove it or choose another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in _left_behind(out):
            shutil.rmtree(left, ignore_errors=True)
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
    stage = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        stage.mkdir()
        yield stage
        stage.rename(out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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


def _left_behind(out: Path) -> list[Path]:
    """The stages of `out` whose writer was killed: its process is gone."""
    stages = [
        (path, re.fullmatch(r"\.(\d+)\.tmp", path.name.removeprefix(out.name))) for path in out.parent.iterdir()
    ]
    return [path for path, match in stages if match and path.is_dir() and not _is_running(int(match[1]))]


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere os.kill cannot ask without harm
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
