"""What tests give an Encoder, how alike its vectors are, and what it refuses a call with."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip import InputError
from tests.conftest import DATA

# One input in other company, order or batch size. Measured: 2e-7.
SAME = 5e-6

DIM = 64
TEXTS = ["the red house", "", "a cat", "sunset beach over the blue tree", "<pad> in text", "a dog", "海滩上美丽", " "]
FILE = DATA / "images" / "rgb_odd.png"
IMAGES = [DATA / "images" / name for name in ("rgb_odd.png", "gray.jpg", "rgba.png", "cmyk.jpg", "rgb_tall.png")]
PIXELS = np.asarray(Image.open(io.BytesIO(FILE.read_bytes())))


def refusal(call: Callable[[], object], kind: type[Exception] = InputError) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def largest_difference(found: Any, wanted: Any) -> float:
    """Of two arrays of one shape."""
    assert np.shape(found) == np.shape(wanted)
    return float(np.abs(np.asarray(found) - np.asarray(wanted)).max())
