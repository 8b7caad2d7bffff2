"""Scenes of coloured shapes: what is in a picture, told apart from how it is drawn and described.

A scene is two groups of objects on a background, one group beside the other. What may not be trained
on is a combination of a shape, its colour and its side (`split_of`).
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

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

_OPPOSITE: dict[Relation, Relation] = {
    "left_of": "right_of",
    "right_of": "left_of",
    "above": "below",
    "below": "above",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One to three objects that are alike."""

    count: int
    size: Size
    texture: Texture
    colour: Colour
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`first` is `relation` `second`: two small red stars, left of one large striped blue circle, on grey."""

    first: Group
    relation: Relation
    second: Group
    background: Background

    def turned(self) -> "Scene":
        """The same picture told from its second group."""
        return replace(self, first=self.second, relation=_OPPOSITE[self.relation], second=self.first)
