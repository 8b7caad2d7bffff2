"""The images of the self-test, which are not square, and what the vision tower takes of them.

Pillow prepares them directly. Nothing here goes through the runtime's own preprocessing, so the self-test of a bundle
checks that too: a wrong crop or a squashed image gives another vector.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeclip.manifest import ImageFacts

IMAGE_SIZES_PX = ((96, 61), (40, 129))  # width, height

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def draw_image(width: int, height: int) -> NDArray[np.uint8]:
    """A smooth picture with an edge and some grain, (height, width, 3), the same on every machine."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x // max(width - 1, 1)
    green = 255 * y // max(height - 1, 1)
    blue = np.where((x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 4) ** 2, 220, 40)
    grain = (x * 7 + y * 13) % 32
    return np.stack((red, green, blue - grain), axis=-1).clip(0, 255).astype(np.uint8)


def preprocess(picture: NDArray[np.uint8], facts: ImageFacts) -> NDArray[np.uint8]:
    """Resize and centre crop (or pad) with Pillow, by the reference's rules: (S, S, 3)."""
    size = facts.size_px
    image = Image.fromarray(picture)
    width, height = image.size
    if facts.resize_mode == "squash":
        target = (size, size)
    elif facts.resize_mode == "longest":
        scale = size / max(width, height)
        target = (round(width * scale), round(height * scale))
    else:
        short, long = min(width, height), int(size * max(width, height) / min(width, height))
        target = (size, long) if width == short else (long, size)
    image = image.resize(target, _RESAMPLING[facts.interpolation])
    if facts.resize_mode == "longest":
        canvas = Image.new("RGB", (size, size), (facts.fill_color,) * 3)
        canvas.paste(image, ((size - target[0]) // 2, (size - target[1]) // 2))
        return np.asarray(canvas)
    left, top = (round((side - size) / 2) for side in target)
    return np.asarray(image.crop((left, top, left + size, top + size)))
