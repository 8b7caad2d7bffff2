"""Made-up pictures for benchmarks: blotches of random colours, which compress about as a photo does."""

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_JPEG_QUALITY = 90


def made_up_picture(
    size: tuple[int, int], draw: np.random.Generator, *, blotch_px: int = 16, grain: int = 0
) -> "Image":
    """A picture of (width, height) pixels: blotches about `blotch_px` wide, and noise of up to `grain` levels."""
    from PIL import Image

    width, height = size
    coarse = draw.integers(0, 256, (max(1, height // blotch_px), max(1, width // blotch_px), 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    if not grain:
        return smooth
    noise = draw.integers(-grain, grain + 1, (height, width, 3), dtype=np.int16)
    return Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))


def encode_file(picture: "Image", kind: str = "JPEG") -> bytes:
    """The bytes of a file of that format."""
    with io.BytesIO() as file:
        picture.save(file, kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {}))
        return file.getvalue()
