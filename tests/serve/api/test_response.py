"""Vectors as JSON: what OpenAI's and Jina's clients decode is what the encoder gave."""

import base64
import json

import numpy as np
import pytest

from edgeclip.serve.api.request_fields import FORMATS, Format
from edgeclip.serve.api.response import encode_answer, shorten

RANDOM = np.random.default_rng(0).standard_normal((5, 20)).astype(np.float32)
VECTORS = RANDOM / np.linalg.norm(RANDOM, axis=1, keepdims=True)


def answer(*formats: Format, is_keyed: bool = False, cut: tuple[int, ...] = ()) -> dict:
    return json.loads(encode_answer(VECTORS, formats=formats, is_keyed=is_keyed, cut=cut, model="m \"'", tokens=7))


def decode(embedding: object, form: Format) -> np.ndarray:
    """As the clients do."""
    if form == "float":
        return np.array(embedding, np.float32)
    if form == "base64":
        return np.frombuffer(base64.b64decode(str(embedding)), np.float32)
    packed = np.array(embedding)
    return np.unpackbits((packed + (128 if form == "binary" else 0)).astype(np.uint8))


@pytest.mark.parametrize("form", FORMATS)
def test_clients_get_the_vectors_back(form: Format) -> None:
    """Numbers to the last bit; signs in order, with zeros up to a whole byte."""
    found = answer(form)
    wanted = VECTORS if form in ("float", "base64") else np.pad(VECTORS > 0, ((0, 0), (0, 4)))
    for index, (entry, row) in enumerate(zip(found["data"], wanted, strict=True)):
        assert list(entry) == ["object", "index", "embedding"]
        assert (entry["object"], entry["index"]) == ("embedding", index)
        np.testing.assert_array_equal(decode(entry["embedding"], form), row)
    assert {name: found[name] for name in found if name != "data"} == {
        "object": "list",
        "model": "m \"'",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


def test_the_range_of_packed_bits() -> None:
    """binary is int8 and reaches below 0, ubinary is uint8."""
    signed = [number for entry in answer("binary")["data"] for number in entry["embedding"]]
    unsigned = [number for entry in answer("ubinary")["data"] for number in entry["embedding"]]
    assert min(signed) < 0 and [number + 128 for number in signed] == unsigned
    assert all(0 <= number <= 255 for number in unsigned)


def test_a_list_of_formats_is_an_object() -> None:
    both, one = answer("float", "ubinary", is_keyed=True), answer("float", is_keyed=True)
    assert list(both["data"][0]["embedding"]) == ["float", "ubinary"]
    np.testing.assert_array_equal(decode(both["data"][3]["embedding"]["float"], "float"), VECTORS[3])
    assert list(one["data"][0]["embedding"]) == ["float"]


def test_a_text_that_was_cut_says_so() -> None:
    marks = [entry.get("truncated") for entry in answer("base64", cut=(1, 4))["data"]]
    assert marks == [None, True, None, None, True]


def test_cut_first_then_normalise() -> None:
    unit = shorten(VECTORS, 8, is_normalized=True)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    first = VECTORS[:, :8].astype(np.float64)
    np.testing.assert_allclose(unit, first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(shorten(VECTORS, 8, is_normalized=False), VECTORS[:, :8])
    assert shorten(VECTORS, 20, is_normalized=True) is VECTORS
