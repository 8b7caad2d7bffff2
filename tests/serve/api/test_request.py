"""Requests of both dialects become one normal form; what is neither is named, and never repeated back."""

import base64
import dataclasses
from array import array
from typing import Any

import pytest

from edgeclip.manifest import SingleSpace, Spaces, TaskFacts
from edgeclip.serve.api.request import (
    EmbeddingRequest,
    ImageItem,
    RequestLimits,
    TextItem,
    TokenItem,
    UrlItem,
    parse_request,
)
from edgeclip.serve.api.served_model import ServedModel
from edgeclip.serve.errors import ApiError

MODEL = ServedModel(
    modalities=("text", "image"),
    spaces=Spaces(single=SingleSpace(dim=64, matryoshka_dims=(32, 64), is_strict=False), multi=None),
    tasks={"retrieval.query": TaskFacts(prompt="query: ", adapter=None, modalities=("text",))},
    is_task_required=False,
    refuses_other_tasks=False,
    max_length=8192,
    vocabulary=100,
)
LIMITS = RequestLimits(
    max_items=4,
    max_images=2,
    max_text_chars=20,
    max_request_chars=50,
    max_image_bytes=300,
    model=MODEL,
)
WITH_IDS = dataclasses.replace(LIMITS, allow_token_ids=True)
PIXEL = base64.b64encode(b"GIF89a-not-really").decode()
IMAGE = base64.b64encode(b"GIF89a-not-really-either").decode()


def parse(**fields: Any) -> EmbeddingRequest:
    return parse_request({"input": "a", **fields}, LIMITS)


def tokens(*ids: int) -> TokenItem:
    return TokenItem(ids=array("i", ids))


def refusal(document: object, limits: RequestLimits = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(document, limits)
    return caught.value


@pytest.mark.parametrize(
    ("part", "item"),
    [
        ({"type": "text", "text": "a"}, TextItem(text="a")),
        ({"type": "input_text", "text": "a"}, TextItem(text="a")),
        ({"type": "image_url", "image_url": {"url": "https://x.org/a"}}, UrlItem(url="https://x.org/a")),
        (
            {"type": "image_url", "image_url": {"url": "https://x.org/a", "detail": "low"}},
            UrlItem(url="https://x.org/a"),
        ),
        ({"type": "image_url", "image_url": f"data:image/gif;base64,{PIXEL}"}, ImageItem(data=PIXEL)),
        ({"type": "input_image", "image_url": f"data:;base64,{PIXEL}", "detail": "auto"}, ImageItem(data=PIXEL)),
    ],
)
def test_the_parts_of_a_chat_s_message_are_understood(part: dict[str, Any], item: object) -> None:
    assert parse(input=[part, "b"]).items == (item, TextItem(text="b"))
    assert parse(input=part).items == (item,)


@pytest.mark.parametrize(
    ("document", "param", "words"),
    [
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "messages",
            "no chat here: send texts and images in input",
        ),
        (
            {"input": [{"role": "user", "content": "a"}]},
            "input[0]",
            "each text and each image as an input of its own",
        ),
        ({"input": [{"content": [{"type": "text", "text": "a"}]}]}, "input[0]", "as an input of its own"),
        ({"input": [{"type": "image_url", "image_url": {}}]}, "input[0]", "exactly one of text, image"),
        ({"input": [{"type": "image_url", "image_url": "cat"}]}, "input[0].url", "wanted https://"),
        ({"input": [{"type": "image_url", "image_url": [1]}]}, "input[0].url", "found a list"),
        ({"input": [{"type": "text", "text": "a", "more": 1}]}, "input[0]", "exactly one of text, image"),
        ({"input": [{"type": ["text"], "text": "a"}]}, "input[0]", "exactly one of text, image"),
        ({"input": [{"type": "audio", "text": "a"}]}, "input[0]", "exactly one of text, image"),
    ],
)
def test_what_of_a_chat_cannot_be_embedded_is_told(document: dict[str, Any], param: str, words: str) -> None:
    error = refusal(document)
    assert (error.status, error.param) == (400, param) and words in error.message
    assert "did you mean" not in error.message


def test_the_release_notes_example() -> None:
    document = {
        "model": "jina-clip-v2",
        "dimensions": "48",
        "input": [{"text": "海滩上美丽的日落"}, {"url": "https://i.ibb.co/nQNGqL0/beach1.jpg"}],
    }
    found = parse_request(document, LIMITS)
    assert found == EmbeddingRequest(
        items=(TextItem(text="海滩上美丽的日落"), UrlItem(url="https://i.ibb.co/nQNGqL0/beach1.jpg")),
        model="jina-clip-v2",
        space="single",
        dim=48,
        formats=("float",),
        is_keyed=False,
        task=None,
        is_normalized=True,
        is_cut=False,
    )


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ("a", (TextItem(text="a"),)),
        (["a", "b"], (TextItem(text="a"), TextItem(text="b"))),
        ("https://x.org/a", (TextItem(text="https://x.org/a"),)),
        (IMAGE, (ImageItem(data=IMAGE),)),
        ({"text": f" {IMAGE}\n"}, (ImageItem(data=IMAGE),)),
        ([f"data:;base64,{PIXEL}", "a"], (ImageItem(data=PIXEL), TextItem(text="a"))),
        ({"text": f"data:application/octet-stream;base64,{PIXEL}"}, (ImageItem(data=PIXEL),)),
        ({"url": f" data:image/gif;base64,{PIXEL} "}, (ImageItem(data=PIXEL),)),
        ({"text": "a"}, (TextItem(text="a"),)),
        ([{"text": "a", "image": None}], (TextItem(text="a"),)),
        ({"image": PIXEL}, (ImageItem(data=PIXEL),)),
        ({"bytes": PIXEL}, (ImageItem(data=PIXEL),)),
        ({"image": f"data:image/gif;base64,{PIXEL}"}, (ImageItem(data=PIXEL),)),
        ({"url": f"DATA:image/gif;charset=x;base64,{PIXEL}"}, (ImageItem(data=PIXEL),)),
        ({"bytes": f"data:image/gif;base64,{PIXEL}"}, (ImageItem(data=PIXEL),)),
        ({"image": "HTTPS://x.org/a.png"}, (UrlItem(url="HTTPS://x.org/a.png"),)),
        ({"url": "ftp://x.org/a.png"}, (UrlItem(url="ftp://x.org/a.png"),)),
    ],
    ids=repr,
)
def test_every_shape_of_input(given: object, items: tuple[object, ...]) -> None:
    assert parse(input=given).items == items


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ([1, 2, 3], (tokens(1, 2, 3),)),
        ([1, 2, 3, 4, 5, 6], (tokens(1, 2, 3, 4, 5, 6),)),
        ([[1, 2], [3]], (tokens(1, 2), tokens(3))),
        (["a", [3]], (TextItem(text="a"), tokens(3))),
    ],
    ids=repr,
)
def test_token_ids_are_taken_where_they_are_allowed(given: object, items: tuple[object, ...]) -> None:
    assert parse_request({"input": given}, WITH_IDS).items == items


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([1], "input"),
        ([1, 2], "input"),
        ([0] * 100_000, "input"),
        ([10**40], "input"),
        ([-1], "input"),
        ([1, "a"], "input"),
        ([1, 1.5, True, None], "input"),
        ([[1, 2], [3]], "input[0]"),
        ([[1.0, 2.0]], "input[0]"),
        (["a", [3]], "input[1]"),
        ([{"text": "a"}, [3, 4]], "input[1]"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_token_ids_are_refused_by_default(given: object, param: str) -> None:
    """Every shape of them, by a code of its own, with the client's option that sends text instead."""
    error = refusal({"input": given})
    assert (error.status, error.param, error.code) == (400, param, "token_ids_not_allowed")
    assert "check_embedding_ctx_length=False" in error.message and "--token-ids" in error.message
    assert "wanted text" in error.message


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([[]], "input[0]"),
        ([["a", "b"]], "input[0]"),
        ([[[1]]], "input[0]"),
        ([[True]], "input[0]"),
        ([True], "input[0]"),
        ([1.5], "input[0]"),
        (3, "input"),
    ],
    ids=repr,
)
def test_what_is_no_token_id_is_not_called_one(given: object, param: str) -> None:
    for limits in (LIMITS, WITH_IDS):
        error = refusal({"input": given}, limits)
        assert (error.status, error.param, error.code) == (400, param, "invalid_value")
        assert "wanted a text" in error.message


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([1, "a"], "input[1]"),
        ([1, True], "input[1]"),
        ([100], "input[0]"),
        ([-1], "input[0]"),
        ([10**40], "input[0]"),
    ],
    ids=repr,
)
def test_an_id_of_no_token_is_named(given: object, param: str) -> None:
    error = refusal({"input": given}, WITH_IDS)
    assert (error.status, error.param, error.code) == (400, param, "invalid_value")
    assert "from 0 to 99" in error.message


def test_token_ids_have_no_task() -> None:
    assert refusal({"input": [1], "task": "retrieval.query"}, WITH_IDS).param == "task"


@pytest.mark.parametrize(
    ("fields", "formats", "is_keyed"),
    [
        ({}, ("float",), False),
        ({"embedding_type": None}, ("float",), False),
        ({"encoding_format": "base64"}, ("base64",), False),
        ({"embedding_type": "ubinary"}, ("ubinary",), False),
        ({"encoding_type": "binary"}, ("binary",), False),
        ({"embedding_type": ["float", "binary", "float"]}, ("float", "binary"), True),
        ({"embedding_type": ["base64"]}, ("base64",), True),
        ({"embedding_type": "base64", "encoding_format": "base64"}, ("base64",), False),
    ],
)
def test_formats(fields: dict[str, Any], formats: tuple[str, ...], is_keyed: bool) -> None:
    found = parse(**fields)
    assert (found.formats, found.is_keyed) == (formats, is_keyed)


@pytest.mark.parametrize(("given", "dim"), [(None, 64), (64, 64), ("16", 16), (1, 1), (7.0, 7)])
def test_dimensions(given: object, dim: int) -> None:
    assert parse(dimensions=given).dim == dim


def test_flags_and_task() -> None:
    found = parse(task="retrieval.query", normalized=False, truncate=True, user="u", late_chunking=False)
    assert (found.task, found.is_normalized, found.is_cut) == ("retrieval.query", False, True)


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ([], None),
        (None, None),
        ("text", None),
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": True}, "input"),
        ({"input": ""}, "input[0]"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 3]}, "input[1]"),
        ({"input": ["a", None]}, "input[1]"),
        ({"input": [True]}, "input[0]"),
        ({"input": ["a"] * 5}, "input"),
        ({"input": "a" * 21}, "input[0]"),
        ({"input": ["a", []]}, "input[1]"),
        ({"input": {}}, "input[0]"),
        ({"input": {"text": "a", "image": PIXEL}}, "input[0]"),
        ({"input": {"text": "a", "id": "b"}}, "input[0]"),
        ({"input": {"text": 3}}, "input[0].text"),
        ({"input": {"text": ""}}, "input[0].text"),
        ({"input": {"image": ""}}, "input[0].image"),
        ({"input": {"url": "x.org/a.png"}}, "input[0].url"),
        ({"input": {"url": PIXEL}}, "input[0].url"),
        ({"input": {"bytes": "https://x.org"}}, "input[0].bytes"),
        ({"input": {"image": "file:///home/a.png"}}, "input[0].image"),
        ({"input": {"bytes": "C:\\pictures\\a.png"}}, "input[0].bytes"),
        ({"input": {"image": " "}}, "input[0].image"),
        ({"input": {"text": "data:image/svg+xml,%3Csvg%3E"}}, "input[0].text"),
        ({"input": {"image": "data:image/png,AAAA"}}, "input[0].image"),
        ({"input": {"image": "data:image/png;base64,"}}, "input[0].image"),
        ({"input": f"data:image/gif;base64,{PIXEL}"[:20]}, "input[0]"),
        ({"input": [{"image": PIXEL}] * 3}, "input"),
        ({"input": [IMAGE, {"text": IMAGE}, {"image": PIXEL}]}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 65}, "dimensions"),
        ({"input": "a", "dimensions": "x"}, "dimensions"),
        ({"input": "a", "dimensions": "٣"}, "dimensions"),
        ({"input": "a", "dimensions": 1.5}, "dimensions"),
        ({"input": "a", "dimensions": True}, "dimensions"),
        ({"input": "a", "dimensions": [1]}, "dimensions"),
        ({"input": "a", "encoding_format": "binary"}, "encoding_format"),
        ({"input": "a", "encoding_format": ["float"]}, "encoding_format"),
        ({"input": "a", "embedding_type": "int8"}, "embedding_type"),
        ({"input": "a", "embedding_type": []}, "embedding_type"),
        ({"input": "a", "embedding_type": [["float"]]}, "embedding_type"),
        ({"input": "a", "embedding_type": {}}, "embedding_type"),
        ({"input": "a", "embedding_type": "float", "encoding_format": "base64"}, "embedding_type"),
        ({"input": "a", "task": "x"}, "task"),
        ({"input": "a", "task": "nl2code.query"}, "task"),
        ({"input": "a", "task": ["retrieval.query"]}, "task"),
        ({"input": "a", "normalized": "yes"}, "normalized"),
        ({"input": "a", "truncate": 1}, "truncate"),
        ({"input": "a", "model": 3}, "model"),
        ({"input": "a", "model": "m" * 257}, "model"),
        ({"input": "a", "late_chunking": True}, "late_chunking"),
        ({"input": "a", "return_multivector": True}, "return_multivector"),
        ({"input": "a", "dimension": 16}, "dimension"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_neither_is_named(document: object, param: str | None) -> None:
    error = refusal(document)
    assert (error.status, error.param) == (400, param)
    assert error.message and "\n" not in error.message
    body = error.body()
    assert body["error"] == {
        "message": error.message,
        "type": "invalid_request_error",
        "param": param,
        "code": error.code,
    }
    assert body["detail"] == error.message


def test_an_image_that_is_too_large_is_refused_before_it_is_decoded() -> None:
    assert parse(input={"image": base64.b64encode(bytes(300)).decode()})
    for given in ({"image": bytes(306)}, {"text": b"GIF89a" + bytes(300)}):
        ((kind, file),) = given.items()
        error = refusal({"input": {kind: base64.b64encode(file).decode()}})
        assert (error.status, error.code, error.param) == (413, "image_too_large", f"input[0].{kind}")


@pytest.mark.parametrize("given", ["https://x.org/a.png", {"text": "HTTP://x.org/A.JPG?w=1"}], ids=repr)
def test_the_url_of_an_image_in_place_of_a_text_is_refused_with_advice(given: object) -> None:
    """It is not embedded as letters; what is to be done depends on whether URLs are fetched."""
    closed, opened = (
        refusal({"input": given}, dataclasses.replace(LIMITS, allow_urls=urls)) for urls in (False, True)
    )
    assert (closed.status, closed.code) == (opened.status, opened.code) == (400, "image_url_as_text")
    assert "base64" in closed.message and "--allow-urls" in closed.message and '{"url"' in closed.message
    assert '{"url"' in opened.message and "--allow-urls" not in opened.message


def test_the_address_of_an_image_that_no_service_fetches_is_refused() -> None:
    error = refusal({"input": "s3://pictures/a.png"}, dataclasses.replace(LIMITS, allow_urls=True))
    assert error.code == "image_url_as_text" and "base64" in error.message and "url" not in error.message


def test_no_message_repeats_an_input() -> None:
    secret = "my-secret"
    documents: list[dict[str, Any]] = [
        {"input": f"data:image/{secret}"},
        {"input": {"url": secret}},
        {"input": {"image": f"data:{secret}"}},
        {"input": secret, "task": secret},
        {"input": secret, "dimensions": secret},
        {"input": secret, "embedding_type": secret},
        {"input": secret * 10},
        {"input": {secret: 1}},
    ]
    for document in documents:
        assert secret not in refusal(document).message
