"""What the cache gives back is what was written under the same facts; when it fails it says so and is no cache."""

import hashlib
import os
import sqlite3
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from edgeclip_bench.quality.cache import CacheWarning, EmbeddingCache, Entry, Space, default_folder

DIM = 64
SPACE = Space("these weights", DIM)


def entries(count: int, start: int = 0) -> dict[bytes, Entry]:
    """Vectors that follow from their keys."""
    keys = [hashlib.sha256(f"input {index}".encode()).digest() for index in range(start, start + count)]
    return {key: Entry(np.frombuffer(key * 2, np.uint8).astype(np.float32), key[0] % 2 == 0) for key in keys}


def assert_equal(found: dict[bytes, Entry], wanted: dict[bytes, Entry]) -> None:
    assert found.keys() == wanted.keys()
    for key, entry in wanted.items():
        np.testing.assert_array_equal(found[key].vector, entry.vector)
        assert found[key].is_cut is entry.is_cut


def read_and_write(folder: Path, wanted: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """What was found of `wanted`, all of which is written then."""
    with EmbeddingCache(folder) as cache:
        found = cache.read(SPACE, list(wanted))
        cache.write(SPACE, wanted)
    return found


def file_of(folder: Path) -> Path:
    return folder / "cache.db"


def test_a_vector_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    wanted = {key: Entry(draw.standard_normal(DIM).astype(np.float32), False) for key in entries(3)}
    with EmbeddingCache(tmp_path / "new" / "folder") as cache:
        cache.write(SPACE, wanted)
        assert_equal(cache.read(SPACE, list(wanted)), wanted)
    with EmbeddingCache(tmp_path / "new" / "folder") as cache:
        assert_equal(cache.read(SPACE, [*wanted, *entries(1, start=9)]), wanted)


def test_many_are_read_at_once(tmp_path: Path) -> None:
    wanted = entries(2100)
    with EmbeddingCache(tmp_path) as cache:
        cache.write(SPACE, wanted)
        assert_equal(cache.read(SPACE, list(wanted)), wanted)


def test_other_facts_do_not_find_it(tmp_path: Path) -> None:
    wanted = entries(2)
    with EmbeddingCache(tmp_path) as cache:
        cache.write(SPACE, wanted)
        assert cache.read(Space("other weights", DIM), list(wanted)) == {}


def test_without_a_folder_nothing_is_kept() -> None:
    with EmbeddingCache(None) as cache:
        cache.write(SPACE, entries(2))
        assert cache.read(SPACE, list(entries(2))) == {}


@pytest.mark.parametrize("place", [0, 100, 4 * DIM - 1])
def test_a_damaged_vector_is_not_given_back(tmp_path: Path, place: int) -> None:
    wanted = entries(3)
    with EmbeddingCache(tmp_path) as cache:
        cache.write(SPACE, wanted)
    entry = next(iter(wanted.values()))
    content = bytearray(file_of(tmp_path).read_bytes())
    assert content.count(entry.vector.tobytes()) == 1
    content[content.index(entry.vector.tobytes()) + place] ^= 1
    file_of(tmp_path).write_bytes(content)
    with pytest.warns(CacheWarning, match=r"1 vectors in it were damaged and were computed again"):
        found = read_and_write(tmp_path, wanted)
    assert_equal(found, {other: wanted[other] for other in list(wanted)[1:]})
    with EmbeddingCache(tmp_path) as cache:
        assert_equal(cache.read(SPACE, list(wanted)), wanted)


def test_a_vector_of_another_width_is_not_given_back(tmp_path: Path) -> None:
    (key,) = entries(1)
    with EmbeddingCache(tmp_path) as cache:
        cache.write(SPACE, {key: Entry(np.ones(DIM - 1, np.float32), False)})
    with pytest.warns(CacheWarning, match="damaged"):
        assert read_and_write(tmp_path, entries(1)) == {}


@pytest.mark.parametrize("content", [b"no database at all" * 500, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_one_warning(tmp_path: Path, content: bytes) -> None:
    with EmbeddingCache(tmp_path) as cache:
        cache.write(SPACE, entries(1))
    file_of(tmp_path).write_bytes(content)
    with pytest.warns(CacheWarning, match=r"cannot be used \(.*\), so nothing is kept") as told:
        assert read_and_write(tmp_path, entries(1)) == {}
    assert len(told) == 1
    assert file_of(tmp_path).read_bytes() == content


def test_a_damaged_page_is_one_warning(tmp_path: Path) -> None:
    wanted = entries(500)
    with EmbeddingCache(tmp_path) as cache:
        cache.write(SPACE, wanted)
    content = bytearray(file_of(tmp_path).read_bytes())
    content[3 * 4096 :] = os.urandom(len(content) - 3 * 4096)
    file_of(tmp_path).write_bytes(content)
    with pytest.warns(CacheWarning) as told:
        found = read_and_write(tmp_path, wanted)
    assert len(told) == 1
    assert_equal(found, {key: wanted[key] for key in found})


def test_a_folder_that_cannot_be_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(CacheWarning, match="could not be created") as told:
        assert read_and_write(tmp_path / "file" / "cache", entries(1)) == {}
    assert len(told) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk_is_one_warning(tmp_path: Path) -> None:
    """A limit on the size of files stands for it, in a process of its own."""
    program = f"""if True:
        import resource, sys, warnings
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from edgeclip_bench.quality.cache import EmbeddingCache
        from tests.bench.quality.test_cache import SPACE, entries
        with warnings.catch_warnings(record=True) as told, EmbeddingCache(Path(sys.argv[1])) as cache:
            cache.write(SPACE, entries(10))
            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
            for start in range(10, 2000, 10):
                cache.write(SPACE, entries(10, start=start))
                cache.read(SPACE, list(entries(10, start=start)))
        print(*(warning.message for warning in told), sep="\\n")
    """
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and "cannot be used (" in done.stdout
    with EmbeddingCache(tmp_path) as cache:
        assert_equal(cache.read(SPACE, list(entries(10))), entries(10))


def test_what_was_written_before_a_kill_is_kept(tmp_path: Path) -> None:
    program = f"""if True:
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from edgeclip_bench.quality.cache import EmbeddingCache
        from tests.bench.quality.test_cache import SPACE, entries
        cache = EmbeddingCache(Path(sys.argv[1]))
        cache.write(SPACE, entries(20))
        os._exit(9)
    """
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 9
    with EmbeddingCache(tmp_path) as cache:
        assert_equal(cache.read(SPACE, list(entries(20))), entries(20))


def write_and_read(folder: Path, start: int) -> int:
    """How many of a hundred vectors were there after writing them; a warning is an error."""
    warnings.simplefilter("error")
    found = 0
    for step in range(start, start + 100, 10):
        with EmbeddingCache(folder) as cache:
            cache.write(SPACE, entries(10, start=step))
            assert_equal(there := cache.read(SPACE, list(entries(10, start=step))), entries(10, start=step))
            found += len(there)
    return found


def test_several_may_write_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(write_and_read, [tmp_path] * 4, [0, 50, 100, 0])) == [100] * 4
    with EmbeddingCache(tmp_path) as cache:
        assert_equal(cache.read(SPACE, list(entries(200))), entries(200))


def test_what_is_longest_unused_makes_room(tmp_path: Path) -> None:
    old, middle, new = (Space(name, DIM) for name in ("old", "middle", "new"))
    with EmbeddingCache(tmp_path) as cache:
        for space in (old, middle):
            cache.write(space, entries(300))
            time.sleep(0.01)
    with EmbeddingCache(tmp_path) as cache:  # used again, so "middle" is the older now
        assert len(cache.read(old, list(entries(300)))) == 300
    size = file_of(tmp_path).stat().st_size
    with EmbeddingCache(tmp_path, limit_bytes=size) as cache:
        for start in range(0, 200, 10):
            cache.write(new, entries(10, start=start))
        assert len(cache.read(old, list(entries(300)))) == 300
        assert len(cache.read(new, list(entries(200)))) == 200
        assert len(cache.read(middle, list(entries(300)))) < 300
    assert file_of(tmp_path).stat().st_size < 1.3 * size


def test_a_limit_holds_while_one_run_writes_more(tmp_path: Path) -> None:
    """What came last stays."""
    limit = 200_000
    with EmbeddingCache(tmp_path, limit_bytes=limit) as cache:
        for start in range(0, 4000, 50):
            cache.write(SPACE, entries(50, start=start))
        kept = cache.read(SPACE, list(entries(4000)))
        assert 0 < len(kept) < 4000
        assert_equal(cache.read(SPACE, list(entries(50, start=3950))), entries(50, start=3950))
    assert file_of(tmp_path).stat().st_size < 2 * limit


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_folder_made_here_is_its_owners_alone(tmp_path: Path) -> None:
    """One that was there keeps what its owner chose."""
    umask = os.umask(0o022)
    try:
        (tmp_path / "there").mkdir()
        for name, wanted in (("parent/new", 0o700), ("there", 0o755)):
            with EmbeddingCache(tmp_path / name) as cache:
                cache.write(SPACE, entries(2))
                assert (tmp_path / name).stat().st_mode & 0o777 == wanted
    finally:
        os.umask(umask)


def test_code_that_somebody_put_there_is_not_run(tmp_path: Path) -> None:
    """A value that is a pickle counts as damaged or makes the cache useless; what it says is not done."""
    (key,) = entries(1)
    with EmbeddingCache(tmp_path) as cache:
        cache.write(SPACE, entries(1))
    made = tmp_path / "made"
    evil = b"cos\nmkdir\n(S'" + str(made).encode() + b"'\ntR."
    with sqlite3.connect(file_of(tmp_path)) as database:
        database.execute("UPDATE Cache SET mode = 4, value = ?", (evil,))
    database.close()
    with pytest.warns(CacheWarning):
        assert read_and_write(tmp_path, {key: entries(1)[key]}) == {}
    assert not made.exists()


def test_it_lies_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/edgeclip/embeddings")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_folder() == tmp_path / ".cache" / "edgeclip" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == tmp_path / ".cache" / "edgeclip" / "embeddings"
