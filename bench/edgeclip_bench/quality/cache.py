"""Vectors kept between evaluations, by `diskcache_community` in one folder.

A vector is found again by what decided it and by nothing else: its *space* (bundle, code, versions, device:
`edgeclip_bench.quality.spaces`) and the sha256 of its input. It is sealed with a checksum, so what a damaged file
gives is computed again and never returned. Above the limit the vectors longest unused are dropped. Multi vectors are
kept too, under the same limit: a page of 768 tokens is 0.4 MB in float32, and half a minute of a small processor.

The cache is a convenience: when it is damaged, locked, unwritable or the disk is full, one CacheWarning says so and
the evaluation goes on without it. What is written is written at once, so a run that is killed keeps what it had.
Vectors of private data are private: a folder that is made here is its owner's alone.
"""

import hashlib
import os
import pickle
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from diskcache_community import Cache, SafeDisk, Timeout
from numpy.typing import NDArray

from edgeclip.engine.providers import cache_root
from edgeclip.errors import DeviceError

# A million vectors of 1024 dimensions.
LIMIT_BYTES = 5 * 10**9
_SEAL_BYTES = 8
_BUSY_S = 30
# UnpicklingError: a value that is no vector, which SafeDisk refuses.
_FAILURES = (sqlite3.Error, OSError, Timeout, pickle.UnpicklingError)
# Below this size a value stands in the database itself; every vector does.
_FILE_FROM_BYTES = 2**20


class CacheWarning(UserWarning):
    """The cache cannot be used, or part of it was damaged; the vectors are right all the same."""


class Entry(NamedTuple):
    """A full-width vector (D,) float32, or multi vectors (T, D), and whether the text was cut to the max_length."""

    vector: NDArray[np.float32]
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Space:
    """The facts that decide a vector besides its input, as JSON, the width of the vectors, and whether each input
    has several of them.
    """

    facts: str
    dim: int
    is_multi: bool = False

    @property
    def key(self) -> bytes:
        """The sha256 of the facts."""
        return hashlib.sha256(self.facts.encode()).digest()


def default_folder() -> Path | None:
    """The folder for vectors in that for all that can be built again; None, with a CacheWarning, without a home."""
    try:
        return cache_root(os.environ) / "embeddings"
    except DeviceError as error:
        warnings.warn(CacheWarning(f"nothing is kept: {error}"), stacklevel=2)
        return None


class EmbeddingCache:
    """The vectors in a folder; with None for the folder it holds nothing. A context manager."""

    def __init__(self, folder: Path | None, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder, self._damaged = folder, 0
        self._cache: Cache | None = None
        if folder is None:
            return
        try:
            # Values are bytes; SafeDisk runs no code of a pickle that somebody else has put there.
            self._cache = Cache(
                str(folder),
                timeout=_BUSY_S,
                disk=SafeDisk,
                size_limit=limit_bytes,
                eviction_policy="least-recently-used",
                disk_min_file_size=_FILE_FROM_BYTES,
            )
        except _FAILURES as error:
            self._give_up(error)

    def read(self, space: Space, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries that are kept for these inputs (each a sha256)."""
        found: dict[bytes, Entry] = {}
        if self._cache is None or not keys:
            return found
        try:
            with self._cache.transact():
                for key in keys:
                    if (value := self._cache.get(space.key + key)) is not None:
                        entry = _unseal(space, key, value)
                        if entry is None:
                            self._damaged += 1
                        else:
                            found[key] = entry
        except _FAILURES as error:
            self._give_up(error)
        return found

    def write(self, space: Space, entries: Mapping[bytes, Entry]) -> None:
        """Keep the vectors of these inputs, all or none of them."""
        if self._cache is None:
            return
        try:
            with self._cache.transact():
                for key, entry in entries.items():
                    self._cache.set(space.key + key, _seal(space, key, entry))
        except _FAILURES as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the files; how many vectors in them were damaged is said here, once."""
        if self._cache is not None:
            with suppress(sqlite3.Error):
                self._cache.close()
            self._cache = None
        if self._damaged:
            self._warn(f"{self._damaged} vectors in it were damaged and were computed again")
            self._damaged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_up(self, error: Exception) -> None:
        self._cache = None
        reason = (isinstance(error, OSError) and error.strerror) or error or type(error).__name__
        self._warn(f"cannot be used ({reason}), so nothing is kept; it may be deleted, or choose another folder")

    def _warn(self, what: str) -> None:
        warnings.warn(CacheWarning(f"the cache {self._folder} {what}"), stacklevel=3)


def _seal(space: Space, key: bytes, entry: Entry) -> bytes:
    """A value as it is kept: whether the text was cut, the vector, and a checksum over all, space and key too."""
    content = bytes([entry.is_cut]) + np.ascontiguousarray(entry.vector, dtype="<f4").tobytes()
    return content + hashlib.sha256(space.key + key + content).digest()[:_SEAL_BYTES]


def _unseal(space: Space, key: bytes, value: object) -> Entry | None:
    """The entry that a value holds; None for one that is not as it was written."""
    if not isinstance(value, bytes):
        return None
    rows, rest = divmod(len(value) - 1 - _SEAL_BYTES, 4 * space.dim)
    if rest or rows < 1 or (rows > 1 and not space.is_multi):
        return None
    vector = np.frombuffer(value[1:-_SEAL_BYTES], dtype="<f4").astype(np.float32)
    if space.is_multi:
        vector = vector.reshape(rows, space.dim)
    entry = Entry(vector, value[:1] != b"\0")
    return entry if _seal(space, key, entry) == value else None
