"""Every limit is taken, and one over it is refused by its name; none is forgotten here."""

import base64
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from edgeclip import Encoder
from edgeclip.serve.api.image_strings import decode_base64
from edgeclip.serve.settings import Settings
from tests.conftest import DATA
from tests.scenes.serving import serving
from tests.serve.api.test_request import MODEL

GRAY = (DATA / "images" / "gray.jpg").read_bytes()
ROWS, COLUMNS = 100, 120
LIMITS: dict[str, Any] = {
    "max_body_bytes": 200_000,
    "max_values": 20_000,
    "max_items": 3,
    "max_images": 2,
    "max_text_chars": 50_000,
    "max_request_chars": 60_000,
    "max_image_bytes": max(len(GRAY), 40_000),
    "max_image_pixels": ROWS * COLUMNS,
}
# Limits that a single request to this server cannot meet, and where they are tested.
ELSEWHERE = {
    "max_pending_bytes": "http/test_pending_bytes.py",
    "max_queued_texts": "test_serve_lanes.py, test_serve_trouble.py",
    "max_queued_images": "test_serve_trouble.py",
    "max_connections": "test_serve_connections.py",
    "max_redirects": "test_serve_fetch.py",
    "max_batch": "no limit of a request",
    "max_decode_bytes": "test_serve_decoding.py",
    "max_length": "test_serve_long_texts.py",
    "max_pixels": "test_page_model.py",
    "max_vectors": "test_page_model.py",
}


@pytest.fixture(scope="module")
def client(bundle: Path, encoder: Encoder) -> Iterator[httpx.Client]:
    with (
        serving(bundle, encoder, allow_token_ids=True, **LIMITS) as url,
        httpx.Client(base_url=url, timeout=60) as opened,
    ):
        yield opened


def picture(rows: int) -> dict[str, str]:
    with io.BytesIO() as file:
        Image.fromarray(np.zeros((rows, COLUMNS, 3), np.uint8)).save(file, "PNG")
        return {"image": base64.b64encode(file.getvalue()).decode()}


def padded(size: int) -> dict[str, str]:
    """An image's file of so many bytes: what follows a PNG's end is not read."""
    file = base64.b64decode(picture(8)["image"])
    return {"image": base64.b64encode(file.ljust(size, b"\0")).decode()}


def values(count: int) -> bytes:
    """A body with so many commas and brackets, most of them in a text."""
    head, tail = b'{"truncate": true, "input": ["', b'"]}'
    return head + b"," * (count - 3) + tail


def names(count: int) -> bytes:
    """A body with so many fields, and commas enough in its text that they are counted."""
    others = ",".join(f'"{index}":null' for index in range(count - 1))
    return b'{"input": "%b",%b}' % (b"," * 2000, others.encode())


def ids(count: int) -> list[int]:
    return [5] * count


CASES: dict[str, tuple[Any, Any, int, str | None, str]] = {
    "max_body_bytes": (
        b'{"input": "a"}'.ljust(LIMITS["max_body_bytes"]), b'{"input": "a"}'.ljust(LIMITS["max_body_bytes"] + 1),
        413, "body_too_large", "200000 bytes",
    ),
    "max_values": (values(20_000), values(20_001), 413, "body_too_large", "20000 commas and brackets"),
    # Outside of texts: 1024, and 8 for each of three inputs.
    "values and names": (names(1047), names(1048), 413, "body_too_large", "more than 1048 values and names"),
    "max_items": (["a"] * 3, ["a"] * 4, 400, "array_above_max_length", "4 items, at most 3"),
    "max_images": ([picture(8)] * 2, [picture(8)] * 3, 400, "array_above_max_length", "3 images, at most 2"),
    "max_text_chars": ("a" * 50_000, "a" * 50_001, 400, "string_above_max_length", "50001 characters, at most 50000"),
    "max_text_chars, written out": (
        # Each of these letters is written as 18 before it is tokenised.
        "\ufdfa" * 2777, "\ufdfa" * 2778, 400, "string_above_max_length", "50004 characters, at most 50000",
    ),
    "max_request_chars": (
        ["a" * 30_000] * 2, ["a" * 30_000, "a" * 30_001],
        400, "array_above_max_length", "more than 60000 characters together; send several",
    ),
    "max_request_chars, written out": (
        ["\ufdfa" * 1666] * 2, ["\ufdfa" * 1667] * 2,
        400, "array_above_max_length", "more than 60000 characters together; send several",
    ),
    "max_image_bytes": (
        padded(LIMITS["max_image_bytes"]), padded(LIMITS["max_image_bytes"] + 1),
        413, "image_too_large", f"at most {LIMITS['max_image_bytes']}",
    ),
    "max_image_pixels": (picture(ROWS), picture(ROWS + 1), 400, "invalid_image", "more pixels than the 12000"),
    "dimensions": ({"dimensions": 64}, {"dimensions": 65}, 400, "invalid_value", "from 1 to 64"),
    "dimensions, least": ({"dimensions": 1}, {"dimensions": 0}, 400, "invalid_value", "from 1 to 64"),
    "dimensions in digits": ({"dimensions": "64"}, {"dimensions": "65"}, 400, "invalid_value", "from 1 to 64"),
    "model": ({"model": "m" * 256}, {"model": "m" * 257}, 400, "invalid_value", "at most 256 characters"),
    "length": (
        {"input": ids(8190), "truncate": None}, {"input": ids(8191), "truncate": None},
        400, "context_length_exceeded", "longer than 8192 tokens",
    ),
}  # fmt: skip


def send(client: httpx.Client, given: Any) -> httpx.Response:
    if isinstance(given, bytes):
        return client.post("/v1/embeddings", content=given, headers={"Content-Type": "application/json"})
    is_request = isinstance(given, dict) and "image" not in given
    document = {"input": "a", **given} if is_request else {"input": given}
    return client.post("/v1/embeddings", json={"truncate": True, **document})


@pytest.mark.parametrize("name", CASES)
def test_a_limit_is_taken_and_one_over_it_is_not(client: httpx.Client, name: str) -> None:
    within, over, status, code, told = CASES[name]
    assert send(client, within).status_code == 200
    answer = send(client, over)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert told in error["message"] and answer.json()["detail"] == error["message"]


def test_a_text_that_needs_a_mask_is_short(client: httpx.Client, encoder: Encoder) -> None:
    """One of 8192 tokens would take gigabytes in a model of full size."""
    padded_ids = [encoder.manifest.need_text().pad_id, *ids(2045)]
    assert send(client, padded_ids).status_code == 200
    for over in ([*padded_ids, 5], "<pad> " + "a " * 3000):
        answer = send(client, over)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert "holds the padding token" in answer.json()["error"]["message"]


def test_the_vocabulary_ends_where_it_ends(client: httpx.Client) -> None:
    message = client.post("/v1/embeddings", json={"input": [10**9]}).json()["error"]["message"]
    last = int(message.rpartition(" ")[2])
    assert send(client, [last]).status_code == 200
    for wrong in (last + 1, -1, 2**70):
        assert send(client, [5, wrong]).json()["error"]["param"] == "input[1]"


def test_no_limit_is_forgotten() -> None:
    limits = {field.name for field in dataclasses.fields(Settings) if field.name.startswith("max_")}
    assert limits == set(LIMITS) | set(ELSEWHERE)
    assert set(LIMITS) <= set(CASES)


def test_a_body_that_grows_when_it_is_parsed_is_refused_as_it_comes(client: httpx.Client) -> None:
    """Half of the limit of bytes, and 1.3 MB of lists of lists: refused by its commas, before it is parsed."""
    body = b'{"input": [' + b"[]," * 30_000 + b"1]}"
    answer = client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_base64_with_white_space_costs_no_more_than_without() -> None:
    import tracemalloc

    text = "QUJD\n " * 100_000
    tracemalloc.start()
    try:
        assert decode_base64(text) == b"ABC" * 100_000
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    finally:
        tracemalloc.stop()


def test_ids_are_held_small() -> None:
    from edgeclip.serve.api.request import RequestLimits, TokenItem, parse_request

    limits = RequestLimits(
        max_items=1,
        max_images=1,
        max_text_chars=1,
        max_request_chars=1,
        max_image_bytes=1,
        model=dataclasses.replace(MODEL, vocabulary=10**6),
        allow_token_ids=True,
    )
    document = json.loads(json.dumps({"input": list(range(100_000))}))
    item = parse_request(document, limits).items[0]
    assert isinstance(item, TokenItem)
    assert item.ids.itemsize * len(item.ids) == 400_000
