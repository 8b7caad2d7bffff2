"""What a user calls an image becomes RGB, in every form and format, and without Pillow where none is needed."""

import base64
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip.errors import MissingExtraError
from edgeclip.host.installation import install_command
from edgeclip.inputs.images import decode_image, is_image
from tests.scenes.image_inputs import FILES, IMAGES, PIXELS, PNG, data_uri, encoded, pillow_limit, refusal


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


def test_what_pillow_only_warns_about_is_taken_where_warnings_are_errors() -> None:
    with pillow_limit(PIXELS.shape[0] * PIXELS.shape[1] - 1):
        decoded = decode_image(PNG, label="image 3")
        filters = list(warnings.filters)
    np.testing.assert_array_equal(np.asarray(decoded), PIXELS)
    assert filters == list(warnings.filters)


def test_what_pillow_warns_about_is_passed_on_where_warnings_are_none() -> None:
    with pillow_limit(PIXELS.shape[0] * PIXELS.shape[1] - 1), pytest.warns(Image.DecompressionBombWarning):
        decode_image(PNG, label="image 3")


@pytest.mark.parametrize("image", [IMAGES / "rgb_odd.png", str(IMAGES / "rgb_odd.png"), PNG, data_uri(PNG)])
def test_decoding_without_pillow_names_the_extra(image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"^image 3.*" + re.escape(install_command("images"))):
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
