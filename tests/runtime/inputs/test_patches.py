"""Images of any size become the reference's patches: 0 differing values, the same windows and rotary positions."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip.errors import InputError
from edgeclip.inputs.patches import Grid, cut_patches, group_windows, patch_positions, resized_size
from tests.scenes import page_bundle

DATA = Path(__file__).parents[2] / "data" / "jina_embeddings_v4"
FACTS = replace(page_bundle.FACTS, prompt_ids=(1, 2, 3), image_id=2)
IMAGES = range(7)


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[Any]]:
    with np.load(DATA / "image.npz") as arrays:
        return dict(arrays)


def picture(index: int) -> Path:
    return DATA / "pictures" / f"{index}.png"


@pytest.mark.parametrize("index", IMAGES)
def test_patches_equal_the_reference(golden: dict[str, NDArray[Any]], index: int) -> None:
    patches, grid = cut_patches(str(picture(index)), FACTS)
    assert (1, grid.rows, grid.columns) == tuple(golden[f"{index}/grid_thw"])
    np.testing.assert_array_equal(patches, golden[f"{index}/pixel_values"])


def test_a_call_can_have_its_own_limit_of_pixels(golden: dict[str, NDArray[Any]]) -> None:
    patches, grid = cut_patches(picture(6), FACTS, max_pixels=15_680)
    assert (1, grid.rows, grid.columns) == tuple(golden["maxpix/grid_thw"])
    np.testing.assert_array_equal(patches, golden["maxpix/pixel_values"])
    assert cut_patches(picture(6), FACTS, max_pixels=10_000_000)[1] == Grid(rows=90, columns=70)


def test_sizes_equal_the_reference(golden: dict[str, NDArray[Any]]) -> None:
    for height, width, to_height, to_width in golden["smart_resize"].tolist():
        found = resized_size((width, height), FACTS, FACTS.max_pixels)
        assert found == (to_width, to_height), f"{width} x {height}"


@pytest.mark.parametrize("index", IMAGES)
def test_windows_equal_the_reference(golden: dict[str, NDArray[Any]], index: int) -> None:
    """The reference orders tokens by window; a token is four patches."""
    grid = Grid(rows=int(golden[f"{index}/grid_thw"][1]), columns=int(golden[f"{index}/grid_thw"][2]))
    windows, places = group_windows(grid, FACTS)
    tokens = golden[f"{index}/window_index"]
    np.testing.assert_array_equal(windows[windows >= 0], (tokens[:, None] * 4 + np.arange(4)).ravel())
    np.testing.assert_array_equal(np.cumsum((windows >= 0).sum(1)), golden[f"{index}/cu_window_seqlens"][1:])
    np.testing.assert_array_equal(windows.ravel()[places], np.arange(grid.rows * grid.columns))
    is_filled = windows >= 0
    assert (is_filled[:, :-1] >= is_filled[:, 1:]).all()  # what is missing is at the end
    assert is_filled.all(axis=1).any()  # no wider than the largest window


def test_positions_are_the_places_of_the_patches() -> None:
    """A picture in which every pixel says where it is."""
    pixels = np.zeros((56, 84, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(56)[:, None] // 14, np.arange(84) // 14
    patches, grid = cut_patches(pixels, FACTS)
    assert grid == Grid(rows=4, columns=6)
    positions = patch_positions(grid, FACTS)
    by_channel = patches.reshape(len(patches), 3, 14 * 14)
    np.testing.assert_array_equal(by_channel[:, 0], np.broadcast_to(positions[:, :1], (24, 196)))
    np.testing.assert_array_equal(by_channel[:, 1], np.broadcast_to(positions[:, 1:], (24, 196)))
    assert positions[:5].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "LA", "P", "I;16", "1"])
def test_every_mode_is_what_pillow_calls_rgb(mode: str) -> None:
    grey = Image.fromarray(np.arange(0, 70 * 90 * 9, 9, dtype=np.uint16).reshape(70, 90))
    image = grey if mode == "I;16" else Image.open(picture(2)).convert(mode)
    found, _ = cut_patches(image, FACTS)
    wanted, _ = cut_patches(np.asarray(image.convert("RGB")), FACTS)
    np.testing.assert_array_equal(found, wanted)


def test_what_the_reference_refuses_is_refused() -> None:
    for size, message in (
        ((27, 500), "page: is 27 x 500 pixels, wanted 28 or more a side; scale it up"),
        ((500, 27), "page: is 500 x 27 pixels, wanted 28 or more a side; scale it up"),
        ((28, 5601), "page: is 28 x 5601 pixels, wanted no side more than 200 times the other; crop it"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            cut_patches(np.zeros((size[1], size[0], 3), np.uint8), FACTS, label="page")
    assert resized_size((28, 5600), FACTS, 602_112) == (28, 5600)
    for limit in (783, 0, -1, 1e6, True, "1000"):
        with pytest.raises(InputError, match="max_pixels is .*, wanted an int from 784 on"):
            cut_patches(picture(0), FACTS, max_pixels=limit)  # type: ignore[arg-type]


def test_no_side_is_shorter_than_a_token() -> None:
    """A long image under a low limit: its short side would be rounded down to nothing."""
    assert resized_size((5600, 28), FACTS, 15_680) == (1764, 28)
    assert resized_size((30, 30), FACTS, 784) == (56, 56)  # the lower limit is the model's, as in the reference
