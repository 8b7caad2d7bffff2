"""Each mistake that a runtime can make with jina-embeddings-v4 is seen: it moves vectors beyond the tolerance."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip import Encoder
from edgeclip.families.family import Item
from edgeclip.inputs.patches import Grid, group_windows, patch_positions
from edgeclip_export import export_checkpoint
from tests.conftest import made_once
from tests.scenes.v4_golden import CHECKPOINT, FOLDER, IMAGE, META, SINGLE, TEXT

TASK = "retrieval.passage"
# A picture of several windows, none of them full at the edges, whose sides must be resized.
INDEX, SIZE = 4, (84, 308)
PICTURE = FOLDER / "pictures" / f"{INDEX}.png"
Wrong = Callable[[Encoder], NDArray[np.float32]]


@pytest.fixture(scope="module")
def opened(shared: Path) -> Iterator[Encoder]:
    folder = made_once(
        shared / "v4-cpu-None", lambda out: export_checkpoint(CHECKPOINT, out, target="cpu", task=None)
    )
    with Encoder.open(folder, device="cpu") as encoder:
        yield encoder


def change_image(change: Callable[[Item, Encoder], dict[str, Any]]) -> Wrong:
    """The vector of the picture when arrays of its item for the vision graph are changed."""

    def run(encoder: Encoder) -> NDArray[np.float32]:
        item = encoder.prepare_image(PICTURE, task=TASK)
        changed: NDArray[np.float32] = encoder.run_items(
            [replace(item, arrays={**item.arrays, **change(item, encoder)}, key=None)]
        )[0]
        return changed

    return run


def change_prompt(change: Callable[[Item], dict[str, Any]], *, adapter: str | None = "retrieval") -> Wrong:
    """The vector of the picture when arrays of its item for the text graph are changed."""

    def run(encoder: Encoder) -> NDArray[np.float32]:
        (item,) = encoder.run_batch([encoder.prepare_image(PICTURE, task=TASK)])
        assert isinstance(item, Item)
        changed = replace(item, arrays={**item.arrays, **change(item)}, adapter=adapter)
        vector: NDArray[np.float32] = encoder.run_items([changed])[0]
        return vector

    return run


def resized_by_pillow(method: Image.Resampling) -> Wrong:
    def run(encoder: Encoder) -> NDArray[np.float32]:
        with Image.open(PICTURE) as image:
            return encoder.encode_image(image.resize(SIZE, method), task=TASK)

    return run


def grid_of(item: Item) -> Grid:
    rows, columns = item.arrays["patch_positions"][-1] + 1
    return Grid(rows=int(rows), columns=int(columns))


def window_of(side_px: int) -> Callable[[Item, Encoder], dict[str, Any]]:
    def change(item: Item, encoder: Encoder) -> dict[str, Any]:
        facts = replace(encoder.manifest.need_patches(), window_px=side_px)
        windows, places = group_windows(grid_of(item), facts)
        return {"windows": windows, "window_places": places}

    return change


def in_raster_order(item: Item, encoder: Encoder) -> dict[str, Any]:
    """The patches row by row, told as if they came token by token."""
    grid = grid_of(item)
    places = patch_positions(grid, encoder.manifest.need_patches()) @ [grid.columns, 1]
    ordered = np.empty_like(item.arrays["pixel_values"])
    ordered[places] = item.arrays["pixel_values"]
    return {"pixel_values": ordered}


MISTAKES: dict[str, Wrong] = {
    "the whole prompt is pooled": change_prompt(lambda item: {"pool_mask": np.ones_like(item.arrays["pool_mask"])}),
    "the image's tokens alone are pooled": change_prompt(
        lambda item: {"pool_mask": (item.arrays["image_places"] >= 0).astype(np.float32)}
    ),
    "positions have one dimension": change_prompt(
        lambda item: {"position_ids": np.tile(np.arange(item.tokens), (3, 1))}
    ),
    "there is no adapter": change_prompt(lambda item: {}, adapter=None),
    "the adapter is another": change_prompt(lambda item: {}, adapter="code"),
    "attention is full in every layer": change_image(window_of(28 * 28)),
    "windows are smaller": change_image(window_of(56)),
    "patches come row by row": change_image(in_raster_order),
    "columns and rows are exchanged": change_image(
        lambda item, _: {"patch_positions": item.arrays["patch_positions"][:, ::-1].copy()}
    ),
    "Pillow resizes": resized_by_pillow(Image.Resampling.BICUBIC),
    "the resize is bilinear": resized_by_pillow(Image.Resampling.BILINEAR),
}


def test_without_a_mistake(opened: Encoder) -> None:
    wanted = IMAGE[f"{INDEX}/retrieval/expected_single"]
    unchanged = (change_prompt(lambda item: {}), change_image(lambda item, _: {}), change_image(window_of(112)))
    for run in unchanged:
        assert np.abs(run(opened) - wanted).max() <= SINGLE


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(opened: Encoder, mistake: str) -> None:
    difference = np.abs(MISTAKES[mistake](opened) - IMAGE[f"{INDEX}/retrieval/expected_single"]).max()
    assert difference > 5 * SINGLE, f"{mistake}: {difference:.1e}"


@pytest.mark.parametrize("task", ["retrieval.query", "code.passage"])
def test_a_wrong_prompt_or_adapter_is_seen_in_texts(opened: Encoder, task: str) -> None:
    wanted = TEXT["passage/retrieval/expected_single"]
    found = opened.encode_text(META["text"]["texts"], task=task)
    assert np.abs(found - wanted).max(axis=1).min() > 5 * SINGLE
