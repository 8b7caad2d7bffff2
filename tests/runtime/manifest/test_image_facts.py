"""A manifest's image facts are those of one size or those of patches: its "kind" says which."""

import dataclasses
import json
from typing import Any

import pytest

from edgeclip.errors import BundleError
from edgeclip.manifest import ImageFacts, PatchFacts
from edgeclip.manifest.parse import parse

SQUARE: dict[str, Any] = {
    "kind": "square",
    "size_px": 512,
    "resize_mode": "shortest",
    "interpolation": "bicubic",
    "fill_color": 0,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}
PATCHES: dict[str, Any] = {
    "kind": "patches",
    "patch_px": 14,
    "merge": 2,
    "window_px": 112,
    "min_pixels": 3136,
    "max_pixels": 602_112,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "prompt_ids": [5, 9, 6],
    "image_id": 9,
}


def read(document: object) -> object:
    return parse(ImageFacts | PatchFacts | None, document, "manifest.image")


def test_the_kind_says_which_facts_they_are() -> None:
    square, patches = read(SQUARE), read(PATCHES)
    assert isinstance(square, ImageFacts) and square.size_px == 512
    assert isinstance(patches, PatchFacts) and patches.prompt_ids == (5, 9, 6) and patches.token_px == 28
    assert read(None) is None
    for document, facts in ((SQUARE, square), (PATCHES, patches)):
        assert json.loads(json.dumps(dataclasses.asdict(facts))) == document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (SQUARE | {"kind": "round"}, "manifest.image.kind: 'round' is none of square, patches"),
        (SQUARE | {"kind": ["square"]}, "manifest.image.kind: ['square'] is none of square, patches"),
        ({}, "manifest.image.kind: None is none of square, patches"),
        ([], "manifest.image: wanted an object, found a list"),
        (SQUARE | {"kind": "patches"}, "manifest.image: unknown fill_color, resize_mode, size_px"),
        (PATCHES | {"merge": 2.0}, "manifest.image.merge: wanted int, found 2.0"),
        (PATCHES | {"window_px": 100}, "2 x 2 to a token, in windows of 100 px cannot be"),
        (PATCHES | {"patch_px": 0}, "patches of 0 px"),
        (PATCHES | {"max_pixels": 100}, "images of 3136 to 100 pixels"),
        (PATCHES | {"std": [1, 0, 1]}, "std (1.0, 0.0, 1.0)"),
        (PATCHES | {"prompt_ids": [5, 6]}, "prompt_ids (5, 6) hold 9 not once"),
        (PATCHES | {"prompt_ids": [5, 9, 9, 6]}, "hold 9 not once"),
        (PATCHES | {"prompt_ids": [9, 5, 6]}, "hold 9 not once, between others"),
    ],
)
def test_what_cannot_be_is_refused(document: object, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        read(document)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1
