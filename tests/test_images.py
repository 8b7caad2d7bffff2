"""What a user calls an image becomes RGB, or an InputError of one line that says why it does not."""

import base64
import contextlib
import io
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip import images
from edgeclip.errors import InputError, MissingExtraError
from edgeclip.images import decode_image, is_image

IMAGES = Path(__file__).parent / "data" / "images"
FILES = sorted(path.name for path in IMAGES.iterdir() if path.suffix in (".png", ".jpg"))
PNG = (IMAGES / "rgb_odd.png").read_bytes()  # 97 x 61
PIXELS = np.asarray(Image.open(io.BytesIO(PNG)))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one empty row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(3 * 100))) + chunk(b"IEND", b"")


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
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def data_uri(data: bytes, header: str = "data:image/png;base64,") -> str:
    return header + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "give",
    [
        str,
        Path,
        lambda path: path.read_bytes(),
        lambda path: bytearray(path.read_bytes()),
        lambda path: memoryview(path.read_bytes()),
        lambda path: memoryview(path.read_bytes()[::-1])[::-1],
        lambda path: data_uri(path.read_bytes()),
        lambda path: data_uri(path.read_bytes(), "DATA:image/x-anything;charset=utf-8;BASE64,"),
        lambda path: Image.open(io.BytesIO(path.read_bytes())),
    ],
    ids=[
        "str",
        "Path",
        "bytes",
        "bytearray",
        "memoryview",
        "reversed memoryview",
        "data URI",
        "odd data URI",
        "PIL image",
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_every_form_of_a_file_gives_pillows_rgb(name: str, give: Callable[[Path], Any]) -> None:
    with warnings.catch_warnings(), Image.open(IMAGES / name) as image:
        warnings.simplefilter("ignore")  # Pillow's about a palette's alpha
        expected = np.asarray(image.convert("RGB"))
    decoded = decode_image(give(IMAGES / name), label="image 3")
    assert isinstance(decoded, Image.Image)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), expected)
    decoded.resize((8, 8)).crop((0, 0, 4, 4))  # its file is closed and no longer needed


@pytest.mark.parametrize(
    "kind",
    [
        "PNG",
        "BMP",
        "DIB",
        "GIF",
        "ICO",
        "JPEG2000",
        "PPM",
        "TGA",
        "TIFF",
        "WEBP",
        "AVIF",
        "JPEG",
        "MPO",
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_listed_format_is_read(kind: str, mode: str, tmp_path: Path) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    if mode == "RGBA" and kind in ("JPEG", "MPO", "PPM"):
        pytest.skip("has no alpha")
    image = Image.fromarray(PIXELS).resize((48, 48)).convert(mode)
    path = tmp_path / "no_suffix"
    path.write_bytes(encoded(image, kind))
    decoded = decode_image(path, label="image 3")
    assert isinstance(decoded, Image.Image)
    assert (decoded.mode, decoded.size) == ("RGB", (48, 48))
    assert np.asarray(decoded).std() > 10
    decoded.crop((0, 0, 4, 4))


def test_base64_may_have_line_breaks() -> None:
    lines = base64.encodebytes(PNG).decode()
    assert lines.count("\n") > 10
    decoded = decode_image("data:image/png;base64," + lines, label="image 3")
    np.testing.assert_array_equal(np.asarray(decoded), PIXELS)


def test_alpha_is_dropped_and_not_composited() -> None:
    hidden = Image.new("RGBA", (2, 2), (10, 200, 30, 0))
    assert np.asarray(decode_image(hidden, label="image 3"))[0, 0].tolist() == [10, 200, 30]


def test_exif_orientation_is_not_applied() -> None:
    with Image.open(IMAGES / "exif_orientation.jpg") as image:
        assert image.getexif()[0x0112] != 1
        size = image.size
    decoded = decode_image(IMAGES / "exif_orientation.jpg", label="image 3")
    assert isinstance(decoded, Image.Image)
    assert decoded.size == size


def test_16_bit_grey_saturates() -> None:
    grey = Image.fromarray(np.array([[0, 254, 256, 40_000]], np.uint16))
    assert np.asarray(decode_image(grey, label="image 3"))[0, :, 0].tolist() == [0, 254, 255, 255]


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode_image(data, label="image 3"))[0, 0].tolist() == [255, 0, 0]


def test_an_rgb_image_and_an_array_pass_without_a_copy() -> None:
    image, array = Image.fromarray(PIXELS), np.asfortranarray(PIXELS)
    assert decode_image(image, label="image 3") is image
    assert decode_image(array, label="image 3") is array


def test_a_users_pil_image_is_left_as_it_was() -> None:
    palette = Image.fromarray(PIXELS).quantize(4)
    with Image.open(io.BytesIO(encoded(palette, "PNG", transparency=bytes([0, 90, 255, 255])))) as image:
        before = dict(image.info)
        assert isinstance(before["transparency"], bytes)
        decoded = decode_image(image, label="image 3")  # no warning, here an error, about the transparency
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(palette.convert("RGB")))
        assert image.mode == "P"
        assert image.info == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(PNG,))
    writer.start()
    decoded = decode_image(pipe, label="image 3")
    writer.join()
    np.testing.assert_array_equal(np.asarray(decoded), PIXELS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_that_nobody_writes_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose writer sends a byte and no more."""
    monkeypatch.setattr(images, "_PIPE_SILENCE_S", 0.1)
    os.mkfifo(pipe := tmp_path / "pipe")
    wanted = f"image 3 ({pipe}): is a pipe, and nothing was written into it for 0.1 s"
    assert refusal(pipe) == wanted
    with open(os.open(pipe, os.O_RDWR), "wb", buffering=0) as writer:
        writer.write(PNG[:1])
        assert refusal(pipe) == wanted


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_that_does_not_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MOST_PIPE_BYTES", 1000)
    os.mkfifo(pipe := tmp_path / "pipe")
    with open(os.open(pipe, os.O_RDWR), "wb", buffering=0) as writer:
        writer.write(bytes(2000))
        assert refusal(pipe) == f"image 3 ({pipe}): is a pipe that gives more than 1000 bytes; pass a file"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices here")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/null"])
def test_a_device_without_end_is_refused_at_its_beginning(device: str) -> None:
    assert refusal(device).startswith(f"image 3 ({device}): ")


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x.jpg") == f"image 3 ({tmp_path / 'x.jpg'}): no such file"
    assert refusal("photos/x.jpg") == "image 3 (photos/x.jpg): no such file"
    assert refusal("") == "image 3 (): no such file"


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder; pass the files in it" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    path.chmod(0)
    assert "cannot be opened (Permission denied)" in refusal(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.touch()
    assert refusal(path) == f"image 3 ({path}): is empty (0 bytes)"
    assert refusal(b"") == "image 3: is empty (0 bytes)"
    assert refusal("data:image/png;base64,") == "image 3: is empty (0 bytes)"


@pytest.mark.parametrize("data", [b"a red bicycle", bytes(100), PNG[:7], b"\xff\xd8"])
def test_what_is_not_an_image(data: bytes) -> None:
    message = refusal(data)
    assert message.startswith("image 3: not an image, or damaged at its beginning; convert it to one of JPEG")
    assert "EPS" not in message


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encoded(Image.new("RGB", (8, 8)), "EPS"), "an EPS drawing"),
        (encoded(Image.new("RGB", (8, 8)), "PDF"), "a PDF"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "a HEIC image"),
        (b"8BPS\x00\x01" + bytes(20), "a Photoshop document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "markup"),
        (b"\n<!DOCTYPE html><html>404</html>", "markup"),
    ],
)
def test_an_unsupported_format_is_named(data: bytes, found: str) -> None:
    assert refusal(data).startswith(f"image 3: found {found}")


@pytest.mark.parametrize("kind", ["SGI", "PCX", "IM", "MSP", "DDS", "ICNS", "XBM"])
def test_formats_beyond_the_list_are_not_opened(kind: str) -> None:
    mode = "1" if kind in ("MSP", "XBM") else "RGB"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are on their way out of Pillow
        data = encoded(Image.new(mode, (32, 32)), kind)
    refusal(data)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(name: str, tmp_path: Path) -> None:
    data = (IMAGES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: len(data) // 2])
    assert f"image 3 ({path}): is damaged or cut short (" in refusal(path)


@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere_is_an_input_error_or_nothing(name: str) -> None:
    data = (IMAGES / name).read_bytes()
    rng = np.random.default_rng(len(data))
    for _ in range(15):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(0, min(len(data), 400), 6)] = rng.integers(0, 256, 6)
        with contextlib.suppress(InputError):
            decode_image(damaged[: rng.integers(1, len(data) + 1)].tobytes(), label="image 3")


def test_a_decompression_bomb_is_refused_before_its_pixels_are_decoded() -> None:
    assert "is damaged or cut short" in refusal(png_header(300, 300)), "whoever decodes these finds one row"
    message = refusal(png_header(30_000, 30_000))
    assert "is too large to decode safely" in message
    assert "900000000 pixels" in message
    assert "scale it down" in message


def test_what_pillow_only_warns_about_is_taken_where_warnings_are_errors() -> None:
    with pillow_limit(PIXELS.shape[0] * PIXELS.shape[1] - 1):
        decoded = decode_image(PNG, label="image 3")
        filters = list(warnings.filters)
    np.testing.assert_array_equal(np.asarray(decoded), PIXELS)
    assert filters == list(warnings.filters)


def test_what_pillow_warns_about_is_passed_on_where_warnings_are_none() -> None:
    with pillow_limit(PIXELS.shape[0] * PIXELS.shape[1] - 1), pytest.warns(Image.DecompressionBombWarning):
        decode_image(PNG, label="image 3")


@pytest.mark.parametrize(
    "url",
    ["http://example.com/x.jpg", "https://example.com/x.jpg", "HTTPS://example.com/x", "s3://bucket/x.png"],
)
def test_a_url_is_not_fetched(url: str) -> None:
    assert refusal(url) == f"image 3 ({url}): URLs are not fetched; download it and pass its path or bytes"


def test_a_url_in_a_path_is_not_fetched() -> None:
    assert "URLs are not fetched" in refusal(Path("https://example.com/x.jpg"))


@pytest.mark.parametrize(
    "payload",
    ["!!!!", "iVBORw0KGgo", "iVBO=Rw0", "ümlaut==", data_uri(PNG)[-90:-3]],
    ids=lambda payload: payload[:9],
)
def test_damaged_base64(payload: str) -> None:
    message = refusal(f"data:image/png;base64,{payload}")
    assert message.startswith("image 3: its base64 is damaged (")
    assert message.endswith("; encode the file again")


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png",
        "data:image/png,%89PNG",
        "data:text/plain;base64,aGk=",
        "data:,",
        "data:" + "A" * 10_000,
    ],
)
def test_a_data_uri_of_something_else(uri: str) -> None:
    message = refusal(uri)
    assert message.startswith("image 3: found a data URI that begins 'data:")
    assert "wanted data:image/...;base64," in message


def test_base64_of_something_else() -> None:
    assert "found markup" in refusal(data_uri(b"<svg/>", "data:image/svg+xml;base64,"))


def test_base64_without_its_header_is_not_dumped() -> None:
    message = refusal(base64.b64encode(PNG).decode())
    assert "data:image/png;base64," in message
    assert len(message) < 300


def test_a_path_is_shown_on_one_line() -> None:
    assert refusal("two\nlines\x1b[31m.png") == r"image 3 (two\nlines\x1b[31m.png): no such file"
    assert "cannot be opened" in refusal("nul\0.png")


@pytest.mark.parametrize(
    ("array", "found", "advice"),
    [
        (np.zeros((4, 4, 3), np.float32), "(4, 4, 3) array of float32", "scale it to 0..255"),
        (np.full((4, 4, 3), np.nan), "array of float64", "it holds NaN"),
        (np.zeros((4, 4, 3), np.int64), "array of int64", "scale it to 0..255"),
        (np.zeros((4, 4, 3), bool), "array of bool", "scale it to 0..255"),
        (np.zeros((4, 4, 3), object), "array of object", "astype(numpy.uint8)"),
        (np.zeros((4, 4), np.uint8), " (4, 4)", "numpy.stack"),
        (np.zeros((2, 4, 4, 3), np.uint8), " (2, 4, 4, 3)", "one by one"),
        (np.zeros((4, 4, 4), np.uint8), " (4, 4, 4)", "array[:, :, :3]"),
        (np.zeros((4, 4, 1), np.uint8), " (4, 4, 1)", "array.repeat(3, axis=2)"),
        (np.zeros((3, 4, 4), np.uint8), " (3, 4, 4)", "array.transpose(1, 2, 0)"),
        (np.zeros((4, 4, 2), np.uint8), " (4, 4, 2)", "3 channels"),
        (np.zeros(5, np.uint8), " (5,)", "3 channels"),
        (np.zeros((0, 4, 3), np.uint8), " (0, 4, 3)", "it has no pixels"),
        (np.array(3, np.uint8), " ()", "3 channels"),
    ],
)
def test_other_arrays(array: NDArray[Any], found: str, advice: str) -> None:
    message = refusal(array)
    assert message.startswith("image 3: found a ")
    assert found in message
    assert "wanted uint8 RGB (height, width, 3); " in message
    assert advice in message


def test_pil_images_without_rgb() -> None:
    assert "found a PIL image of 0 x 5 pixels" in refusal(Image.new("RGB", (0, 5)))
    assert "mode La that gives no RGB (" in refusal(Image.new("La", (5, 5)))
    closed = Image.open(IMAGES / "rgb_odd.png")
    closed.close()
    assert "found a PIL image of mode RGB that gives no RGB (" in refusal(closed)
    with Image.open(io.BytesIO(PNG[: len(PNG) // 2])) as cut:
        assert "truncated" in refusal(cut)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "None"),
        (3, "int"),
        (["x.png"], "list"),
        (np.uint8(3), "numpy.uint8"),
        (io.BytesIO(PNG), "_io.BytesIO (pass what its read() gives)"),
    ],
)
def test_what_is_none_of_these(value: object, found: str) -> None:
    assert refusal(value) == (
        f'image 3: found {found}, wanted a path, bytes, a "data:image/...;base64," string, '
        "a PIL image or a uint8 RGB array"
    )


@pytest.mark.parametrize("image", [IMAGES / "rgb_odd.png", str(IMAGES / "rgb_odd.png"), PNG, data_uri(PNG)])
def test_decoding_without_pillow_names_the_extra(image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"^image 3.*pip install edgeclip\[images\]"):
        decode_image(image, label="image 3")


def test_what_needs_no_pillow_is_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, module, None)
    assert decode_image(PIXELS, label="image 3") is PIXELS
    assert refusal("photos/x.jpg") == "image 3 (photos/x.jpg): no such file"
    assert "URLs are not fetched" in refusal("https://example.com/x.jpg")
    assert "found None" in refusal(None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x.png", True),
        (Path("x.png"), True),
        (PNG, True),
        (bytearray(PNG), True),
        (memoryview(PNG), True),
        (Image.new("L", (2, 2)), True),
        (PIXELS, True),
        (np.zeros((4, 4)), True),  # a bad one, and to be refused as one
        (PIXELS[np.newaxis], False),
        ([PIXELS], False),
        ((), False),
        (None, False),
        (3, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_image_or_several(value: object, expected: bool) -> None:
    assert is_image(value) is expected
