"""Recognise a file's format by its first bytes, whatever its name is.

Kinds have Pillow's names of formats. A kind that is no image has a sentence that says what to do with it. The
patterns are stricter than Pillow's own, which take a text that begins with "BM" or "P3" for an image.
"""

import re
import struct
from collections.abc import Callable

from edgeclip.host.installation import install_command
from edgeclip.manifest import describe_pointer

HEAD_BYTES = 256

_SPACE = rb"(?:\s|#[^\n]*\n)+"
_KINDS = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("WEBP", rb"RIFF.{4}WEBP"),
    ("AVIF", rb".{4}ftypavi[fs]"),
    # Of mif1 and msf1, any image in HEIF's container, the compatible brands say which it is.
    ("AVIF", rb".{4}ftypm(?:if|sf)1.{4}(?:.{4})*?avi[fs]"),
    ("HEIF", rb".{4}ftyp(?:he[iv][cxms]|mif[12]|msf1)"),
    ("JPEG2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ("DIB", rb"[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0.{8}\x01\0[\x01\x02\x04\x08\x10\x18\x20]\0"),
    ("ICO", rb"\0\0\x01\0[^\0]\0.{3}\0[\0\x01]\0"),
    ("PPM", rb"P[1-6]" + _SPACE + rb"\d+" + _SPACE + rb"\d+\s|P[fF]\s\d+\s\d+\s"),
)
# TGA has no signature: its name says what it is, and its header must allow it.
_TGA_SUFFIXES = (".tga", ".icb", ".vda", ".vst")
_TGA = rb".[\0\x01][\x01\x02\x03\x09\x0a\x0b].{13}[\x08\x0f\x10\x18\x20]"

# What an image file's name usually ends in. A name alone makes no image, but says that one was meant.
_SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"),
    *(".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", *_TGA_SUFFIXES),
)

_NO_IMAGE = (  # what people pass most among the rest
    (rb"%PDF", "a PDF; render its pages to images"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "an EPS drawing; render it to PNG"),
    (rb"8BPS", "a Photoshop document; save it as PNG"),
    (rb"\0\x05\x16\x07\0", "an AppleDouble file, which holds a Mac's notes on the file of that name; remove it"),
    (rb".{4}ftyp", "a video; save one of its frames as an image"),
    (rb"(\xef\xbb\xbf)?\s*<", "markup (SVG, HTML or XML); render an SVG to PNG, repeat a failed download"),
)
RAW_PHOTO = "a camera's raw file, of which only a thumbnail can be read; develop it to JPEG"
_RAW_SUFFIXES = (
    *(".3fr", ".arw", ".bay", ".cap", ".cr2", ".cr3", ".crw", ".cs1", ".dcr", ".dcs", ".dng", ".drf", ".eip", ".erf"),
    *(".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".ptx"),
    *(".pxn", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
_REDUCED, _DNG_VERSION = 254, 50706  # tags of TIFF: NewSubfileType, of which bit 0 says "a reduced image", and DNG's
# The kinds that Pillow reads only with a library that it may lack: what they are, the library, and what installs it.
NEEDED = {
    "HEIF": ("a HEIC image", "pillow-heif", ("heic",)),
    "AVIF": ("an AVIF image", "Pillow 11.3 or later", ("images", "--upgrade")),
}


def image_kind(head: bytes, name: str = "") -> str | None:
    """Pillow's name for the image format of a file that begins with these bytes; None for other files.

    `head` is the first HEAD_BYTES of the file, or all of a shorter one. `name` is the file's name, which decides for
    TGA.
    """
    for kind, pattern in _KINDS:
        if re.match(pattern, head, re.DOTALL):
            return kind
    is_tga = name.lower().endswith(_TGA_SUFFIXES) and re.match(_TGA, head, re.DOTALL)
    return "TGA" if is_tga else None


def has_raw_suffix(name: str) -> bool:
    """Whether the name of a file says that it is a camera's raw file."""
    return name.lower().endswith(_RAW_SUFFIXES)


def is_raw_photo(read: Callable[[int, int], bytes]) -> bool:
    """Whether a file is a camera's raw one in TIFF's form; `read(offset, size)` gives what there is of its bytes.

    Canon's CR2 says so behind the header, DNG by a tag; in the others the first image is a reduced one.
    """
    head = read(0, 10)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8:
        return False
    if head[8:] == b"CR":
        return True
    (start,) = struct.unpack_from(f"{order}I", head, 4)
    (count,) = struct.unpack(f"{order}H", read(start, 2).ljust(2, b"\0"))
    entries = read(start + 2, 12 * count)
    for tag, kind, _, value in struct.iter_unpack(f"{order}HHI4s", entries[: len(entries) // 12 * 12]):
        if tag == _DNG_VERSION:
            return True
        if tag == _REDUCED and struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", value)[0] & 1:
            return True
    return False


def what_to_do(head: bytes) -> str | None:
    """What a file is that Pillow does not read here, and what to do with it; None where that is unknown."""
    kind = image_kind(head)
    if kind in NEEDED:
        return f"{NEEDED[kind][0]}, which needs {what_it_needs(kind)}, or convert it to JPEG"
    return describe_pointer(head) or next(
        (found for pattern, found in _NO_IMAGE if re.match(pattern, head, re.DOTALL)), None
    )


def what_it_needs(kind: str) -> str:
    """The library that images of a kind in NEEDED need, and the command that installs it."""
    _, library, extra = NEEDED[kind]
    return f"{library}: `{install_command(*extra)}`"


def has_image_suffix(name: str) -> bool:
    """Whether the name of a file says that it is an image."""
    return name.lower().endswith(_SUFFIXES)
