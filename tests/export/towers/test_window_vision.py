"""The vision tower gives the official code's image features, and every known mistake is seen."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgeclip_export.towers.window_vision import WindowVisionTower
from edgeclip_export.towers.window_vision_fold import fold_window_vision
from tests.scenes import v4_golden as golden
from tests.scenes.v4_golden import CONFIG, HIDDEN, IMAGE, IMAGES, largest

# A mistake is seen when a feature is this far off; the smallest here, a window of another size, is 100 times it.
SEEN = 10 * HIDDEN


@pytest.fixture(scope="module", autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def tower() -> WindowVisionTower:
    return golden.vision()


@pytest.mark.parametrize("image", IMAGES)
def test_image_features_equal_the_reference(tower: WindowVisionTower, image: int) -> None:
    assert difference(tower, golden.vision_inputs(image), image) <= HIDDEN


def test_images_of_one_grid_do_not_disturb_each_other(tower: WindowVisionTower) -> None:
    pixels, *geometry = golden.vision_inputs(2)
    features = tower(torch.cat((255 - pixels, pixels)), *geometry)
    assert largest(features[1], IMAGE["2/expected_image_features"]) <= HIDDEN
    assert largest(features[0], IMAGE["2/expected_image_features"]) > SEEN


def test_the_order_of_patches_in_a_window_does_not_matter(tower: WindowVisionTower) -> None:
    pixels, positions, windows, _ = golden.vision_inputs(2)
    turned = golden.stack_windows([window[window >= 0].flip(0) for window in windows])
    assert difference(tower, [pixels, positions, *turned], 2) <= HIDDEN


def one_window(inputs: list[Tensor]) -> None:
    inputs[2:] = golden.stack_windows([torch.arange(len(inputs[1]))])


def half_windows(inputs: list[Tensor]) -> None:
    inputs[2:] = golden.stack_windows([half for window in inputs[2] for half in window[window >= 0].chunk(2)])


def patches_by_rows(inputs: list[Tensor]) -> None:
    columns = int(inputs[1][:, 1].max()) + 1
    order = (inputs[1][:, 0] * columns + inputs[1][:, 1]).argsort()
    inputs[0] = inputs[0][:, order]


def swapped_axes(inputs: list[Tensor]) -> None:
    inputs[1] = inputs[1].flip(1)


@pytest.mark.parametrize("mistake", [one_window, half_windows, patches_by_rows, swapped_axes])
def test_a_wrong_input_is_seen(tower: WindowVisionTower, mistake: Callable[[list[Tensor]], None]) -> None:
    inputs = golden.vision_inputs(2)
    mistake(inputs)
    assert difference(tower, inputs, 2) > SEEN


@pytest.mark.parametrize("full_blocks", [(), (0, 1, 2, 3), (0, 2)])
def test_other_full_blocks_are_seen(full_blocks: tuple[int, ...]) -> None:
    config = replace(CONFIG.vision, full_blocks=full_blocks)
    weights = fold_window_vision(config, golden.MEAN, golden.STD, golden.read)
    wrong = golden.load(WindowVisionTower(config), weights)
    assert difference(wrong, golden.vision_inputs(2), 2) > SEEN


def test_forgotten_normalisation_is_seen() -> None:
    weights = fold_window_vision(CONFIG.vision, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), golden.read)
    wrong = golden.load(WindowVisionTower(CONFIG.vision), weights)
    assert difference(wrong, golden.vision_inputs(2), 2) > SEEN


def difference(tower: torch.nn.Module, inputs: list[Tensor], image: int) -> float:
    return largest(tower(*inputs)[0], IMAGE[f"{image}/expected_image_features"])
