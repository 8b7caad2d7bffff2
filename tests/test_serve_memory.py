"""What the service still holds of a request that is over: nothing, without the garbage collector's help."""

import base64
import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

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
    limits = {"max_body_bytes": 4 * LARGE, "request_timeout_s": 2.0, "ready_s": 600.0}
    with serving(bundle, troubled, **limits) as url, httpx.Client(base_url=url, timeout=60) as opened:
        until_ready(url)
        post(opened, {"input": ["a", {"image": GRAY}]})  # whatever is loaded once
        yield opened


@pytest.fixture
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
    import json

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
