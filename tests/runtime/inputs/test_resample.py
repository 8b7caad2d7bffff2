"""`resample.resize` gives Pillow's pixels to the last bit, whole or in part, at the cost of the part."""

import tracemalloc

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip.errors import InputError
from edgeclip.inputs import resample
from edgeclip.manifest import Interpolation

METHODS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
HAS_PILLOW_13_ORDER = int(PIL.__version__.split(".")[0]) >= 13


def pillow(pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: Interpolation) -> NDArray[np.uint8]:
    """Pillow's resize, one axis at a time in the order that Pillow 13 has."""
    image, method = Image.fromarray(pixels), METHODS[interpolation]
    is_rows_first = resample.rows_first(image.size, size)
    halfway = (image.width, size[1]) if is_rows_first else (size[0], image.height)
    return np.asarray(image.resize(halfway, method).resize(size, method))


def noise(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Black and white half the time: that is what overshoots and clips."""
    if rng.integers(2):
        return rng.integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("interpolation", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_pillow_on_random_sizes_and_windows(seed: int, interpolation: Interpolation) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(40):
        width, height, to_width, to_height = (int(side) for side in np.exp(rng.uniform(0, 5.6, 4)))
        pixels = noise(rng, width, height)
        expected = pillow(pixels, (to_width, to_height), interpolation)
        case = f"{width} x {height} -> {to_width} x {to_height}"
        found = resample.resize(pixels, (to_width, to_height), interpolation)
        np.testing.assert_array_equal(found, expected, err_msg=case)

        left, top = int(rng.integers(to_width)), int(rng.integers(to_height))
        right, bottom = int(rng.integers(left, to_width)) + 1, int(rng.integers(top, to_height)) + 1
        box = (left, top, right, bottom)
        found = resample.resize(pixels, (to_width, to_height), interpolation, box)
        np.testing.assert_array_equal(found, expected[top:bottom, left:right], err_msg=f"{case}, box {box}")


@pytest.mark.skipif(not HAS_PILLOW_13_ORDER, reason="this Pillow takes the axes in another order")
@pytest.mark.parametrize("interpolation", METHODS)
def test_equals_pillow_13_in_one_call(interpolation: Interpolation) -> None:
    rng = np.random.default_rng(7)
    for _ in range(40):
        width, height, to_width, to_height = (int(side) for side in np.exp(rng.uniform(0, 5.6, 4)))
        pixels = noise(rng, width, height)
        expected = Image.fromarray(pixels).resize((to_width, to_height), METHODS[interpolation])
        found = resample.resize(pixels, (to_width, to_height), interpolation)
        np.testing.assert_array_equal(found, np.asarray(expected), err_msg=f"{pixels.shape} -> {expected.size}")


@pytest.mark.parametrize("interpolation", METHODS)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1, 1), (64, 64)),
        ((1, 5), (5, 1)),
        ((5, 1), (1, 5)),
        ((2, 9000), (16, 16)),
        ((9000, 2), (16, 16)),
        ((1, 3000), (2, 6000)),
        ((97, 61), (97, 61)),
        ((97, 61), (97, 13)),
        ((97, 61), (13, 61)),
        ((1000, 750), (683, 512)),
        ((300, 2000), (64, 426)),
    ],
)
def test_equals_pillow_on_the_odd_ones(
    source: tuple[int, int], target: tuple[int, int], interpolation: Interpolation
) -> None:
    pixels = noise(np.random.default_rng(3), *source)
    found = resample.resize(pixels, target, interpolation)
    np.testing.assert_array_equal(found, pillow(pixels, target, interpolation))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, channels), np.uint8)
    together = resample.resize(pixels, (17, 90), "bicubic")
    apart = [resample.resize(pixels[:, :, [channel]], (17, 90), "bicubic") for channel in range(channels)]
    np.testing.assert_array_equal(together, np.concatenate(apart, axis=2))


def test_strides_do_not_matter_and_the_input_is_left_alone() -> None:
    pixels = noise(np.random.default_rng(1), 50, 70)
    strided = np.ascontiguousarray(pixels.transpose(2, 1, 0)).transpose(2, 1, 0)
    strided.flags.writeable = False
    expected = resample.resize(pixels, (21, 33), "bicubic")
    np.testing.assert_array_equal(resample.resize(strided, (21, 33), "bicubic"), expected)
    reversed_twice = resample.resize(pixels[:, ::-1], (21, 33), "bicubic")[:, ::-1]
    np.testing.assert_array_equal(reversed_twice, expected)


@pytest.mark.parametrize("size", [(50, 70), (50, 35), (25, 70)])
def test_the_result_is_a_new_contiguous_array(size: tuple[int, int]) -> None:
    pixels = noise(np.random.default_rng(1), 50, 70)
    resized = resample.resize(pixels, size, "bicubic")
    assert resized.flags.c_contiguous
    assert resized.flags.writeable
    assert not np.shares_memory(resized, pixels)


@pytest.mark.parametrize(("source", "target"), [((1, 100_000), (512, 51_200_000)), ((100_000, 1), (51_200_000, 512))])
def test_a_window_of_an_enormous_output_costs_the_window(source: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = noise(np.random.default_rng(2), *source)
    left, top = (target[0] - 512) // 2, (target[1] - 512) // 2
    tracemalloc.start()
    try:
        resized = resample.resize(pixels, target, "bicubic", (left, top, left + 512, top + 512))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert resized.shape == (512, 512, 3)
    assert peak_bytes < 16e6, "the whole output has 79 GB"


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ((100, 100), (50, 50), False),
        ((100, 200), (50, 100), False),  # 100 lost is not more than twice 50
        ((100, 201), (50, 100), True),
        ((100, 200), (100, 199), True),
        ((37, 411), (64, 710), False),
        ((37, 411), (6, 64), True),
        ((10, 11), (90, 11), False),  # nothing lost
    ],
)
def test_rows_go_first_where_the_height_loses_more_than_twice_the_width(
    source: tuple[int, int], target: tuple[int, int], expected: bool
) -> None:
    assert resample.rows_first(source, target) is expected


@pytest.mark.parametrize(
    "box",
    [(0, 0, 0, 4), (0, 0, 5, 4), (-1, 0, 4, 4), (0, 0, 4, 5), (3, 0, 2, 4), (0, -1, 4, 4), (0, 2, 4, 2)],
)
def test_a_box_outside_or_empty_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match=r"box .* wanted one that holds pixels of 4 x 4"):
        resample.resize(np.zeros((8, 8, 3), np.uint8), (4, 4), "bicubic", box)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4)])
def test_an_empty_output_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"wanted one that holds pixels of {size[0]} x {size[1]}"):
        resample.resize(np.zeros((8, 8, 3), np.uint8), size, "bicubic")


@pytest.mark.parametrize(
    "pixels", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)], ids=str
)
def test_other_arrays_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="wanted uint8"):
        resample.resize(pixels, (4, 4), "bicubic")


def test_an_unknown_interpolation_is_refused() -> None:
    with pytest.raises(InputError, match="'lanczos', wanted bicubic or bilinear"):
        resample.resize(np.zeros((8, 8, 3), np.uint8), (4, 4), "lanczos")  # type: ignore[arg-type]


def test_torch_and_pillow_differ() -> None:
    """Pillow chooses the order of the axes and has finer weights, so one cannot stand for the other."""
    rng = np.random.default_rng(3)
    pixels = noise(rng, 90, 310)
    found = resample.resize_like_torch(pixels, (84, 308))
    assert (found != resample.resize(pixels, (84, 308), "bicubic")).any()
    with pytest.raises(InputError, match="found a size of 0 x 4 pixels"):
        resample.resize_like_torch(pixels, (0, 4))
    with pytest.raises(InputError, match="wanted uint8"):
        resample.resize_like_torch(pixels[..., 0], (4, 4))
