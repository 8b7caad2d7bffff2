"""Images that strangers send: small enough to decode, decoded beside the event loop.

An image's header says how much memory its decoding takes, so it is read and judged before any pixel is decoded. Of
the formats that `edgeclip.images` reads, those are taken here that are bound by their header and decode without
holding Python's lock:

- not JPEG 2000: 12 megapixels held up every other thread for 7.8 s (Pillow 13);
- not AVIF and HEIF: the frame inside may be of any size; 1047 bytes that said 64 x 64 decoded 8000 x 8000;
- not ICO, which holds images of any size; not PPM and run-length BMP, which Pillow decodes in Python.
"""

import asyncio
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.installation import install_command
from edgeclip.serve.priorities import lower_this_thread

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
_NOT_TAKEN = "is no image that is taken here, or is damaged at its beginning; send JPEG, PNG, WebP, GIF, BMP or TIFF"
# A progressive JPEG has ten or so scans. Each goes over all the pixels, 0.4 s for 49 million, and may take 75 bytes:
# a few hundred kilobytes could take hours. So many passes over the largest image that is taken are enough.
_MAX_PASSES = 20
_START_OF_SCAN = b"\xff\xda"
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_NICENESS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLimits:
    """Of one image: the bytes of its file, and width times height."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What the vision tower takes, (S, S, 3) uint8, and the size of what was sent."""

    pixels: Pixels
    width: int
    height: int


class Preprocess(Protocol):
    """From a file's bytes to pixels (S, S, 3) uint8, as `Encoder.preprocess`."""

    def __call__(self, image: bytes, /, *, label: str) -> Pixels:
        """Raises InputError, which calls the image `label`."""


class PictureDecoder:
    """Decodes with `threads` threads at once; what is beyond them waits."""

    def __init__(self, preprocess: Preprocess, limits: PictureLimits, threads: int) -> None:
        self._preprocess, self._limits = preprocess, limits
        self._threads = ThreadPoolExecutor(
            threads, thread_name_prefix="edgeclip-decode", initializer=lower_this_thread, initargs=(_NICENESS,)
        )

    async def decode(self, data: bytes, label: str) -> Picture:
        """The pixels of a file. Cancelling it while it waits saves the work.

        Raises InputError, which calls the image `label`, for what is too large or no image; MissingExtraError without
        Pillow.
        """
        check_bytes(len(data), self._limits, label)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data, label)

    def close(self) -> None:
        """Take no more; what runs is finished."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, data: bytes, label: str) -> Picture:
        width, height = judged_size(data, self._limits, label)
        try:
            return Picture(pixels=self._preprocess(data, label=label), width=width, height=height)
        except MemoryError as error:
            raise InputError(f"{label}: needs more memory than there is") from error


def check_bytes(size: int, limits: PictureLimits, label: str) -> None:
    """InputError for a file of too many bytes."""
    if size > limits.max_bytes:
        raise InputError(f"{label}: found {size} bytes, wanted at most {limits.max_bytes}; scale the image down")


def judged_size(data: bytes, limits: PictureLimits, label: str) -> tuple[int, int]:
    """The (width, height) in a file's header. InputError for what is not to be decoded; nothing is."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError(f"decoding images needs Pillow; `{install_command('serve')}`") from error
    Image.init()
    too_many = f"more pixels than the {limits.max_pixels} that are taken; scale the image down"
    try:
        with Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            width, height = image.size
            fault = _fault(image, data, limits)
    except UnidentifiedImageError as error:
        raise InputError(f"{label}: {_NOT_TAKEN}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{label}: found {too_many}") from error
    except Exception as error:  # a damaged header makes Pillow raise nearly anything
        raise InputError(f"{label}: {_NOT_TAKEN}") from error
    if fault:
        raise InputError(f"{label}: found {fault}")
    if width * height > limits.max_pixels:
        raise InputError(f"{label}: found {width} x {height} pixels, {too_many}")
    return width, height


def _fault(image: "Image", data: bytes, limits: PictureLimits) -> str | None:
    """What makes an image costly that its size does not tell."""
    scans = data.count(_START_OF_SCAN) if image.info.get("progressive") else 1
    if scans * image.width * image.height > _MAX_PASSES * limits.max_pixels:
        return f"a JPEG of {scans} scans, too many for its size; save it again"
    if image.format == "BMP" and image.info.get("compression"):
        return "a compressed BMP; send PNG"
    tags: Mapping[int, object] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    width, length = tags.get(_TIFF_TILE_WIDTH, 1), tags.get(_TIFF_TILE_LENGTH, 1)
    if not (isinstance(width, int) and isinstance(length, int) and 0 < width * length <= limits.max_pixels):
        return "a TIFF of tiles larger than what is taken; send PNG"
    return None
