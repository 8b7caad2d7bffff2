"""Judge images of unknown clients by their headers: which are decoded, and what decoding one takes.

An image's header says how much memory and time its decoding takes, so it is read and judged before any pixel is
decoded (`edgeclip.serve.images.decode_queue` does that). Of the formats that `edgeclip.inputs.images` reads, those
are taken here that are bound by their header and decode without holding Python's lock:

- not JPEG 2000: 12 megapixels held up every other thread for 7.8 s (Pillow 13);
- not AVIF and HEIF: the frame inside may be of any size; 1047 bytes that said 64 x 64 decoded 8000 x 8000;
- not ICO, which holds images of any size; not PPM and run-length BMP, which Pillow decodes in Python.

Pillow reads headers in Python, some microseconds for each of their parts, so a file of many tiny parts is refused
too.
"""

import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.host.import_errors import explain_import
from edgeclip.host.installation import install_command

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
_NOT_TAKEN = "is no image that is taken here, or is damaged at its beginning; send JPEG, PNG, WebP, GIF, BMP or TIFF"
# The most that JPEG and GIF can say. Longer sides come from attackers: 1 x 49,000,000 pixels took 0.9 GB and, with
# eight of them beside a small model, 43 s.
MOST_SIDE_PX = 65_535
# A progressive JPEG has ten or so scans. Each goes over all the pixels, 0.4 s for 49 million, and may take 75 bytes:
# a few hundred kilobytes could take hours. So many passes over the largest image that is taken are enough.
_MAX_PASSES = 20
_START_OF_SCAN = b"\xff\xda"
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_TIFF_PARTS = ((273, 279), (324, 325))  # where strips and tiles begin, and how many bytes they have
_TIFF_COMPRESSION, _TIFF_JPEG = 259, (6, 7)
# Parts of a file that Pillow takes one by one in Python: 10 us each. 20 MB of a PNG in chunks of 8 kB are 2500.
_MOST_PARTS = 4096
# Reads of a header, of which the longest of ordinary ones have some hundred: 2,048 take 3 ms. A chunk of a PNG takes
# two or three, a segment of a JPEG four.
_MOST_READS = 2048
# Compressed chunks of a PNG's header: Pillow unpacks each, to a megabyte at most, in a millisecond. One is usual.
_MOST_PACKED = 64
_PACKED_CHUNKS = (b"iCCP", b"zTXt", b"iTXt")
# Nanoseconds a pixel on one x86 core, decoding and converting noise of 9 megapixels: JPEG 6, GIF 7, PNG 29, WebP 26,
# TIFF 3 to 12 (LAB 38), BMP 3. Resizing takes about 6 more.
_SLOW = {"PNG": 3, "WEBP": 3, "TIFF": 2}
_LEAST_COST = 10_000
# Bytes a pixel beside Pillow's own of the image's mode and of RGB: WebP's canvases took 12; TIFF's strip may be the
# whole image in 16 bits; GIF has a palette's image beside; a JPEG of several scans keeps its coefficients.
_BESIDE = {"WEBP": 12, "TIFF": 8, "GIF": 4}
_COEFFICIENTS, _RGB, _EXTREME = 8, 4, 6
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # others: 4
# An image whose sides differ by more than this factor is copied once more to be resized (`edgeclip.inputs.square`).
_EXTREME_RATIO = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLimits:
    """The most bytes and pixels of an image's file, and the most memory of all images that are decoded at once."""

    max_bytes: int
    max_pixels: int
    max_decode_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """An image's size, and what decoding it takes: about `cost` times 6 ns of a core, at most `memory_bytes`."""

    width: int
    height: int
    cost: int
    memory_bytes: int


class _Header(io.BytesIO):
    """A file that allows a bounded number of reads, so that a header cannot be read bit by bit without end."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise OSError("a header of too many parts")
        return super().read(size)


def check_bytes(size: int, limits: PictureLimits, label: str) -> None:
    """InputError for a file of too many bytes."""
    if size > limits.max_bytes:
        raise InputError(f"{label}: found {size} bytes, wanted at most {limits.max_bytes}; scale the image down")


def judge(data: bytes, limits: PictureLimits, label: str) -> Header:
    """The facts of a file's header. InputError, which calls the image `label`, for a file that must not be decoded.

    Nothing is decoded. MissingExtraError without Pillow.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"decoding images needs Pillow; `{install_command('serve')}`") from error
    except ImportError as error:
        raise explain_import(error, "serve") or error from error
    Image.init()
    too_many = f"more pixels than the {limits.max_pixels} that are taken; scale the image down"
    try:
        if parts := _parts(data):
            raise InputError(f"{label}: found a file in too many {parts}; save it again")
        with Image.open(_Header(data), formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            width, height = image.size
            fault, header = _fault(image, data, limits), _header(image, data)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{label}: {_NOT_TAKEN}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{label}: found {too_many}") from error
    except Exception as error:  # a damaged header makes Pillow raise nearly anything
        raise InputError(f"{label}: {_NOT_TAKEN}") from error
    if max(width, height) > MOST_SIDE_PX:
        raise InputError(f"{label}: found {width} x {height} pixels, wanted sides of at most {MOST_SIDE_PX}")
    if width * height > limits.max_pixels:
        raise InputError(f"{label}: found {width} x {height} pixels, {too_many}")
    if fault:
        raise InputError(f"{label}: found {fault}")
    if header.memory_bytes > limits.max_decode_bytes:
        raise InputError(
            f"{label}: found {width} x {height} pixels that take up to {header.memory_bytes} bytes to decode, "
            f"more than the {limits.max_decode_bytes} that are allowed; scale the image down"
        )
    return header


def _header(image: "Image", data: bytes) -> Header:
    pixels, kind = image.width * image.height, image.format or ""
    passes = _passes(image, data)
    each = _STORED.get(image.mode, 4) + (0 if image.mode == "RGB" else _RGB) + _BESIDE.get(kind, 0)
    if passes > 1:
        each += _COEFFICIENTS
    if max(image.size) > _EXTREME_RATIO * min(image.size):
        each += _EXTREME
    cost = max(_LEAST_COST, pixels * max(passes, _SLOW.get(kind, 1)))
    return Header(width=image.width, height=image.height, cost=cost, memory_bytes=pixels * each + len(data))


def _passes(image: "Image", data: bytes) -> int:
    """The number of times that decoding goes over all pixels: once for each scan of a JPEG, also inside a TIFF."""
    if image.format == "JPEG":
        return data.count(_START_OF_SCAN)
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if tags.get(_TIFF_COMPRESSION) not in _TIFF_JPEG:
        return 1
    places, sizes = next(
        ((tags[at], tags[many]) for at, many in _TIFF_PARTS if at in tags and many in tags), ((), ())
    )
    if not places or sum(sizes) > 2 * len(data):  # such strips lie over each other, and each is decoded
        return data.count(_START_OF_SCAN) * max(1, len(places))
    scans = sum(data.count(_START_OF_SCAN, at, at + size) for at, size in zip(places, sizes, strict=False))
    return -(-scans // len(places))  # strips and tiles are of one size


def _parts(data: bytes) -> str | None:
    """The kind of parts that a file has too many of, which Pillow reads one by one."""
    if data.startswith(b"\x89PNG"):
        chunks = list(islice(_png_chunks(data), _MOST_PARTS + 1))
        is_packed = sum(data[at + 4 : at + 8] in _PACKED_CHUNKS for at in chunks) > _MOST_PACKED
        return "chunks" if is_packed or len(chunks) > _MOST_PARTS else None
    if data[:2] in (b"II", b"MM") and data[2:4] in (b"*\0", b"\0*", b"+\0", b"\0+"):
        # Pillow takes a big-endian BigTIFF for a TIFF, so both are looked at.
        return "strips or tiles" if max(_tiff_parts(data, big) for big in (False, True)) > _MOST_PARTS else None
    return None


def _png_chunks(data: bytes) -> Iterator[int]:
    """The positions at which the chunks of a PNG begin."""
    at = 8
    while at + 12 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _tiff_parts(data: bytes, is_big: bool) -> int:
    """Strips or tiles of the first image, 0 for what is no such file; `is_big`: read as BigTIFF."""
    order = "<" if data[:1] == b"I" else ">"
    try:
        first = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)[0]
        count = struct.unpack_from(order + ("Q" if is_big else "H"), data, first)[0]
    except struct.error:
        return 0
    entry = struct.Struct(order + ("HHQ8x" if is_big else "HHI4x"))
    begin = first + (8 if is_big else 2)
    end = min(len(data), begin + min(count, 65_535) * entry.size)
    entries = (entry.unpack_from(data, at) for at in range(begin, end - entry.size + 1, entry.size))
    return max((many for tag, _, many in entries if tag in dict(_TIFF_PARTS)), default=0)


def _fault(image: "Image", data: bytes, limits: PictureLimits) -> str | None:
    """The reason why an image costs more than its size says, if there is one."""
    passes = _passes(image, data)
    if passes * image.width * image.height > _MAX_PASSES * limits.max_pixels:
        return f"a {image.format} of {passes} scans, too many for its size; save it again"
    if image.format == "BMP" and image.info.get("compression"):
        return "a compressed BMP; send PNG"
    tags: Mapping[int, object] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    width, length = tags.get(_TIFF_TILE_WIDTH, 1), tags.get(_TIFF_TILE_LENGTH, 1)
    if not (isinstance(width, int) and isinstance(length, int) and 0 < width * length <= limits.max_pixels):
        return "a TIFF of tiles larger than what is taken; send PNG"
    return None
