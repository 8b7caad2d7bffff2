"""Scenes of coloured shapes: what is in a picture, apart from how it is drawn and described.

A scene is two groups of objects on a background. Training, validation and test differ in what they combine, not only
in their draws (`split_of`). And scenes come in families whose members differ from the first in one attribute, so that
a vector has to hold every attribute to find its own picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from edgeclip.errors import BuildError

Shape = Literal["circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]
Size = Literal["small", "large"]
Texture = Literal["plain", "striped", "dotted"]
Relation = Literal["left_of", "right_of", "above", "below"]
Background = Literal["grey", "pink", "brown", "turquoise"]
Split = Literal["train", "validation", "test"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
TEXTURES: tuple[Texture, ...] = get_args(Texture)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
SPLITS: tuple[Split, ...] = get_args(Split)
MAX_COUNT = 3
# 44 scenes differ from a given one in one attribute; at least 25 of them are in its own split.
MAX_FAMILY = 20

_T = TypeVar("_T")

_OPPOSITE: dict[Relation, Relation] = {
    "left_of": "right_of",
    "right_of": "left_of",
    "above": "below",
    "below": "above",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One to three equal objects."""

    count: int
    size: Size
    texture: Texture
    colour: Colour
    shape: Shape


# The values of a group's fields, in the order in which they are drawn.
_ATTRIBUTES: Mapping[str, Sequence[Any]] = {
    "count": range(1, MAX_COUNT + 1),
    "size": SIZES,
    "texture": TEXTURES,
    "colour": COLOURS,
    "shape": SHAPES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`first` is `relation` `second`: two small red stars, left of one large striped blue circle, on grey."""

    first: Group
    relation: Relation
    second: Group
    background: Background

    def turned(self) -> "Scene":
        """The same picture described from its second group."""
        return replace(self, first=self.second, relation=_OPPOSITE[self.relation], second=self.first)

    def canonical(self) -> "Scene":
        """One of the two descriptions of a picture; it is the same for both."""
        return self if self.relation in ("left_of", "above") else self.turned()


def split_of(scene: Scene) -> Split:
    """Where a scene belongs: to test when either group's shape, colour and side are held out for test.

    Of the 256 combinations an eighth is held out for test and an eighth for validation, spread like a
    Latin square: every shape is trained in every colour, and every colour and every shape on every side.
    """
    sides = ((scene.first, scene.relation), (scene.second, _OPPOSITE[scene.relation]))
    splits = {_split_of_combination(group.shape, group.colour, side) for group, side in sides}
    return "test" if "test" in splits else "validation" if "validation" in splits else "train"


def _split_of_combination(shape: Shape, colour: Colour, side: Relation) -> Split:
    cell = (SHAPES.index(shape) + COLOURS.index(colour) + 2 * RELATIONS.index(side)) % 8
    return "test" if cell == 0 else "validation" if cell == 3 else "train"


def draw_scenes(split: Split, draw: np.random.Generator, *, family: int) -> Iterator[Scene]:
    """Yield scenes without end, no picture twice, in families of `family` scenes.

    The first of a family is drawn at random; each other one differs from it in one attribute.
    """
    if not 1 <= family <= MAX_FAMILY:
        raise BuildError(f"a family of {family}: wanted 1 to {MAX_FAMILY}")
    seen: set[Scene] = set()

    def is_new(scene: Scene) -> bool:
        if split_of(scene) != split or scene.canonical() in seen:
            return False
        seen.add(scene.canonical())
        return True

    while True:
        first = _draw_scene(draw)
        if not is_new(first):
            continue
        yield first
        found = 1
        while found < family:
            member = change_one(first, draw)
            if is_new(member):
                yield member
                found += 1


def change_one(scene: Scene, draw: np.random.Generator) -> Scene:
    """The same scene with one attribute changed."""
    what = int(draw.integers(12))
    if what == 10:
        return replace(scene, relation=_other(RELATIONS, scene.relation, draw))
    if what == 11:
        return replace(scene, background=_other(BACKGROUNDS, scene.background, draw))
    is_first = what < 5
    group = scene.first if is_first else scene.second
    name, values = list(_ATTRIBUTES.items())[what % 5]
    group = replace(group, **{name: _other(values, getattr(group, name), draw)})
    return replace(scene, first=group) if is_first else replace(scene, second=group)


def _draw_scene(draw: np.random.Generator) -> Scene:
    return Scene(
        first=_draw_group(draw),
        relation=_any(RELATIONS, draw),
        second=_draw_group(draw),
        background=_any(BACKGROUNDS, draw),
    )


def _draw_group(draw: np.random.Generator) -> Group:
    return Group(**{name: _any(values, draw) for name, values in _ATTRIBUTES.items()})


def _any(values: Sequence[_T], draw: np.random.Generator) -> _T:
    return values[int(draw.integers(len(values)))]


def _other(values: Sequence[_T], value: _T, draw: np.random.Generator) -> _T:
    return _any([other for other in values if other != value], draw)
