"""A picture shows its scene: so many objects, in their colours, on their sides, all in the middle square."""

from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from edgeclip_bench.demo import drawing as pictures
from edgeclip_bench.demo.drawing import Pixels, draw_picture, object_masks
from edgeclip_bench.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Colour,
    Group,
    Relation,
    Scene,
    Shape,
    Size,
    Texture,
)

SIDE_PX = 116  # what the small model sees
# (width, height) of pictures whose middle square has SIDE_PX: square, wide, tall.
FRAMES = ((116, 116), (186, 116), (116, 186))
# What people call so, written by hand; `draw_picture` may be off by its jitter and its noise.
NAMED: dict[str, tuple[int, int, int]] = {
    "red": (210, 30, 35),
    "orange": (245, 135, 25),
    "yellow": (245, 220, 45),
    "green": (35, 150, 60),
    "blue": (30, 70, 205),
    "purple": (125, 40, 160),
    "black": (20, 20, 25),
    "white": (245, 245, 245),
    "grey": (140, 145, 150),
    "pink": (245, 170, 195),
    "brown": (120, 80, 50),
    "turquoise": (95, 195, 195),
}
# Distance in RGB within which a pixel has a colour: half of that of the two NAMED that are nearest.
NEAR = 40.0
# Levels that two tones of an object differ by where its texture shows: more than twice the noise.
VISIBLE = 36

each_shape = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither noise nor scratches: what nothing was drawn on is the background to the last bit."""
    monkeypatch.setattr(pictures, "_SCRATCHES", 0)
    monkeypatch.setattr(pictures, "_NOISE", 0.0)
    pictures._noise_pool.cache_clear()
    yield
    pictures._noise_pool.cache_clear()


def group(
    colour: Colour, shape: Shape = "square", *, count: int = 1, size: Size = "large", texture: Texture = "plain"
) -> Group:
    return Group(count=count, size=size, texture=texture, colour=colour, shape=shape)


def scene(first: Group, relation: Relation = "left_of", second: Group | None = None, **more: Any) -> Scene:
    return Scene(
        **{"first": first, "relation": relation, "second": second or group("blue"), "background": "grey"} | more
    )


def drawn(told: Scene, seed: int = 0, *, side: int = SIDE_PX, frame: tuple[int, int] | None = None) -> Pixels:
    width, height = frame or (side, side)
    return draw_picture(told, np.random.default_rng(seed), side_px=side, width_px=width, height_px=height)


def middle(picture: Pixels, side: int = SIDE_PX) -> Pixels:
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def halves(picture: NDArray[Any], relation: Relation) -> tuple[NDArray[Any], NDArray[Any]]:
    """The half where a group that is `relation` the other has to be, and the other half."""
    axis = 1 if relation in ("left_of", "right_of") else 0
    near, far = np.split(picture, 2, axis=axis)
    return (near, far) if relation in ("left_of", "above") else (far, near)


def is_near(picture: Pixels, colour: str) -> NDArray[np.bool_]:
    away: NDArray[np.bool_] = np.linalg.norm(picture.astype(float) - NAMED[colour], axis=2) < NEAR
    return away


def is_object(picture: Pixels) -> NDArray[np.bool_]:
    """Of a clean picture: where it is not as in its corner, which is background."""
    differs: NDArray[np.bool_] = (picture != picture[0, 0]).any(axis=2)
    return differs


def count_objects(half: NDArray[np.bool_]) -> int:
    return int(ndimage.label(half, structure=np.ones((3, 3)))[1])


@pytest.mark.parametrize("frame", FRAMES)
def test_a_picture_is_rgb_of_the_size_asked_for(frame: tuple[int, int]) -> None:
    picture = drawn(scene(group("red")), frame=frame)
    assert picture.shape == (frame[1], frame[0], 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("frame", FRAMES)
def test_a_seed_gives_the_same_picture(frame: tuple[int, int]) -> None:
    told = scene(group("red"))
    assert np.array_equal(drawn(told, frame=frame), drawn(told, frame=frame))
    assert not np.array_equal(drawn(told, frame=frame), drawn(told, 1, frame=frame))


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("relation", RELATIONS)
def test_colours_are_on_their_sides_of_the_middle_square(relation: Relation, frame: tuple[int, int]) -> None:
    """All eight in both places, on every background: most of what has the colour is where it is told to be."""
    for seed, colour in enumerate(COLOURS):
        second: Colour = COLOURS[seed - 3]
        told = scene(
            group(colour, count=2), relation, group(second, count=2), background=BACKGROUNDS[seed % len(BACKGROUNDS)]
        )
        picture = middle(drawn(told, seed, frame=frame))
        for name, side in ((colour, relation), (second, told.turned().relation)):
            own, other = (int(half.sum()) for half in halves(is_near(picture, name), side))
            assert own > 100 and own > 4 * other, (name, own, other)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_background_is_in_its_colour(background: str) -> None:
    """Most of a picture is background."""
    for seed, colour in enumerate(COLOURS):
        told = scene(group(colour), second=group(colour), background=background)
        usual = np.median(drawn(told, seed, frame=(186, 116)), axis=(0, 1))
        away = {name: np.linalg.norm(usual - NAMED[name]) for name in NAMED}
        assert min(away, key=lambda name: away[name]) == background, colour


def test_named_colours_are_apart() -> None:
    """Else the tests above would tell nothing."""
    for one, other in combinations(NAMED.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) >= 2 * NEAR


@pytest.mark.usefixtures("clean")
@each_shape
def test_as_many_objects_are_there_as_the_scene_says(shape: Shape) -> None:
    """Each in one piece, none touching another, in every texture, size and number, in both places."""
    settings = product((1, 2, 3), SIZES, TEXTURES)
    for seed, (count, size, texture) in enumerate(settings):
        relation = RELATIONS[seed % len(RELATIONS)]
        first = group("red", shape, count=count, size=size, texture=texture)
        second = group("blue", shape, count=4 - count, size=size, texture=texture)
        picture = drawn(scene(first, relation, second, background="turquoise"), seed, side=256)
        found = tuple(count_objects(half) for half in halves(is_object(picture), relation))
        assert found == (count, 4 - count), (size, texture, relation)


@each_shape
def test_shapes_are_what_they_are_called(shape: Shape) -> None:
    mask = object_masks(shape, "plain", 200)[0] > 0.5
    assert ndimage.label(mask)[1] == 1
    assert (ndimage.label(~np.pad(mask, 1))[1] == 2) == (shape == "ring")  # only it has a hole
    is_mirrored, is_upside_down_too, is_on_its_side_too = (
        (mask != turned).mean() < 0.01 for turned in (mask[:, ::-1], mask[::-1], mask.T)
    )
    assert is_mirrored == (shape != "crescent")
    assert is_upside_down_too == (shape in ("circle", "square", "cross", "ring", "crescent"))
    assert is_on_its_side_too == (shape in ("circle", "square", "cross", "ring"))
    assert arms(mask, 0.75) == {"star": 5, "cross": 4}.get(shape, arms(mask, 0.75))
    widest_row = int(mask.sum(axis=1).argmax())
    assert (widest_row > 150) == (shape == "triangle")
    assert shape != "heart" or widest_row < 100
    assert shape != "crescent" or ndimage.center_of_mass(mask)[1] < 80  # open to the right


def arms(mask: NDArray[np.bool_], radius: float) -> int:
    """How often a circle round the middle of the shape enters it."""
    angles = np.linspace(0, 2 * np.pi, 2000)
    rows, columns = ((1 + radius * turn(angles)) * len(mask) / 2 for turn in (np.cos, np.sin))
    on_circle = mask[rows.astype(int), columns.astype(int)].astype(int)
    return int((np.diff(on_circle) == 1).sum() + (on_circle[0] > on_circle[-2]))


@pytest.mark.usefixtures("clean")
@each_shape
def test_large_is_larger_than_small(shape: Shape) -> None:
    """The least of the large ones than the largest of the small ones, by a quarter at least."""
    areas = {
        size: [
            halves(is_object(drawn(scene(group("red", shape, size=size)), seed)), "left_of")[0].sum()
            for seed in range(12)
        ]
        for size in SIZES
    }
    assert min(areas["large"]) > 1.25 * max(areas["small"])


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("size", SIZES)
def test_textures_are_told_apart_in_every_colour(colour: Colour, size: Size) -> None:
    """A twelfth of an object at least is clearly of another tone, and stripes are not where dots are."""
    shown = {texture: drawn(scene(group(colour, size=size, texture=texture)), 5).astype(int) for texture in TEXTURES}
    whole = halves(is_object(shown["plain"].astype(np.uint8)), "left_of")[0].sum()
    for one, other in combinations(TEXTURES, 2):
        differing = (abs(shown[one] - shown[other]).max(axis=2) > VISIBLE).sum()
        assert differing > whole / 12, (one, other, differing / whole)


@pytest.mark.usefixtures("clean")
def test_shapes_are_told_apart_where_they_are_smallest() -> None:
    """Two shapes share at most so much of what either covers; nearest are the square and the circle."""
    masks = {shape: object_masks(shape, "plain", 16)[0] for shape in SHAPES}
    for one, other in combinations(SHAPES, 2):
        shared = np.minimum(masks[one], masks[other]).sum() / np.maximum(masks[one], masks[other]).sum()
        assert shared < 0.9, (one, other)


@pytest.mark.usefixtures("clean")
def test_objects_stay_in_the_middle_square() -> None:
    """Margins of 10 pixels are too narrow for strangers, so nothing but background is there."""
    for seed, (relation, size, shape) in enumerate(product(RELATIONS, SIZES, SHAPES)):
        side = (116, 117, 200)[seed % 3]
        told = scene(group("red", shape, count=3, size=size), relation, group("blue", shape, count=3, size=size))
        picture = drawn(told, seed, side=side, frame=(side + 20, side + 20))
        outside = is_object(picture)
        outside[10 : 10 + side, 10 : 10 + side] = False
        assert not outside.any(), (relation, size, shape)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("spare", [34, 35, 70, 71])
def test_strangers_stay_out_of_the_middle_square(spare: int, is_wide: bool) -> None:
    """It is what it is without them; where a half pixel is to spare, it lies between two columns."""
    odd = spare % 2
    strangers = 0
    for seed, shape in enumerate(SHAPES):
        told = scene(group("red", shape, count=2), RELATIONS[seed % 4], group("yellow", shape, size="small"))
        longs = (SIDE_PX + odd, SIDE_PX + spare)
        frames = [(long, SIDE_PX) if is_wide else (SIDE_PX, long) for long in longs]
        alone, beside = (drawn(told, seed, frame=frame) for frame in frames)
        start = (spare - odd) // 2
        part = slice(start, start + SIDE_PX + odd)
        assert np.array_equal(beside[:, part] if is_wide else beside[part], alone)
        strangers += int(is_object(beside).sum() > is_object(alone).sum())
    assert strangers == len(SHAPES)  # they are there


def test_noise_is_as_strong_in_large_pictures_as_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from a pool that the large one is too large for."""
    monkeypatch.setattr(pictures, "_SCRATCHES", 0)
    frames = ((160, 116), (6200, 116))
    noisy = [drawn(scene(group("red")), frame=frame).astype(float) for frame in frames]
    monkeypatch.setattr(pictures, "_NOISE", 0.0)
    pictures._noise_pool.cache_clear()
    clean = [drawn(scene(group("red")), frame=frame).astype(float) for frame in frames]
    pictures._noise_pool.cache_clear()
    small, large = ((one - other).std() for one, other in zip(noisy, clean, strict=True))
    assert small > 3 and abs(small / large - 1) < 0.05


def test_scratches_are_few_and_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cover at most a 25th of a picture, and in many pictures every part of it."""
    monkeypatch.setattr(pictures, "_NOISE", 0.0)
    pictures._noise_pool.cache_clear()
    scratched = [drawn(scene(group("red")), seed) for seed in range(200)]
    monkeypatch.setattr(pictures, "_SCRATCHES", 0)
    covered = [(drawn(scene(group("red")), seed) != picture).any(axis=2) for seed, picture in enumerate(scratched)]
    pictures._noise_pool.cache_clear()
    assert 0 < min(map(np.mean, covered)) < max(map(np.mean, covered)) < 0.04
    assert np.mean(np.any(covered, axis=0)) > 0.9
