"""Divide an image of any size into patches: resize it to whole tokens, cut it, and say where each patch lies.

    image -> RGB -> sides that are multiples of a token's, within the limits of pixels -> a row of uint8 per patch

Patches come token by token, those of a token together, tokens row by row. The vision tower attends within windows in
most of its layers; windows are squares of tokens, cut off at the right and lower edge. Mean, std and the rescaling to
0..1 are folded into the graph. `edgeclip.inputs.images` decodes images.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.inputs.images import ImageInput, decode_image
from edgeclip.inputs.resample import resize_like_torch
from edgeclip.manifest import PatchFacts

# The reference refuses images that are longer than so many times their width.
_MOST_RATIO = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The number of patches in each column and in each row of an image."""

    rows: int
    columns: int


def cut_patches(
    image: ImageInput, facts: PatchFacts, *, max_pixels: int | None = None, label: str = "image"
) -> tuple[NDArray[np.uint8], Grid]:
    """The patches of an image, (P, 3 * patch_px * patch_px) uint8, and their grid.

    The columns are channel, row, column of a patch's pixels. The pixels equal the reference's to the last bit: it
    resizes as `resize_like_torch` does. `max_pixels` replaces the facts' upper limit. Takes what `decode_image` takes
    and raises the same errors; InputError, whose message calls the image `label`, for a wrong `max_pixels`, for a
    side that is shorter than a token's, and for one that is more than 200 times the other.
    """
    limit = check_max_pixels(max_pixels, facts)
    pixels: NDArray[np.uint8] = np.asarray(decode_image(image, label=label))
    width, height = resized_size((pixels.shape[1], pixels.shape[0]), facts, limit, label=label)
    resized = resize_like_torch(pixels, (width, height))
    grid = Grid(rows=height // facts.patch_px, columns=width // facts.patch_px)
    side, merge = facts.patch_px, facts.merge
    blocks = resized.reshape(grid.rows // merge, merge, side, grid.columns // merge, merge, side, 3)
    ordered = blocks.transpose(
        0, 3, 1, 4, 6, 2, 5
    )  # token row, token column, 2 in the token, channel, 2 in the patch
    return ordered.reshape(grid.rows * grid.columns, 3 * side * side), grid


def check_max_pixels(max_pixels: int | None, facts: PatchFacts) -> int:
    """The most pixels of a resized image: `max_pixels`, or the model's limit for None.

    InputError for a value that is no int, or less than the pixels of one token.
    """
    if max_pixels is None:
        return facts.max_pixels
    fewest = facts.token_px**2
    if type(max_pixels) is not int or max_pixels < fewest:
        raise InputError(f"max_pixels is {max_pixels!r}, wanted an int from {fewest} on, the pixels of one token")
    return max_pixels


def resized_size(
    source: tuple[int, int], facts: PatchFacts, max_pixels: int, *, label: str = "image"
) -> tuple[int, int]:
    """The (width, height) that an image of `source` (width, height) is resized to: multiples of a token's side.

    Each side is rounded, halves to the even multiple. An image that then has more than `max_pixels` is scaled down
    to them and its sides are rounded down, one that has less than `min_pixels` is scaled up and its sides are rounded
    up.
    """
    width, height = source
    token = facts.token_px
    if min(source) < token:
        raise InputError(f"{label}: is {width} x {height} pixels, wanted {token} or more a side; scale it up")
    if max(source) > _MOST_RATIO * min(source):
        wanted = f"wanted no side more than {_MOST_RATIO} times the other"
        raise InputError(f"{label}: is {width} x {height} pixels, {wanted}; crop it")
    wide, high = round(width / token) * token, round(height / token) * token
    if wide * high > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        wide, high = (max(1, math.floor(side / scale / token)) * token for side in source)
    elif wide * high < facts.min_pixels:
        scale = math.sqrt(facts.min_pixels / (height * width))
        wide, high = (math.ceil(side * scale / token) * token for side in source)
    return wide, high


def patch_positions(grid: Grid, facts: PatchFacts) -> NDArray[np.int64]:
    """The row and the column of each patch in the grid, in the order of `cut_patches`: (P, 2)."""
    merge = facts.merge
    places = np.moveaxis(np.indices((grid.rows, grid.columns), np.int64), 0, -1)  # (rows, columns, 2)
    blocks = places.reshape(grid.rows // merge, merge, grid.columns // merge, merge, 2)
    ordered: NDArray[np.int64] = blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2)
    return ordered


def group_windows(grid: Grid, facts: PatchFacts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The patches of each window, (W, L), and the place of each patch in that array when it is flattened, (P,).

    Windows come row by row, and the patches of a window in their order; -1 stands at the end of the rows of smaller
    windows. L is the number of patches of the largest window.
    """
    side = facts.window_px // facts.patch_px
    row, column = patch_positions(grid, facts).T // side  # (P,) each
    window = row * -(-grid.columns // side) + column
    order = np.argsort(window, kind="stable")
    counts = np.bincount(window)
    firsts = np.cumsum(counts) - counts
    places = np.empty(len(window), np.int64)
    places[order] = window[order] * counts.max() + np.arange(len(window)) - firsts[window[order]]
    windows = np.full((len(counts), counts.max()), -1, np.int64)
    windows.reshape(-1)[places] = np.arange(len(window))
    return windows, places
