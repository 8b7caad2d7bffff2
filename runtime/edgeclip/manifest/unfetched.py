"""Recognise files that stand for others which were not fetched: links to nothing, pointers of LFS and git-annex."""

import os
from pathlib import Path

POINTER_BYTES = 64  # how much of a file's beginning says whether it is a pointer
_POINTERS = (
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file with `git lfs pull`"),
    (b"/annex/objects/", "a pointer of git-annex; fetch the file with `git annex get`"),
)


def describe_pointer(head: bytes) -> str | None:
    """What a file that begins with these bytes is and what to do, where it is a pointer; None for any other file."""
    return next((found for begin, found in _POINTERS if head.startswith(begin)), None)


def dangling_target(path: Path) -> str | None:
    """For a link to what is not there its words, else None."""
    return f"{os.readlink(path)}, which is not there" if path.is_symlink() and not path.exists() else None
