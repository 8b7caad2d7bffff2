"""Decode anything that a user calls an image to RGB with 8 bits per channel.

RGB means what Pillow's `convert("RGB")` means, because the reference means that: alpha is dropped and not composited
(a transparent pixel shows its hidden colour), EXIF orientation is not applied, 16-bit grey saturates at 255, an
animation gives its first frame.

Images are untrusted. Only formats that hold nothing but pixels are opened (EPS would start ghostscript). An image
that Pillow calls a decompression bomb, with more than twice `PIL.Image.MAX_IMAGE_PIXELS`, is refused from its header.
Between once and twice that, Pillow warns: the warning is passed on, and the image is decoded even where warnings are
errors, because phones take photos of that size.

Pillow is imported when something must be decoded; arrays need none. Each family resizes and crops
(`edgeclip.families.jina_clip`).
"""

import base64
import contextlib
import errno
import io
import os
import re
import select
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, Union

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.host.import_errors import explain_import
from edgeclip.host.installation import install_command
from edgeclip.inputs.image_kinds import HEAD_BYTES, RAW_PHOTO, is_raw_photo, what_to_do

if TYPE_CHECKING:
    from PIL.Image import Image

ImageInput = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, NDArray[np.uint8], "Image"]
RgbImage = Union["Image", NDArray[np.uint8]]

# MPO opens as JPEG; HEIF is read where pillow-heif is installed; TGA comes last, having no signature.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "HEIF", "JPEG2000", "TIFF", "BMP", "DIB", "ICO", "PPM", "TGA")
_WANTED = 'a path, bytes, a "data:image/...;base64," string, a PIL image or a uint8 RGB array'
_SHOWN_CHARACTERS = 100
_PATH_KINDS = "OUT"  # numpy's for objects, str of one width, and StringDType
# A pipe is read whole, because decoders seek: at most so many bytes, and only while bytes keep coming.
_MOST_PIPE_BYTES = 1 << 30
_PIPE_SILENCE_S = 30.0
_quiet_lock = threading.Lock()


def is_image(value: object) -> TypeGuard[ImageInput]:
    """Whether `value` is one image, valid or not, rather than several.

    An array is one image unless it has 4 axes, or holds str or objects (mostly paths) along its only axis.
    """
    if isinstance(value, np.ndarray):
        return value.ndim == 0 if value.dtype.kind in _PATH_KINDS else value.ndim != 4
    return isinstance(value, str | os.PathLike | bytes | bytearray | memoryview) or _is_pil_image(value)


def decode_image(image: ImageInput, *, label: str, convert: "Callable[[Image], Image] | None" = None) -> RgbImage:
    """`image` as RGB: a PIL image in mode "RGB", or for an array that array, checked.

    Takes a path, the bytes of a file, a "data:image/...;base64," string, a PIL image in any mode that converts to
    RGB, or an array (height, width, 3) uint8 of any strides. An image that is RGB already is not copied. `convert`
    makes RGB of a PIL image in any mode (`to_rgb`).

    `label` ("image 3") begins every message; the path follows it in brackets. Raises InputError for an input that is
    no readable image, MissingExtraError when it must be decoded and Pillow is not installed, MemoryError where its
    pixels do not fit.
    """
    convert = convert or to_rgb
    if isinstance(image, np.ndarray):
        if image.ndim == 0 and image.dtype.kind in _PATH_KINDS:
            path: Any = image.item()
            return decode_image(path, label=label, convert=convert)
        return _check_array(image, label)
    if isinstance(image, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(bytes(image)), label, convert)
    if isinstance(image, str) and image[:5].lower() == "data:":
        return _decode(io.BytesIO(_data_uri_bytes(image, label)), label, convert)
    if isinstance(image, str | os.PathLike):
        return _decode_path(os.fsdecode(image), label, convert)
    if _is_pil_image(image):
        return _convert(image, label, convert)
    raise InputError(f"{label}: found {_type_name(image)}, wanted {_WANTED}")


def _is_pil_image(value: object) -> TypeGuard["Image"]:
    module = sys.modules.get("PIL.Image")  # a program that has a PIL image has imported it
    return module is not None and isinstance(value, module.Image)


def _type_name(value: object) -> str:
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name} (pass what its read() gives)" if hasattr(value, "read") else name


def _check_array(array: NDArray[np.uint8], label: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        return array
    raise InputError(
        f"{label}: found a {array.shape} array of {array.dtype}, "
        f"wanted uint8 RGB (height, width, 3); {_array_advice(array)}"
    )


def _array_advice(array: NDArray[np.generic]) -> str:
    shape = array.shape
    if array.dtype.kind == "S":
        return "pass files as a list of bytes, for numpy cuts zeros from the end of its own"
    if array.dtype.kind in _PATH_KINDS and array.ndim < 3:
        return "pass paths in a list, or in an array of one axis"
    if not array.size:
        return "it has no pixels"
    if array.ndim == 2:
        return "repeat grey with numpy.stack([array] * 3, axis=-1)"
    if array.ndim == 4:
        return "pass the images of a batch one by one"
    if array.ndim == 3 and shape[2] != 3:
        if shape[0] == 3:
            return "put the channels last with array.transpose(1, 2, 0)"
        if shape[2] == 1:
            return "repeat grey with array.repeat(3, axis=2)"
        if shape[2] == 4:
            return "drop the alpha with array[:, :, :3]"
    if array.ndim != 3 or shape[2] != 3:
        return "one image has rows, columns and 3 channels"
    if np.issubdtype(array.dtype, np.inexact) and np.isnan(array).any():
        return "it holds NaN, so look at where it comes from"
    return "scale it to 0..255 and convert with array.astype(numpy.uint8)"


def _data_uri_bytes(uri: str, label: str) -> bytes:
    header, comma, payload = uri.partition(",")
    is_base64_image = header[:11].lower() == "data:image/" and header[-7:].lower() == ";base64"
    if not comma or not is_base64_image:
        raise InputError(
            f"{label}: found a data URI that begins {header[:40]!r}, wanted data:image/...;base64, and base64"
        )
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError as error:  # binascii.Error is one
        raise InputError(f"{label}: its base64 is damaged ({_one_line(error)}); encode the file again") from error


def _decode_path(path: str, label: str, convert: "Callable[[Image], Image]") -> "Image":
    label = f"{label} ({shown_path(path)})"
    if _is_pipe(path):
        return _decode(io.BytesIO(_read_pipe(path, label)), label, convert)
    if re.match(r"[a-z][a-z0-9+.-]+://|https?:", path, re.IGNORECASE):
        raise InputError(f"{label}: URLs are not fetched; download it and pass its path or bytes")
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; what follows raises other errors
    except FileNotFoundError as error:
        raise InputError(f"{label}: no such file") from error
    except (OSError, ValueError) as error:
        if os.path.isdir(path):
            raise InputError(f"{label}: is a folder; pass the files in it") from error
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"{label}: is no path ({_one_line(error)}); base64 needs data:image/png;base64, before it"
            ) from error
        raise InputError(f"{label}: cannot be opened ({_one_line(error)})") from error
    with file:
        return _decode(file if file.seekable() else io.BytesIO(file.read()), label, convert)


def _is_pipe(path: str) -> bool:
    """Whether the path is a pipe that can be read without waiting for its writer for ever; none can on Windows."""
    if not hasattr(select, "poll"):
        return False
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):  # said when it is opened
        return False


def _read_pipe(path: str, label: str) -> bytes:
    """All bytes that are written into a pipe; InputError for a pipe that is silent for long, or does not end."""
    parts: list[bytes] = []
    size_bytes = 0
    try:
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else this waits for a writer, and nothing wakes it
        with open(pipe, "rb", buffering=0) as file:
            until = time.monotonic() + _PIPE_SILENCE_S
            waiting = select.poll()
            waiting.register(file, select.POLLIN)
            while size_bytes <= _MOST_PIPE_BYTES:
                if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
                    raise InputError(f"{label}: is a pipe, and nothing was written into it for {_PIPE_SILENCE_S:g} s")
                if (part := file.read(1 << 20)) is None:  # another reader was quicker
                    continue
                if not part:
                    return b"".join(parts)
                parts.append(part)
                size_bytes += len(part)
                until = time.monotonic() + _PIPE_SILENCE_S
    except OSError as error:
        raise InputError(f"{label}: cannot be read ({_one_line(error)})") from error
    raise InputError(f"{label}: is a pipe that gives more than {_MOST_PIPE_BYTES} bytes; pass a file")


def _decode(file: BinaryIO, label: str, convert: "Callable[[Image], Image]") -> "Image":
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{label}: decoding images needs Pillow; `{install_command('images')}`, or pass uint8 RGB arrays"
        ) from error
    except ImportError as error:
        raise explain_import(error, "images") or error from error

    def read_at(offset: int, size_bytes: int) -> bytes:
        file.seek(offset)
        return file.read(size_bytes)

    def open_rgb() -> Image.Image:
        if is_raw_photo(read_at):
            raise InputError(f"{label}: found {RAW_PHOTO}")
        file.seek(0)
        with Image.open(file, formats=known_formats()) as image:
            return convert(image)

    try:
        return _whatever_pillow_warns(open_rgb)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{label}: {_unread(file)}") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{label}: is too large to decode safely ({_one_line(error)}); "
            "scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except MemoryError as error:
        raise _no_memory(label) from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise InputError(f"{label}: is damaged or cut short ({_one_line(error)}); replace the file") from error


def decodes(kind: str) -> bool:
    """Whether images of this kind (`edgeclip.inputs.image_kinds`) can be decoded here; True without Pillow."""
    try:
        return kind in known_formats()
    except ImportError:
        return True


def known_formats() -> list[str]:
    """The formats read here that this Pillow has (it raises KeyError for others), HEIC by pillow-heif among them.

    Raises ImportError without Pillow.
    """
    from PIL import Image

    lacking = _lacking_formats()
    return [name for name in _FORMATS if name in Image.OPEN and name not in lacking]


@cache
def _lacking_formats() -> tuple[str, ...]:
    """The formats that Pillow lists and was built without; first adds HEIC where pillow-heif is installed."""
    from PIL import Image, features

    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return () if features.check("avif") else ("AVIF",)


def _convert(image: "Image", label: str, convert: "Callable[[Image], Image]") -> "Image":
    if 0 in image.size:
        raise InputError(f"{label}: found a PIL image of {image.width} x {image.height} pixels, wanted some")
    try:
        return _whatever_pillow_warns(lambda: convert(image))
    except MemoryError as error:
        raise _no_memory(label) from error
    except Exception as error:  # the file behind it may be closed or damaged, the mode without a conversion
        raise InputError(
            f"{label}: found a PIL image of mode {image.mode} that gives no RGB ({_one_line(error)})"
        ) from error


def _no_memory(label: str) -> MemoryError:
    return MemoryError(f"{label}: needs more memory than there is to decode")


def to_rgb(image: "Image") -> "Image":
    """A PIL image in mode RGB, as Pillow converts it."""
    image.load()
    if image.mode == "RGB":
        return image
    if isinstance(image.info.get("transparency"), bytes):
        image = image.copy()
        del image.info["transparency"]  # else Pillow warns that RGB drops it
    return image.convert("RGB")


def _whatever_pillow_warns(work: "Callable[[], Image]") -> "Image":
    """The result of `work()`, which is repeated without warnings where the user's filters made a warning an error.

    Warnings are not switched off from the start: until Python 3.14 `catch_warnings` changes the filters of all
    threads.
    """
    try:
        return work()
    except Warning:
        with _quiet_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()


def _unread(file: BinaryIO) -> str:
    """A message that says what a file is that no decoder could read."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        return "is empty (0 bytes)"
    if found := what_to_do(head):
        return f"found {found}"
    return f"not an image, or damaged at its beginning; convert it to one of {', '.join(known_formats())}"


def shown_path(path: str) -> str:
    """The path on one line; the middle of a long one is left out."""
    text = path if path.isprintable() else ascii(path)[1:-1]
    half = _SHOWN_CHARACTERS // 2
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:half]}...{text[-half:]}"


def _one_line(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
