"""What the service still holds of a request that is over: nothing; and what the C library keeps of it: little."""

import asyncio
import base64
import gc
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeclip.serve.dialects import RequestLimits
from edgeclip.serve.errors import ApiError
from edgeclip.serve.memory import BOUNDS, is_glibc, is_worth_it, keep_trimmed, wanted_bounds
from edgeclip.serve.reading import parse
from tests.conftest import DATA
from tests.serving import Troubled, serving, until_ready, wait_for

# Each request below is so large, or holds as much in one place; whatever is still there of it shows.
LARGE = 3_000_000
HELD = 500_000
GRAY = base64.b64encode((DATA / "images" / "gray.jpg").read_bytes().ljust(LARGE)).decode()
BROKEN = base64.b64encode((DATA / "images" / "gray.jpg").read_bytes()[:300].ljust(LARGE)).decode()

REFUSED: dict[str, tuple[Any, int]] = {
    "a broken image": ({"input": {"image": BROKEN}}, 400),
    "one of two": ({"input": [{"image": GRAY}, {"image": BROKEN}]}, 400),
    "beside a text": ({"input": ["a", {"image": BROKEN}]}, 400),
    "no base64": ({"input": {"image": "!" * LARGE}}, 400),
    "no URL": ({"input": {"url": "https://127.0.0.1/" + "a" * LARGE}}, 400),
    "an unknown field": ({"input": {"image": GRAY}, "dimension": 1}, 400),
    "too many values": (b"[" + b"[]," * LARGE, 413),
    "too large": (b'"' + b"a" * 2 * LARGE * 4, 413),
    "no JSON": (b'{"input": "' + b"a" * LARGE, 400),
    "a long text": ({"input": "a " * 100_000 + "a" * 50_000, "truncate": False}, 400),
}


@pytest.fixture(scope="module")
def troubled(bundle: Path) -> Iterator[Troubled]:
    with Troubled.open(bundle, device="cpu") as encoder:
        encoder.prepare()
        yield encoder
        encoder.may_run.set()


@pytest.fixture(scope="module")
def client(bundle: Path, troubled: Troubled) -> Iterator[httpx.Client]:
    limits = {"max_body_bytes": 4 * LARGE, "ready_s": 600.0}
    with serving(bundle, troubled, **limits) as url, httpx.Client(base_url=url, timeout=60) as opened:
        until_ready(url)
        post(opened, {"input": ["a", {"image": GRAY}]})  # whatever is loaded once
        yield opened


@pytest.fixture(scope="module")
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


def post(client: httpx.Client, given: Any) -> int:
    """The status. Chunked, so that no header tells the size."""
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    sent = (body[start : start + 65_536] for start in range(0, len(body), 65_536))
    try:
        return client.post("/v1/embeddings", content=sent, headers={"Content-Type": "application/json"}).status_code
    except httpx.TransportError:  # closed while it was sent
        return 413


def held() -> int:
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_held_of_a_refused_request(client: httpx.Client, uncollected: None, name: str) -> None:
    """An exception's traceback holds frames, and they what was refused: no frame may hold the exception."""
    given, status = REFUSED[name]
    before = held()
    assert post(client, given) == status
    wait_for(lambda: held() < before + HELD, within_s=5)


@pytest.mark.parametrize("body", [b'{"input":[' + b"[]," * 100_000 + b"1]}", b'{"input": "' + b"a" * LARGE])
def test_a_document_is_free_before_its_error_is_told(uncollected: None, body: bytes) -> None:
    """What others allocate meanwhile would lie among its objects: Python's arenas went from 30 MB to 42 in 130 s."""
    limits = RequestLimits(
        max_items=9, max_images=9, max_text_chars=9, max_image_bytes=9, embedding_dim=9, vocabulary=9, tasks=()
    )
    before = held()
    try:
        parse(body, limits)
    except ApiError as error:
        assert held() - before < 100_000, error
    else:
        pytest.fail("it was taken")


# Eight threads at once take a large block and many small ones, and free them; what is resident then, in MB, with the
# number of heaps.
CHURN = """
import ctypes, os, re, sys, threading
from edgeclip.serve.memory import bound_memory

if sys.argv[1] == "bounded":
    assert len(bound_memory(os.environ)) == 2
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


def churned(how: str, file: Path) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", CHURN, how, str(file)], capture_output=True, text=True, check=True)
    heaps, resident_mb = map(int, done.stdout.split())
    return heaps, resident_mb


@pytest.mark.skipif(not is_glibc(), reason="only glibc keeps a heap a thread")
def test_what_threads_freed_goes_back(tmp_path: Path) -> None:
    free_heaps, free_mb = churned("unbounded", tmp_path / "heaps.xml")
    heaps, resident_mb = churned("bounded", tmp_path / "heaps.xml")
    assert heaps <= 2 < free_heaps
    assert resident_mb + 50 < free_mb


@pytest.mark.skipif(not is_glibc(), reason="only glibc keeps what is free below what is not")
def test_what_is_free_below_something_that_stays_is_given_back() -> None:
    """40 MB in blocks of 100 kB, of which the last and each hundredth stay."""
    script = (
        "import os; from edgeclip.serve.memory import bound_memory, trim; bound_memory(os.environ)\n"
        "def mb(): return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6\n"
        "blocks = [b'x' * size for size in [100_000] * 400]\n"
        "blocks = blocks[::100] + blocks[-1:]; kept = mb(); trim(); print(kept - mb())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 30


async def count_of_trims(works: bool) -> int:
    """Within a second without work, or until there were three with it."""
    calls: list[None] = []
    trimming = asyncio.create_task(keep_trimmed(0.3, give_back=lambda: calls.append(None)))
    end = time.monotonic() + (20 if works else 1)
    while time.monotonic() < end and len(calls) < 3:
        if works:
            sum(range(100_000))
        await asyncio.sleep(0 if works else 0.05)
    trimming.cancel()
    await asyncio.gather(trimming, return_exceptions=True)
    return len(calls)


def test_memory_is_given_back_while_there_is_work_and_not_without() -> None:
    assert is_worth_it(1.0, 1.2) and not is_worth_it(1.0, 1.05)
    assert asyncio.run(count_of_trims(works=False)) == 1  # for what the process did before
    assert asyncio.run(count_of_trims(works=True)) == 3


def test_what_the_user_set_himself_stays() -> None:
    arenas, threshold = BOUNDS
    assert wanted_bounds({}) == BOUNDS
    assert wanted_bounds({"MALLOC_ARENA_MAX": "1"}) == (threshold,)
    assert wanted_bounds({"MALLOC_MMAP_THRESHOLD_": "1048576"}) == (arenas,)
    tunables = "glibc.malloc.check=1:glibc.malloc.arena_max=4:glibc.malloc.mmap_threshold=65536"
    assert wanted_bounds({"GLIBC_TUNABLES": tunables}) == ()
    assert wanted_bounds({"GLIBC_TUNABLES": "glibc.malloc.arena_maximum=4"}) == BOUNDS
