"""A safetensors file that is written piece by piece, so that no tensor of it is in memory as a whole.

The format (https://huggingface.co/docs/safetensors): the length of a JSON header as 8 bytes, the header, the tensors'
bytes in its order.
"""

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

# The names that numpy and safetensors have for the types of weights.
DTYPES: Mapping[str, tuple[np.dtype[Any], str]] = {
    "float32": (np.dtype(np.float32), "F32"),
    "float16": (np.dtype(np.float16), "F16"),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), "BF16"),
}


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, pieces: Iterable[NDArray[np.float32]]
) -> None:
    """Write tensors of these names and shapes from flat `pieces`; ValueError for more or fewer numbers."""
    numbers, name = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, shape in shapes.items():
        start, end = end, end + prod(shape) * numbers.itemsize
        header[tensor] = {"dtype": name, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        written = sum(file.write(piece.astype(numbers).tobytes()) for piece in pieces)
    if written != end:
        raise ValueError(f"{path}: {written} bytes of tensors, their shapes want {end}")
