"""What a bundle of jina-embeddings-v4 is asked to prove itself: texts and pictures, each with a task.

Texts go through `tokenizers`, pictures through torch's own resizing. Nothing here goes through the runtime's
preprocessing, so the self-test of a bundle checks that too: a wrong resize, order of patches, window or prompt gives
another vector.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeclip.manifest import PatchFacts
from edgeclip_export.families.family import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture as the vision tower takes it, and the size of its grid of tokens."""

    feed: Arrays
    rows: int
    columns: int


def picture_sizes(token_px: int) -> Sequence[tuple[int, int]]:
    """Width and height of the pictures; no side is a whole number of tokens, and the second is hardly one high."""
    return (10 * token_px + 21, 6 * token_px + 2), (2 * token_px + 5, token_px + 12)


def prepare_picture(picture: NDArray[np.uint8], facts: PatchFacts) -> Picture:
    """Resize a picture (H, W, 3) as the reference does, and cut it into patches and windows."""
    token, merge, patch = facts.token_px, facts.merge, facts.patch_px
    height, width = _resized(picture.shape[:2], facts)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(image, (height, width), mode="bicubic", antialias=True)[0]
    rows, columns = height // token, width // token
    cut = resized.view(3, rows, merge, patch, columns, merge, patch)
    pixels = cut.permute(1, 4, 2, 5, 0, 3, 6).flatten(4).flatten(0, 3)  # (P, 3 * patch * patch)
    y, x = torch.meshgrid(torch.arange(rows * merge), torch.arange(columns * merge), indexing="ij")
    positions = torch.stack((y, x), dim=-1).view(rows, merge, columns, merge, 2).transpose(1, 2).reshape(-1, 2)
    windows, places = _divide(positions, facts.window_px // patch)
    return Picture(
        feed={
            "pixel_values": pixels[None].numpy(),
            "patch_positions": positions.numpy(),
            "windows": windows.numpy(),
            "window_places": places.numpy(),
        },
        rows=rows,
        columns=columns,
    )


def _resized(sides: Sequence[int], facts: PatchFacts) -> tuple[int, int]:
    """The sides in whole tokens: rounded, or scaled into the limits of pixels first."""
    token, area = facts.token_px, math.prod(sides)
    rounded = [round(side / token) * token for side in sides]
    if math.prod(rounded) > facts.max_pixels:
        shrink = math.sqrt(area / facts.max_pixels)
        rounded = [max(1, math.floor(side / shrink / token)) * token for side in sides]
    elif math.prod(rounded) < facts.min_pixels:
        grow = math.sqrt(facts.min_pixels / area)
        rounded = [math.ceil(side * grow / token) * token for side in sides]
    height, width = rounded
    return height, width


def _divide(positions: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The windows of patches (V, L), -1 where one is not full, and the place of each patch in them (P,)."""
    rows = [tuple(row) for row in (positions // side).tolist()]
    members = {window: [index for index, row in enumerate(rows) if row == window] for window in sorted(set(rows))}
    length = max(map(len, members.values()))
    windows, places = torch.full((len(members), length), -1), torch.empty(len(rows), dtype=torch.int64)
    for number, indices in enumerate(members.values()):
        windows[number, : len(indices)] = torch.tensor(indices)
        places[indices] = number * length + torch.arange(len(indices))
    return windows, places


def text_feed(ids: list[int], width: int) -> Mapping[str, NDArray[np.generic]]:
    """What the decoder takes of a text."""
    tokens = np.array([ids], np.int64)  # (1, T)
    return {
        "input_ids": tokens,
        "position_ids": np.tile(np.arange(len(ids)), (1, 3, 1)),
        "image_features": np.zeros((1, 1, width), np.float32),
        "image_places": np.full_like(tokens, -1),
        "pool_mask": np.ones(tokens.shape, np.float32),
    }


def image_feed(picture: Picture, features: NDArray[np.float32], facts: PatchFacts) -> Arrays:
    """What the decoder takes of a picture: the prompt around its features (1, M, W)."""
    place = facts.prompt_ids.index(facts.image_id)
    before, after = facts.prompt_ids[:place], facts.prompt_ids[place + 1 :]
    count = picture.rows * picture.columns
    ids = np.array([[*before, *[facts.image_id] * count, *after]], np.int64)  # (1, T)
    image = [(place, place + row, place + column) for row in range(picture.rows) for column in range(picture.columns)]
    words = [(index,) * 3 for index in range(place)]
    start = place + max(picture.rows, picture.columns)
    positions = [*words, *image, *((start + index,) * 3 for index in range(len(after)))]
    places, pooled = np.full_like(ids, -1), np.zeros(ids.shape, np.float32)
    places[0, place : place + count] = np.arange(count)
    pooled[0, place - 1 : place + count + 1] = 1.0
    return {
        "input_ids": ids,
        "position_ids": np.array(positions, np.int64).T[None],  # (1, 3, T)
        "image_features": features,
        "image_places": places,
        "pool_mask": pooled,
    }
