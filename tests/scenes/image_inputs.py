"""Images in the forms that users have them in, and what is wrong with one that is refused."""

import base64
import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip.errors import InputError
from edgeclip.inputs.images import decode_image

IMAGES = Path(__file__).parents[1] / "data" / "images"
FILES = sorted(path.name for path in IMAGES.iterdir() if path.suffix in (".png", ".jpg"))
PNG = (IMAGES / "rgb_odd.png").read_bytes()  # 97 x 61
PIXELS = np.asarray(Image.open(io.BytesIO(PNG)))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file of that kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def refusal(image: Any) -> str:
    """The message that `image` is refused with: one short line that begins with the label."""
    with pytest.raises(InputError) as caught:
        decode_image(image, label="image 3")
    message = str(caught.value)
    assert message.startswith("image 3")
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    return message


@contextlib.contextmanager
def pillow_limit(pixels: int) -> Any:
    """Pillow warns of more pixels than so many."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def data_uri(data: bytes, header: str = "data:image/png;base64,") -> str:
    """The bytes behind the header of a data URI."""
    return header + base64.b64encode(data).decode()
