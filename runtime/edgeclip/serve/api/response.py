"""Write vectors as the JSON of an answer.

    float     numbers, each as short as gives the same float32 back
    base64    the little-endian float32 bytes, as OpenAI's clients decode them
    ubinary   a bit a dimension, 1 where it is greater than 0, packed most significant first: 0 to 255
    binary    the same less 128, int8, as Jina's clients add it back (and sentence-transformers packs it)

Rows are encoded one by one, so that other threads run in between while a thread writes a large answer. Multi vectors
are written in pieces, because an answer may hold millions of numbers.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from edgeclip.engine.unit_vectors import shorten as cut
from edgeclip.serve.api.request_fields import Format

# Of multi vectors that are written at once: 100 kB of numbers, and a millisecond.
_VECTORS_AT_ONCE = 64
_HEAD = b'{"object":"list","data":['


def shorten(vectors: NDArray[np.float32], dim: int, *, is_normalized: bool) -> NDArray[np.float32]:
    """The first `dim` of each unit vector (N, D), normalised again unless that is not wanted: (N, dim).

    It is cut first and then normalised, as in the model's own API.
    """
    return cut(vectors, dim) if is_normalized or dim == vectors.shape[1] else vectors[:, :dim]


def encode_vector(vector: NDArray[np.float32], form: Format) -> Any:
    """One vector (D,), whose numbers lie side by side, as JSON takes it: a str for base64, else an array."""
    if form == "float":
        return vector
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    bits = np.packbits(vector > 0)
    return bits if form == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def encode_answer(
    vectors: NDArray[np.float32],
    *,
    formats: Sequence[Format],
    is_keyed: bool,
    cut: Iterable[int],
    model: str,
    tokens: int,
) -> bytes:
    """The answer's JSON for vectors (N, D), in the order of the input.

    Items in `cut` are marked as truncated. With `is_keyed` an embedding is an object with one entry a format.
    """
    marked = set(cut)
    rows = []
    for index, vector in enumerate(vectors):
        row = {
            "object": "embedding",
            "index": index,
            "embedding": {form: encode_vector(vector, form) for form in formats}
            if is_keyed
            else encode_vector(vector, formats[0]),
        }
        if index in marked:
            row["truncated"] = True
        rows.append(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))
    return _HEAD + b",".join(rows) + _tail(model, tokens)


def write_multi_answer(
    matrices: Sequence[NDArray[np.float32]],
    *,
    formats: Sequence[Format],
    is_keyed: bool,
    cut: Iterable[int],
    model: str,
    tokens: int,
) -> Iterator[bytes]:
    """Yield the pieces of the answer's JSON for matrices (T, D), in the order of the input.

    `embeddings` is a list with an entry for each token, in the form that a single vector has. Items in `cut` are
    marked as truncated. With `is_keyed` it is an object with one such list a format.
    """
    marked = set(cut)
    before = _HEAD
    for index, matrix in enumerate(matrices):
        before += b'{"object":"embedding","index":%d,' % index
        before += b'"truncated":true,"embeddings":' if index in marked else b'"embeddings":'
        for place, form in enumerate(formats):
            if is_keyed:
                before += b'%b"%b":' % (b"," if place else b"{", form.encode())
            for start in range(0, len(matrix), _VECTORS_AT_ONCE):
                block = matrix[start : start + _VECTORS_AT_ONCE]
                yield before + (b"," if start else b"[") + _encode_matrix(block, form)
                before = b""
            before = b"]"
        before += b"}}," if is_keyed else b"},"
    yield before[:-1] + _tail(model, tokens)


def _encode_matrix(matrix: NDArray[np.float32], form: Format) -> bytes:
    """The JSON of vectors (T, D), without the brackets of their list."""
    return orjson.dumps([encode_vector(row, form) for row in matrix], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _tail(model: str, tokens: int) -> bytes:
    """The end of an answer: its model and its usage."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return b"]," + orjson.dumps({"model": model, "usage": usage})[1:]
