"""What the service still holds of a request that is over: nothing; and that it gives freed memory back."""

import asyncio
import base64
import gc
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeclip.serve.api.request import RequestLimits
from edgeclip.serve.errors import ApiError
from edgeclip.serve.http.request_body import parse
from edgeclip.serve.memory_trimming import is_worth_it, keep_trimmed
from tests.conftest import DATA
from tests.scenes.serving import Troubled, serving, until_ready, wait_for
from tests.serve.api.test_request import MODEL

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
        max_items=9,
        max_images=9,
        max_text_chars=9,
        max_request_chars=9,
        max_image_bytes=9,
        model=MODEL,
    )
    before = held()
    try:
        parse(body, limits)
    except ApiError as error:
        assert held() - before < 100_000, error
    else:
        pytest.fail("it was taken")


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
