"""Image files of noise in several formats, and what a plain string is taken for."""

import base64
import io

import numpy as np
from PIL import Image, features

from edgeclip.serve.api.image_strings import UrlItem, decode_base64, find_image

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "ICO", *["AVIF"] * features.check("avif"))


def file_of(kind: str, size: int) -> bytes:
    """An image of noise, so that its base64 has every character."""
    pixels = np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, kind)
        return file.getvalue()


FILE = file_of("PNG", 24)
BASE64 = base64.b64encode(FILE).decode()
XML = b'<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'


def found_file(string: str) -> bytes | None:
    """The file that a plain string is taken for."""
    found = find_image(string)
    assert not isinstance(found, UrlItem)
    return None if found is None else decode_base64(found.data)
