"""Draw scenes as pictures.

The scene fills the middle square of its picture, which is what the model's centre crop sees. A picture that is not
square shows more background and further objects to either side, which no caption mentions.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip_bench.demo.scenes import COLOURS, SHAPES, TEXTURES, Group, Scene, Shape, Size, Texture

Pixels = NDArray[np.uint8]
Mask = NDArray[np.float32]
Coordinates = NDArray[np.floating[Any]]

_RGB: dict[str, tuple[int, int, int]] = {
    "red": (208, 28, 34),
    "orange": (246, 136, 24),
    "yellow": (246, 222, 44),
    "green": (34, 148, 58),
    "blue": (30, 70, 206),
    "purple": (126, 38, 160),
    "black": (20, 20, 24),
    "white": (246, 246, 244),
    "grey": (142, 144, 148),
    "pink": (244, 172, 196),
    "brown": (120, 78, 50),
    "turquoise": (96, 196, 196),
}
# Of the side of the square, what an object measures.
_EXTENT: dict[Size, tuple[float, float]] = {"small": (0.11, 0.14), "large": (0.17, 0.22)}
_PERIODS = 3.5  # of stripes and dots across an object
_TONE = 0.36  # how far stripes and dots go from the colour towards black, or from black towards white
_SUPERSAMPLE = 4
_HUES = 25.0  # of 255, how far a colour is from its name's in each channel
_SCRATCHES = 14
_NOISE = 15.0  # of 255, standard deviation


def draw_picture(
    scene: Scene, draw: np.random.Generator, *, side_px: int, width_px: int, height_px: int, is_clean: bool = False
) -> Pixels:
    """(height, width, 3) uint8 RGB with the scene in its middle square of `side_px`.

    A clean picture has no further objects, no scratches and no noise.
    """
    picture = np.empty((height_px, width_px, 3), dtype=np.float32)
    picture[:] = _jitter(_RGB[scene.background], draw)
    left, top = (width_px - side_px) / 2, (height_px - side_px) / 2
    for is_first, group in ((True, scene.first), (False, scene.second)):
        for x, y in _places(scene.relation, is_first, group, draw):
            _place(picture, group, left + x * side_px, top + y * side_px, side_px, draw)
    if is_clean:
        return picture.clip(0, 255).astype(np.uint8)
    _draw_strangers(picture, side_px, draw)
    _scratch(picture, side_px, draw)
    picture += _noise(draw, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def _places(relation: str, is_first: bool, group: Group, draw: np.random.Generator) -> list[tuple[float, float]]:
    """The places of a group's objects in the unit square: the group's half, cut into three along the border."""
    is_near = is_first == (relation in ("left_of", "above"))
    cells = draw.permutation(3)[: group.count]
    reach = 0.5 - _EXTENT[group.size][1]  # what is left of half a square, and of a third with care
    places = []
    for cell in cells:
        across = (0.0 if is_near else 0.5) + 0.25 + float(draw.uniform(-0.5, 0.5)) * reach * 0.9
        slack = max(0.0, 1 / 3 - _EXTENT[group.size][1])
        along = (cell + 0.5) / 3 + float(draw.uniform(-0.5, 0.5)) * slack * 0.9
        places.append((across, along) if relation in ("left_of", "right_of") else (along, across))
    return places


def _place(picture: Mask, group: Group, x: float, y: float, side_px: int, draw: np.random.Generator) -> None:
    """Draw one object with its middle at (x, y); parts outside of the picture are cut off."""
    low, high = _EXTENT[group.size]
    size_px = max(4, round(float(draw.uniform(low, high)) * side_px))
    shape, tone = object_masks(group.shape, group.texture, size_px)
    top, left = round(y - size_px / 2), round(x - size_px / 2)
    rows = slice(max(0, top), min(picture.shape[0], top + size_px))
    columns = slice(max(0, left), min(picture.shape[1], left + size_px))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    colour = _jitter(_RGB[group.colour], draw)
    other = colour + (255 - colour) * _TONE if colour.sum() < 200 else colour * (1 - _TONE)
    painted = colour + (other - colour) * tone[inside][..., None]
    target = picture[rows, columns]
    target += (painted - target) * shape[inside][..., None]


def _draw_strangers(picture: Mask, side_px: int, draw: np.random.Generator) -> None:
    """Draw objects that no caption mentions, outside of the centre crop."""
    height, width = picture.shape[:2]
    spare = max(height, width) - side_px
    extent = _EXTENT["large"][1] * side_px
    if spare / 2 < extent / 2:
        return
    for edge in (-1, 1):
        group = Group(
            count=1,
            size="large",
            texture=TEXTURES[int(draw.integers(len(TEXTURES)))],
            colour=COLOURS[int(draw.integers(len(COLOURS)))],
            shape=SHAPES[int(draw.integers(len(SHAPES)))],
        )
        out = edge * (side_px / 2 + extent / 2 + float(draw.uniform(0, max(0.0, spare / 2 - extent / 2))))
        along = float(draw.uniform(-0.35, 0.35)) * side_px
        x, y = (out, along) if width > height else (along, out)
        _place(picture, group, width / 2 + x, height / 2 + y, side_px, draw)


def _scratch(picture: Mask, side_px: int, draw: np.random.Generator) -> None:
    """Draw short strokes in any colour over everything; no caption mentions them."""
    width_px = max(1, round(0.015 * side_px))
    for _ in range(_SCRATCHES):
        length_px = round(float(draw.uniform(0.04, 0.16)) * side_px)
        top, left = (int(draw.integers(extent)) for extent in picture.shape[:2])
        is_flat = draw.random() < 0.5
        rows, columns = (width_px, length_px) if is_flat else (length_px, width_px)
        picture[top : top + rows, left : left + columns] = draw.uniform(0, 255, 3)


@lru_cache(maxsize=4096)
def object_masks(shape: Shape, texture: Texture, size_px: int) -> tuple[Mask, Mask]:
    """The coverage of the shape and of its texture's second tone, each (size_px, size_px) from 0 to 1."""
    fine = (np.arange(size_px * _SUPERSAMPLE, dtype=np.float32) + 0.5) / (size_px * _SUPERSAMPLE) * 2 - 1
    y, x = np.meshgrid(fine, fine, indexing="ij")  # -1..1, y downwards
    return _shrink(_is_inside(shape, x, y), size_px), _shrink(_is_second_tone(texture, x, y), size_px)


def _is_inside(shape: Shape, x: Coordinates, y: Coordinates) -> NDArray[np.bool_]:
    radius, angle = np.hypot(x, y), np.arctan2(x, -y)
    match shape:
        case "circle":
            inside = radius < 0.95
        case "square":
            inside = np.maximum(abs(x), abs(y)) < 0.85
        case "triangle":
            inside = (y < 0.85) & (y > 1.8 * abs(x) - 0.9)
        case "star":
            # The straight edge between a point (radius 1) and the next notch (radius 0.4), in polar form.
            sector = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
            edge = np.sin(np.pi / 5) / (np.sin(np.pi / 5 - sector) + 2.5 * np.sin(sector))
            inside = radius < edge
        case "cross":
            inside = (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 0.95)
        case "heart":
            u, v = 1.25 * x, -1.25 * y + 0.15
            inside = (u**2 + v**2 - 1) ** 3 - u**2 * v**3 < 0
        case "ring":
            inside = (radius < 0.95) & (radius > 0.5)
        case "crescent":
            inside = (radius < 0.95) & (np.hypot(x - 0.45, y) > 0.75)
    return inside


def _is_second_tone(texture: Texture, x: Coordinates, y: Coordinates) -> NDArray[np.bool_]:
    match texture:
        case "plain":
            return np.zeros(x.shape, dtype=bool)
        case "striped":
            return (x + y) * _PERIODS / 2 % 1 < 0.5
        case "dotted":
            u, v = (x * _PERIODS / 2 % 1) - 0.5, (y * _PERIODS / 2 % 1) - 0.5
            return u**2 + v**2 < 0.28**2


def _shrink(fine: NDArray[np.bool_], size_px: int) -> Mask:
    """The mean over each pixel's samples."""
    cells = fine.reshape(size_px, _SUPERSAMPLE, size_px, _SUPERSAMPLE)
    covered: Mask = cells.mean(axis=(1, 3), dtype=np.float32)
    return covered


def _jitter(colour: tuple[int, int, int], draw: np.random.Generator) -> Mask:
    return np.array(colour, dtype=np.float32) + draw.uniform(-_HUES, _HUES, 3).astype(np.float32)


@lru_cache(maxsize=1)
def _noise_pool() -> Mask:
    return np.random.default_rng(0).standard_normal(1 << 21, dtype=np.float32) * _NOISE


def _noise(draw: np.random.Generator, shape: tuple[int, ...]) -> Mask:
    """A window of one pool of noise: drawing it anew would cost more than the picture."""
    count = int(np.prod(shape))
    pool = _noise_pool()
    if count > len(pool):
        return draw.standard_normal(shape, dtype=np.float32) * _NOISE
    start = int(draw.integers(len(pool) - count + 1))
    return pool[start : start + count].reshape(shape)
