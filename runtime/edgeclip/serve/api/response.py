"""Write vectors as the JSON of an answer.

    float     numbers, each as short as gives the same float32 back
    base64    the little-endian float32 bytes, as OpenAI's clients decode them
    ubinary   a bit a dimension, 1 where it is greater than 0, packed most significant first: 0 to 255
    binary    the same less 128, int8, as Jina's clients add it back (and sentence-transformers packs it)

Rows are encoded one by one, so that other threads run in between while a thread writes a large answer.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.unit_vectors import shorten as cut
from edgeclip.serve.api.request_fields import Format


def shorten(vectors: NDArray[np.float32], dim: int, *, is_normalized: bool) -> NDArray[np.float32]:
    """The first `dim` of each unit vector (N, D), normalised again unless that is not wanted: (N, dim).

    It is cut first and then normalised, as in the model's own API.
    """
    return cut(vectors, dim) if is_normalized or dim == vectors.shape[1] else vectors[:, :dim]


def encode_vector(vector: NDArray[np.float32], form: Format) -> Any:
    """One vector (D,) as JSON takes it: a str for base64, else an array."""
    if form == "float":
        return np.ascontiguousarray(vector)
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
    import orjson

    marked = set(cut)
    rows = []
    for index, vector in enumerate(vectors):
        encoded = {form: encode_vector(vector, form) for form in formats}
        row = {"object": "embedding", "index": index, "embedding": encoded if is_keyed else encoded[formats[0]]}
        if index in marked:
            row["truncated"] = True
        rows.append(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    tail = orjson.dumps({"model": model, "usage": usage})
    return b'{"object":"list","data":[' + b",".join(rows) + b"]," + tail[1:]
