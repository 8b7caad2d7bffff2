"""Files whose bytes and names are on the disk when a function here returns, so that a power cut costs none."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO


def open_at(path: Path, size_bytes: int) -> BinaryIO:
    """The file, cut to so many bytes, to be written on; ValueError for one that has fewer."""
    file = path.open("r+b" if path.exists() else "w+b")
    if file.seek(0, os.SEEK_END) < size_bytes:
        file.close()
        raise ValueError(f"{path.name} is shorter than it was")
    file.truncate(size_bytes)
    file.seek(size_bytes)
    return file


def flush(file: BinaryIO) -> int:
    """Write all bytes of the file to the disk; returns its size in bytes."""
    file.flush()
    os.fsync(file.fileno())
    return file.seek(0, os.SEEK_END)


def flush_folder(folder: Path) -> None:
    """Write to the disk which names the folder holds; does nothing on a system that cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_bytes(path: Path, data: bytes) -> None:
    """Give the file these bytes: it has the old ones or the new ones, whenever the power is cut."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(data)
        flush(file)
    new.replace(path)
    flush_folder(path.parent)
