"""Pixels equal the reference's to the last bit, with Pillow and without it.

data/make_image_goldens.py says where the expected values come from.
"""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.host.installation import install_command
from edgeclip.inputs import square
from edgeclip.inputs.square import normalize_pixels, preprocess_image, resized_size
from edgeclip.manifest import ImageFacts, Interpolation, ResizeMode

IMAGES = Path(__file__).parents[2] / "data" / "images"
EXPECTED: dict[str, dict[str, str]] = json.loads((IMAGES / "expected.json").read_text())
SIZES = (64, 512)


def facts(size_px: int, mode: ResizeMode = "shortest", interpolation: Interpolation = "bicubic") -> ImageFacts:
    return ImageFacts(
        kind="square",
        size_px=size_px,
        resize_mode=mode,
        interpolation=interpolation,
        fill_color=0,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )


@cache
def expected_arrays() -> dict[str, NDArray[np.uint8]]:
    with np.load(IMAGES / "expected.npz") as arrays:
        return dict(arrays)


def sha256(array: NDArray[np.uint8] | NDArray[np.float32]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


@cache
def rgb_array(name: str) -> NDArray[np.uint8]:
    """What the reference decoded `name` to; skips where that needs a decoder that this Pillow has not."""
    stored = expected_arrays().get(f"{name}|decoded")
    if stored is None:
        with Image.open(IMAGES / name) as image:
            stored = np.asarray(image.convert("RGB"))
    if sha256(stored) != EXPECTED[name]["decoded"]:
        assert name.endswith(".jpg"), "PNG is lossless: the conversion to RGB differs"
        pytest.skip("this Pillow's JPEG decoder gives other pixels")
    return stored


def hide_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, module, None)


def check_against_golden(name: str, size_px: int, pixels: NDArray[np.uint8]) -> None:
    assert pixels.shape == (size_px, size_px, 3)
    assert pixels.dtype == np.uint8
    if size_px == 64:
        np.testing.assert_array_equal(pixels, expected_arrays()[f"{name}|64"])
    assert sha256(normalize_pixels(pixels, facts(size_px))) == EXPECTED[name][str(size_px)]


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_gives_the_reference_pixels(name: str, size_px: int) -> None:
    with Image.open(IMAGES / name) as image:
        if name.endswith(".jpg") and sha256(np.asarray(image.convert("RGB"))) != EXPECTED[name]["decoded"]:
            pytest.skip("this Pillow's JPEG decoder gives other pixels")
    check_against_golden(name, size_px, preprocess_image(IMAGES / name, facts(size_px)))


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("name", EXPECTED)
def test_an_array_gives_the_reference_pixels(name: str, size_px: int) -> None:
    check_against_golden(name, size_px, preprocess_image(rgb_array(name), facts(size_px)))


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("name", EXPECTED)
def test_an_array_gives_the_reference_pixels_without_pillow(
    name: str, size_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = rgb_array(name)
    hide_pillow(monkeypatch)
    check_against_golden(name, size_px, preprocess_image(array, facts(size_px)))


@pytest.mark.parametrize("has_pillow", [True, False])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["longest", "squash"])
@pytest.mark.parametrize("name", ["rgb_odd.png", "rgb_tall.png"])
def test_other_modes_give_the_reference_pixels(
    name: str,
    mode: ResizeMode,
    interpolation: Interpolation,
    has_pillow: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    array = rgb_array(name)
    if not has_pillow:
        hide_pillow(monkeypatch)
    pixels = preprocess_image(array, facts(64, mode, interpolation))
    np.testing.assert_array_equal(pixels, expected_arrays()[f"{name}|{mode}|{interpolation}"])


def test_every_shape_gives_the_same_with_pillow_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    cases = []
    for _ in range(60):
        width, height = (int(side) for side in np.exp(rng.uniform(0, 6, 2)))
        mode = cast(ResizeMode, rng.choice(["shortest", "longest", "squash"]))
        array = rng.integers(0, 256, (height, width, 3), np.uint8)
        cases.append((array, facts(int(rng.integers(1, 70)), mode)))
    with_pillow = [preprocess_image(array, wanted) for array, wanted in cases]
    hide_pillow(monkeypatch)
    for (array, wanted), expected in zip(cases, with_pillow, strict=True):
        case = f"{array.shape}, {wanted.resize_mode} to {wanted.size_px}"
        np.testing.assert_array_equal(preprocess_image(array, wanted), expected, err_msg=case)


@pytest.mark.parametrize("shape", [(3, 400, 3), (400, 3, 3), (1, 17, 3)])
def test_extreme_shapes_give_what_pillow_gives(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(6).integers(0, 256, shape, np.uint8)
    windowed = preprocess_image(array, facts(32))
    monkeypatch.setattr(square, "_EXTREME_CROPS", 1e9)
    np.testing.assert_array_equal(windowed, preprocess_image(array, facts(32)))


@pytest.mark.parametrize("kind", ["array", "PIL image"])
@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)])
def test_a_line_of_pixels_needs_little_memory(size: tuple[int, int], kind: str) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    tracemalloc.start()
    try:
        pixels = preprocess_image(image if kind == "PIL image" else np.asarray(image), facts(512))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pixels.shape == (512, 512, 3)
    assert peak_bytes < 16e6, "resized as a whole it has 79 GB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "L"])
def test_rgb_comes_before_the_resize(mode: str) -> None:
    with Image.open(IMAGES / "rgba.png") as image:
        other = image.convert(mode) if mode != "CMYK" else image.convert("RGB").convert(mode)
    expected = preprocess_image(np.asarray(other.convert("RGB")), facts(64))
    np.testing.assert_array_equal(preprocess_image(other, facts(64)), expected)


@pytest.mark.parametrize(
    ("source", "mode", "expected"),
    [
        ((643, 480), "shortest", (85, 64)),  # 85.73 goes down
        ((480, 643), "shortest", (64, 85)),
        ((64, 64), "shortest", (64, 64)),
        ((64, 900), "shortest", (64, 900)),
        ((1, 100_000), "shortest", (64, 6_400_000)),
        ((97, 61), "longest", (64, 40)),  # 40.25
        ((37, 411), "longest", (6, 64)),  # 5.76
        ((1, 1000), "longest", (1, 64)),  # 0.064 would leave nothing
        ((97, 61), "squash", (64, 64)),
    ],
)
def test_resized_size(source: tuple[int, int], mode: ResizeMode, expected: tuple[int, int]) -> None:
    assert resized_size(source, facts(64, mode)) == expected


@pytest.mark.parametrize(("width", "left"), [(65, 0), (66, 1), (67, 2), (69, 2), (71, 4)])
@pytest.mark.parametrize("has_pillow", [True, False])
def test_half_a_pixel_of_crop_goes_to_the_even_side(
    width: int, left: int, has_pillow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(8).integers(0, 256, (64, width, 3), np.uint8)
    if not has_pillow:
        hide_pillow(monkeypatch)
    np.testing.assert_array_equal(preprocess_image(array, facts(64)), array[:, left : left + 64])
    turned = preprocess_image(array.swapaxes(0, 1), facts(64))
    np.testing.assert_array_equal(turned, array.swapaxes(0, 1)[left : left + 64])


def test_an_odd_pixel_of_filling_goes_right_and_below() -> None:
    grey = dataclasses.replace(facts(8, "longest"), fill_color=7)
    wide = preprocess_image(np.full((3, 8, 3), 200, np.uint8), grey)
    assert (wide[:, 0, 0] == [7, 7, 200, 200, 200, 7, 7, 7]).all()
    tall = preprocess_image(np.full((8, 3, 3), 200, np.uint8), grey)
    assert (tall[0, :, 0] == [7, 7, 200, 200, 200, 7, 7, 7]).all()


@pytest.mark.parametrize("has_pillow", [True, False])
def test_pixels_are_a_new_array_and_the_image_is_left_alone(
    has_pillow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(9).integers(0, 256, (64, 64, 3), np.uint8)
    before = array.copy()
    if not has_pillow:
        hide_pillow(monkeypatch)
    pixels = preprocess_image(array, facts(64))
    pixels[:] = 0
    np.testing.assert_array_equal(array, before)


def test_arrays_of_any_strides_are_taken() -> None:
    array = np.random.default_rng(10).integers(0, 256, (90, 70, 3), np.uint8)
    strided = np.asfortranarray(array)
    strided.flags.writeable = False
    np.testing.assert_array_equal(preprocess_image(strided, facts(32)), preprocess_image(array, facts(32)))


def test_the_label_names_the_image() -> None:
    with pytest.raises(InputError, match=r"^image 3: found a \(4, 4, 3\) array of float64"):
        preprocess_image(np.zeros((4, 4, 3)), facts(8), label="image 3")  # type: ignore[arg-type]


def test_a_file_without_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_pillow(monkeypatch)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("images"))):
        preprocess_image(IMAGES / "gray.png", facts(64))


def test_normalized_batches_are_their_images() -> None:
    batch = np.random.default_rng(11).integers(0, 256, (2, 5, 4, 3), np.uint8)
    tensor = normalize_pixels(batch, facts(5))
    assert tensor.shape == (2, 3, 5, 4)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor[1], normalize_pixels(batch[1], facts(5)))


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 3), np.uint8)],
    ids=str,
)
def test_only_pixels_are_normalized(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="wanted uint8"):
        normalize_pixels(pixels, facts(4))


def test_importing_loads_no_pillow() -> None:
    code = "import sys, edgeclip.inputs.square; sys.exit('PIL' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
