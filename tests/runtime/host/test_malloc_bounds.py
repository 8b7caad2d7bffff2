"""What malloc and Pillow keep of freed memory is little once it is bounded, and only who owns a process does that."""

import ctypes
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from edgeclip.host.malloc_bounds import BOUNDS, bound_memory, give_back, has_mallopt, trim, wanted_bounds
from tests.conftest import DATA
from tests.scenes.command import Captured, run

GLIBC = pytest.mark.skipif(not has_mallopt(), reason="only glibc has such settings")
PHOTO = DATA / "images" / "gray.jpg"

# Eight threads at once take a large block and many small ones, and free them; what is resident then, in MB, with the
# number of heaps.
CHURN = """
import ctypes, os, re, sys, threading
from edgeclip.host.malloc_bounds import bound_memory

if sys.argv[1] == "bounded":
    assert len(bound_memory(os.environ)) == 4
barrier = threading.Barrier(8)
def churn():
    for size in (20 << 20, 8 << 20, 2 << 20):
        barrier.wait()
        blocks = [b"x" * size, *(bytes(2000) for _ in range(2000))]
        barrier.wait()
        del blocks
threads = [threading.Thread(target=churn) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
heaps = re.findall("<heap nr", open(sys.argv[2]).read())
print(len(heaps), int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 10**6)
"""

# Pillow is told before it is imported or after; what it keeps of a freed image of 64 MB and takes for the next.
BLOCKS = """
import os, sys
from edgeclip.host.malloc_bounds import bound_memory

if sys.argv[1] == "after":
    from PIL import Image
bound_memory(os.environ)
from PIL import Image

for _ in range(2):
    Image.new("RGB", (4000, 4000))
stats = Image.core.get_stats()
print(stats["blocks_cached"], stats["reused_blocks"])
"""

# The command line as the console script calls it; then what Pillow is told.
COMMAND = """
import os, sys
from edgeclip.cli import main

status = main()
print(status, os.environ.get("PILLOW_BLOCKS_MAX"), file=sys.stderr)
"""


def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "PILLOW_"))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def churned(how: str, file: Path) -> tuple[int, int]:
    heaps, resident_mb = map(int, python(CHURN, how, file).stdout.split())
    return heaps, resident_mb


@GLIBC
def test_what_threads_freed_goes_back(tmp_path: Path) -> None:
    free_heaps, free_mb = churned("unbounded", tmp_path / "heaps.xml")
    heaps, resident_mb = churned("bounded", tmp_path / "heaps.xml")
    assert heaps <= 2 < free_heaps
    assert resident_mb + 50 < free_mb


@GLIBC
def test_what_is_free_below_something_that_stays_is_given_back() -> None:
    """40 MB in blocks of 100 kB, of which the last and each hundredth stay."""
    script = (
        "import os; from edgeclip.host.malloc_bounds import bound_memory, trim; bound_memory(os.environ)\n"
        "def mb(): return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6\n"
        "blocks = [b'x' * size for size in [100_000] * 400]\n"
        "blocks = blocks[::100] + blocks[-1:]; kept = mb(); trim(); print(kept - mb())"
    )
    assert float(python(script).stdout) > 30


@GLIBC
@pytest.mark.parametrize("when", ["before", "after"])
def test_pillow_keeps_a_few_blocks_for_the_next_image(when: str) -> None:
    assert python(BLOCKS, when).stdout.split() == ["32", "32"]


@GLIBC
def test_the_command_line_bounds_its_own_process(bundle: Path) -> None:
    told = python(COMMAND, "embed", bundle, "--text", "a", "--device", "cpu").stderr
    assert told.splitlines()[-1] == "0 32"
    assert python(COMMAND, "inspect", bundle).stderr.splitlines()[-1] == "0 None"  # it decodes no image


def test_the_command_line_leaves_the_process_of_another_alone(
    bundle: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PILLOW_BLOCKS_MAX", raising=False)
    status, _, _ = run("embed", bundle, "--image", PHOTO, "--device", "cpu", capsys=capsys)
    assert (status, os.environ.get("PILLOW_BLOCKS_MAX")) == (0, None)


def test_what_the_user_set_himself_stays() -> None:
    arenas, threshold, size, blocks = BOUNDS
    assert wanted_bounds({}) == BOUNDS
    assert wanted_bounds({"MALLOC_ARENA_MAX": "1"}) == (threshold, size, blocks)
    assert wanted_bounds({"MALLOC_MMAP_THRESHOLD_": "1048576"}) == (arenas, size, blocks)
    assert wanted_bounds({"PILLOW_BLOCKS_MAX": "0", "PILLOW_BLOCK_SIZE": "4m"}) == (arenas, threshold)
    tunables = "glibc.malloc.check=1:glibc.malloc.arena_max=4:glibc.malloc.mmap_threshold=65536"
    assert wanted_bounds({"GLIBC_TUNABLES": tunables}) == (size, blocks)
    assert wanted_bounds({"GLIBC_TUNABLES": "glibc.malloc.arena_maximum=4"}) == BOUNDS


class _Bare:
    """A C library that has neither function, as musl's, though `os.confstr_names` names glibc there too."""

    def __init__(self, name: str | None) -> None:
        assert name is None


def _nameless(name: str | None) -> None:
    """Windows' answer to a library without a name."""
    raise TypeError("bad argument type for built-in operation")


@pytest.mark.parametrize("library", [_Bare, _nameless])
def test_where_malloc_has_no_such_settings_nothing_is_done(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    monkeypatch.setattr(ctypes, "CDLL", library)
    environment: dict[str, str] = {}
    assert not has_mallopt() and bound_memory(environment) == () and environment == {}
    trim()


@pytest.mark.parametrize(("size_bytes", "is_done"), [(1 << 20, False), (1 << 30, True)])
def test_a_step_gives_its_memory_back_where_it_had_much(size_bytes: int, is_done: bool) -> None:
    class Node:
        def __init__(self) -> None:
            self.me = self

    is_on = gc.isenabled()
    gc.disable()
    try:
        seen = weakref.ref(Node())
        give_back(size_bytes)
        assert (seen() is None) == is_done
    finally:
        if is_on:
            gc.enable()
