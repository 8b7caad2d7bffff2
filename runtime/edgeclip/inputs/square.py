"""Turn an image of any size into pixels of one square size: resize, then crop, pad or squash.

The vision graph takes uint8 pixels and has mean and std folded in, so the pixels are a quarter of the float tensor's
size; `normalize_pixels` gives that float tensor for use with another runtime. `edgeclip.inputs.images` decodes
images.
"""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.inputs import resample
from edgeclip.inputs.images import ImageInput, RgbImage, decode_image, to_rgb
from edgeclip.manifest import ImageFacts, Interpolation

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

# Pillow makes the whole resized image, 4 bytes a pixel: 17 MB for 16 crops of 512 px, 105 GB for a
# line of 1 x 100000. Beyond so many crops only the crop is computed.
_EXTREME_CROPS = 16


def preprocess_image(
    image: ImageInput, facts: ImageFacts, *, label: str = "image", resizes_first: bool = False
) -> NDArray[np.uint8]:
    """The pixels that the reference gives its vision tower: (size_px, size_px, 3) uint8, a new array.

    The image becomes RGB, is resized by `facts.resize_mode`, and its centre is cut out. "shortest" makes the short
    side size_px and crops the long one; "longest" makes the long side size_px and fills the rest with fill_color;
    "squash" makes both size_px. The result is equal to the reference's in every bit, with any version of Pillow, and
    with `edgeclip.inputs.resample`, which replaces Pillow where it is not installed and for extreme shapes.
    With `resizes_first` an image that is not RGB is resized in its own mode and becomes RGB then.

    Takes what `decode_image` takes, and raises the same errors: InputError, MissingExtraError.
    """
    rgb = decode_image(image, label=label, convert=partial(_resize_to_rgb, facts) if resizes_first else None)
    source = (rgb.shape[1], rgb.shape[0]) if isinstance(rgb, np.ndarray) else rgb.size
    width, height = resized_size(source, facts)
    left, right = _shown_span(width, facts.size_px)
    top, bottom = _shown_span(height, facts.size_px)
    is_extreme = width * height > _EXTREME_CROPS * facts.size_px**2
    picture = None if is_extreme else _as_pillow(rgb)
    if picture is None:
        box = (left, top, right, bottom)
        shown = resample.resize(np.asarray(rgb), (width, height), facts.interpolation, box)
    else:
        resized = _resize_with_pillow(picture, (width, height), facts.interpolation)
        shown = np.array(resized.crop((left, top, right, bottom)))
    return _fill_up(shown, facts)


def normalize_pixels(pixels: NDArray[np.uint8], facts: ImageFacts) -> NDArray[np.float32]:
    """The reference's float tensor: (pixels / 255 - mean) / std in float32, channels first.

    (height, width, 3) uint8 gives (3, height, width) float32; (B, height, width, 3) gives
    (B, 3, height, width). InputError for anything else.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
        found = f"{pixels.shape} array of {pixels.dtype}"
        raise InputError(f"pixels: found a {found}, wanted uint8 (height, width, 3) or (B, height, width, 3)")
    mean, std = np.array(facts.mean, np.float32), np.array(facts.std, np.float32)
    scaled = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(np.moveaxis((scaled - mean) / std, -1, -3))


def resized_size(source: tuple[int, int], facts: ImageFacts) -> tuple[int, int]:
    """The (width, height) that an image of `source` (width, height) is resized to, before the crop.

    No side is less than 1 pixel; plain rounding would give 0 for the short side in "longest".
    """
    width, height = source
    size = facts.size_px
    if facts.resize_mode == "squash":
        return size, size
    if facts.resize_mode == "longest":
        ratio = max(height / size, width / size)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    short = min(source)
    return size * width // short, size * height // short


def _resize_to_rgb(facts: ImageFacts, image: "Image") -> "Image":
    """An RGB image as it is; any other one resized in its own mode, which is nearest-neighbour for palettes."""
    image.load()
    if image.mode != "RGB":
        image = image.resize(resized_size(image.size, facts), _resampling(facts.interpolation))
    return to_rgb(image)


def _shown_span(length: int, size: int) -> tuple[int, int]:
    """The first pixel of a resized side that is inside the crop, and the pixel after the last one."""
    if length <= size:
        return 0, length
    first = round((length - size) / 2)  # halves to the even side, as the reference
    return first, first + size


def _as_pillow(rgb: RgbImage) -> "Image | None":
    if not isinstance(rgb, np.ndarray):
        return rgb
    try:
        from PIL import Image
    except ImportError:
        return None
    return Image.fromarray(np.ascontiguousarray(rgb))


def _resize_with_pillow(image: "Image", size: tuple[int, int], interpolation: Interpolation) -> "Image":
    """Resize with Pillow, one axis at a time, because Pillow's versions differ in which axis they resize first."""
    if image.size == size:
        return image
    method = _resampling(interpolation)
    is_rows_first = resample.rows_first(image.size, size)
    halfway = (image.width, size[1]) if is_rows_first else (size[0], image.height)
    return image.resize(halfway, method).resize(size, method)


def _resampling(interpolation: Interpolation) -> "Resampling":
    from PIL.Image import Resampling

    return {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR}[interpolation]


def _fill_up(shown: NDArray[np.uint8], facts: ImageFacts) -> NDArray[np.uint8]:
    """`shown` in the middle of (size_px, size_px, 3); an odd pixel of filling goes to the right and below."""
    size = facts.size_px
    height, width, _ = shown.shape
    if (height, width) == (size, size):
        return shown
    top, left = (size - height) // 2, (size - width) // 2
    pixels = np.full((size, size, 3), facts.fill_color, np.uint8)
    pixels[top : top + height, left : left + width] = shown
    return pixels
