"""Vectors kept between evaluations, in one sqlite file.

A vector is found again by what decided it and by nothing else: its *space* (bundle, code, versions, device:
`edgeclip_bench.quality.spaces` says which) and the sha256 of its input. A row is sealed with a checksum
over all of it, so what a damaged file gives is computed again and never returned.

The cache is a convenience: when its file is damaged, locked, unwritable or the disk is full, one
CacheWarning says so and the evaluation goes on without it. Each write is a transaction of its own (WAL),
so a run that is killed keeps what it had, and several may run at once.

Vectors of private data are private: a folder that is made here, and the file in it, are its owner's alone.
"""

import hashlib
import os
import sqlite3
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

# A million vectors of 1024 dimensions; looked at before each write. Above it the spaces longest unused are
# dropped, never one in use: when those fill it alone, nothing more is kept.
LIMIT_BYTES = 5 * 10**9
_FILE = "vectors-1.sqlite3"  # another layout takes another name
_SEAL_BYTES = 8
_BUSY_S = 30.0
_KEYS_AT_ONCE = 500  # sqlite's oldest limit on variables is 999
_LAYOUT = """
CREATE TABLE IF NOT EXISTS spaces (space BLOB PRIMARY KEY, used INTEGER NOT NULL, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS vectors (
    space BLOB NOT NULL, key BLOB NOT NULL, is_cut INTEGER NOT NULL, vector BLOB NOT NULL, seal BLOB NOT NULL,
    PRIMARY KEY (space, key)
);
"""


class CacheWarning(UserWarning):
    """The cache cannot be used, or part of it was damaged; the vectors are right all the same."""


class Entry(NamedTuple):
    """A full-width vector (D,) float32, and whether its text was cut to the model's max_length."""

    vector: NDArray[np.float32]
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Space:
    """All that decides a vector besides its input, as JSON, and how wide the vectors are."""

    facts: str
    dim: int

    @property
    def key(self) -> bytes:
        """sha256 of the facts."""
        return hashlib.sha256(self.facts.encode()).digest()


def default_folder() -> Path | None:
    """$XDG_CACHE_HOME/edgeclip/embeddings (a relative one is ignored, as XDG has it), or that under ~/.cache.

    None, with a CacheWarning, where there is no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = base if base.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        warnings.warn(CacheWarning(f"nothing is kept: {error}"), stacklevel=2)
        return None
    return base / "edgeclip" / "embeddings"


class EmbeddingCache:
    """The vectors in a folder's file; with None for the folder it holds nothing. A context manager."""

    def __init__(self, folder: Path | None, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._database: sqlite3.Connection | None = None
        self._entered: set[bytes] = set()
        self._damaged = 0
        self._is_full = False
        self._left_out = 0
        if folder is None:
            return
        self._path = folder / _FILE
        try:
            if not folder.exists():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                (folder / _FILE).touch(mode=0o600)  # sqlite gives what it lays beside it the same mode
            self._database = sqlite3.connect(self._path, timeout=_BUSY_S)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")  # safe in WAL; a power cut loses the last writes
            self._database.executescript(_LAYOUT)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def read(self, space: Space, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """What is kept for these inputs (each a sha256)."""
        found: dict[bytes, Entry] = {}
        try:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                found.update(self._read(space, keys[start : start + _KEYS_AT_ONCE]))
        except sqlite3.Error as error:
            self._give_up(error)
        return found

    def write(self, space: Space, entries: Mapping[bytes, Entry]) -> None:
        """Keep the vectors of these inputs, all or none of them."""
        if self._database is None:
            return
        rows = []
        for key, entry in entries.items():
            blob = np.ascontiguousarray(entry.vector, dtype="<f4").tobytes()
            rows.append((space.key, key, entry.is_cut, blob, _seal(space, key, blob, entry.is_cut)))
        try:
            self._enter(space)
            if not self._make_room():
                self._left_out += len(rows)
                return
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file; what was damaged in it, and what it had no room for, is said here, once."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        if self._damaged:
            self._warn(f"{self._damaged} vectors in it were damaged and were computed again")
            self._damaged = 0
        if self._left_out:
            self._warn(f"is full ({self._limit_bytes / 1e9:.2g} GB), so {self._left_out} vectors were not kept")
            self._left_out = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, space: Space, keys: Sequence[bytes]) -> Iterable[tuple[bytes, Entry]]:
        if self._database is None or not keys:
            return
        self._enter(space)
        marks = ", ".join("?" * len(keys))
        query = f"SELECT key, is_cut, vector, seal FROM vectors WHERE space = ? AND key IN ({marks})"
        for key, is_cut, blob, seal in self._database.execute(query, (space.key, *keys)).fetchall():
            is_whole = isinstance(blob, bytes) and len(blob) == 4 * space.dim
            if is_whole and seal == _seal(space, key, blob, bool(is_cut)):
                yield key, Entry(np.frombuffer(blob, dtype="<f4").astype(np.float32), bool(is_cut))
            else:
                self._damaged += 1

    def _enter(self, space: Space) -> None:
        """Note that the space is in use. Counted in turns, not in time."""
        if self._database is None or space.key in self._entered:
            return
        self._entered.add(space.key)
        with self._database:
            self._database.execute(
                "INSERT INTO spaces VALUES (?, (SELECT COALESCE(MAX(used), 0) + 1 FROM spaces), ?) "
                "ON CONFLICT (space) DO UPDATE SET used = excluded.used",
                (space.key, space.facts),
            )

    def _make_room(self) -> bool:
        """Drop other spaces while the file is above its limit; whether there is room then."""
        assert self._database is not None
        while not self._is_full and self._size_bytes() > self._limit_bytes:
            if (oldest := self._oldest()) is None:
                self._is_full = True  # not asked for again: the query reads the whole index
                break
            with self._database:
                self._database.execute("DELETE FROM vectors WHERE space = ?", (oldest,))
                self._database.execute("DELETE FROM spaces WHERE space = ?", (oldest,))
        return not self._is_full

    def _oldest(self) -> bytes | None:
        """The space longest unused that holds vectors, those first that another run dropped while one wrote."""
        assert self._database is not None
        query = (
            "SELECT space FROM (SELECT DISTINCT space FROM vectors) LEFT JOIN spaces USING (space) "
            "ORDER BY COALESCE(used, 0)"
        )
        spaces = (space for (space,) in self._database.execute(query).fetchall())
        return next((space for space in spaces if space not in self._entered), None)

    def _size_bytes(self) -> int:
        """Bytes of the file that hold something; pages that are free to be written again do not count."""
        assert self._database is not None
        query = (
            "SELECT (page_count - freelist_count) * page_size "
            "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        )
        return int(self._database.execute(query).fetchone()[0])

    def _give_up(self, error: Exception) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        self._warn(f"cannot be used ({reason}), so nothing is kept; it may be deleted, or choose another folder")

    def _warn(self, what: str) -> None:
        warnings.warn(CacheWarning(f"the cache {self._path} {what}"), stacklevel=3)


def _seal(space: Space, key: bytes, blob: bytes, is_cut: bool) -> bytes:
    return hashlib.sha256(space.key + key + bytes([is_cut]) + blob).digest()[:_SEAL_BYTES]
