"""JSON becomes a value of the wanted type, or one line that names the place and what was found there."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from edgeclip.errors import BundleError
from edgeclip.manifest.parse import parse


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Two numbers and a name."""

    x: int
    y: float | None
    name: str = ""


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (bool, True, True),
        (str, "", ""),
        (str | None, None, None),
        (str | None, "a", "a"),
        (int | str, 3, 3),
        (int | str, "batch", "batch"),
        (int | str | None, None, None),
        (int | str | None, "batch", "batch"),
        (tuple[int | str, ...], ["batch", 64, "tokens"], ("batch", 64, "tokens")),
        (tuple[int | str, ...], [], ()),
        (tuple[int, str], [1, "a"], (1, "a")),
        (Mapping[str, int], {"a": 1}, {"a": 1}),
        (Mapping[str, tuple[float, ...]], {"a": [1, 2]}, {"a": (1.0, 2.0)}),
        (Literal["a", "b"], "b", "b"),
        (Point, {"x": 1, "y": None, "name": "p"}, Point(x=1, y=None, name="p")),
        (Point | None, None, None),
        (Point | None, {"x": 1, "y": 2, "name": ""}, Point(x=1, y=2.0)),
        (Mapping[str, Point], {"p": {"x": 1, "y": 2, "name": ""}}, {"p": Point(x=1, y=2.0)}),
    ],
    ids=str,
)
def test_a_value_that_fits_is_taken(kind: Any, value: object, wanted: object) -> None:
    found = parse(kind, value, "here")
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        (int, True, "here: wanted int, found True"),
        (int, 3.0, "here: wanted int, found 3.0"),
        (float, "3", "here: wanted float, found a string"),
        (float, float("inf"), "here: wanted a finite number"),
        (bool, 1, "here: wanted bool, found 1"),
        (str, None, "here: wanted str, found null"),
        (str | None, 3, "here: wanted str, found 3"),
        (int | str, True, "here: wanted int or str, found True"),
        (int | str, 3.5, "here: wanted int or str, found 3.5"),
        (int | str, None, "here: wanted int or str, found null"),
        (int | str | None, [], "here: wanted int or str, found a list"),
        (tuple[int | str, ...], ["batch", {}], "here[1]: wanted int or str, found an object"),
        (tuple[int, str], [1], "here: wanted 2 values, found 1"),
        (tuple[int, ...], {"a": 1}, "here: wanted a list, found an object"),
        (Mapping[str, int], {"a": "1"}, "here.a: wanted int, found a string"),
        (Literal["a", "b"], "c", "here: 'c' is none of a, b"),
        (Point, None, "here: wanted an object, found null"),
        (Point | None, [], "here: wanted an object, found a list"),
        (Point, {"x": 1, "y": 2}, "here: name missing"),  # a default is for callers, not for files
        (Point, {"x": 1, "y": 2, "name": "", "z": 3}, "here: unknown z"),
        (Mapping[str, Point], {"p": {"x": 1, "y": "2", "name": ""}}, "here.p.y: wanted float, found a string"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_told_by_its_place(kind: Any, value: object, told: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse(kind, value, "here")
    assert str(caught.value) == told
