"""What is no image, or none that may be read, is an InputError of one line that says why."""

import base64
import contextlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip.errors import InputError
from edgeclip.inputs import images
from edgeclip.inputs.images import decode_image
from tests.scenes.image_inputs import FILES, IMAGES, PNG, data_uri, encoded, refusal
from tests.scenes.permissions import bound_by_permissions


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one empty row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(3 * 100))) + chunk(b"IEND", b"")


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


@bound_by_permissions
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


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1}, {254: 3, 271: "Kodak"}])
def test_a_raw_photo_is_not_its_thumbnail(tags: dict[int, object]) -> None:
    """TIFF, as DNG, NEF and ARW are: Pillow opens the thumbnail that comes first."""
    image = Image.new("RGB", (8, 8))
    told = "image 3: found a camera's raw file, of which only a thumbnail can be read; develop it to JPEG"
    assert refusal(encoded(image, "TIFF", tiffinfo=tags)) == told
    assert refusal(b"II*\0\x10\0\0\0CR\2\0" + bytes(60)) == told
    for plain in ({254: 0}, {254: 2}, {271: "Kodak"}):
        decode_image(encoded(image, "TIFF", tiffinfo=plain), label="image")


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
