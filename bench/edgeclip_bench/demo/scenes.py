"""Scenes of coloured shapes: what is in a picture, apart from how it is drawn and described.

A scene is two groups of objects on a background. Training, validation and test differ in what they combine, not only
in their draws (`split_of`). And scenes come in families whose members differ from the first in one attribute, so that
a vector has to hold every attribute to find its own picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from edgeclip_bench.demo.families import Split, any_of, draw_families, other_than, split_of_cells

Shape = Literal["circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]
Size = Literal["small", "large"]
Texture = Literal["plain", "striped", "dotted"]
Relation = Literal["left_of", "right_of", "above", "below"]
Background = Literal["grey", "pink", "brown", "turquoise"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
TEXTURES: tuple[Texture, ...] = get_args(Texture)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
MAX_COUNT = 3
# 44 scenes differ from a given one in one attribute; at least 25 of them are in its own split.
MAX_FAMILY = 20

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
    return split_of_cells(
        SHAPES.index(group.shape) + COLOURS.index(group.colour) + 2 * RELATIONS.index(side) for group, side in sides
    )


def draw_scenes(split: Split, draw: np.random.Generator, *, family: int) -> Iterator[Scene]:
    """Yield scenes without end, no picture twice, in families of `family` scenes.

    The first of a family is drawn at random; each other one differs from it in one attribute.
    """
    return draw_families(
        lambda: _draw_scene(draw),
        lambda scene: change_one(scene, draw),
        lambda scene: scene.canonical() if split_of(scene) == split else None,
        size=family,
        most=MAX_FAMILY,
    )


def change_one(scene: Scene, draw: np.random.Generator) -> Scene:
    """The same scene with one attribute changed."""
    what = int(draw.integers(12))
    if what == 10:
        return replace(scene, relation=other_than(scene.relation, RELATIONS, draw))
    if what == 11:
        return replace(scene, background=other_than(scene.background, BACKGROUNDS, draw))
    is_first = what < 5
    group = scene.first if is_first else scene.second
    name, values = list(_ATTRIBUTES.items())[what % 5]
    group = replace(group, **{name: other_than(getattr(group, name), values, draw)})
    return replace(scene, first=group) if is_first else replace(scene, second=group)


def _draw_scene(draw: np.random.Generator) -> Scene:
    return Scene(
        first=_draw_group(draw),
        relation=any_of(RELATIONS, draw),
        second=_draw_group(draw),
        background=any_of(BACKGROUNDS, draw),
    )


def _draw_group(draw: np.random.Generator) -> Group:
    return Group(**{name: any_of(values, draw) for name, values in _ATTRIBUTES.items()})
