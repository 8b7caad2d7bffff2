"""Plots: well-formed, ticks round, every point inside."""

import re
from xml.etree import ElementTree

import pytest

from edgeclip_bench.measure.svg_plot import Axis, Series, draw, ticks


@pytest.mark.parametrize(
    ("low", "high", "is_log", "wanted"),
    [
        (0.0, 10.0, False, [0, 2, 4, 6, 8, 10]),
        (0.0, 0.35, False, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35]),
        (1.0, 100.0, True, [1, 2, 5, 10, 20, 50, 100]),
        (0.5, 20_000.0, True, [1, 10, 100, 1000, 10_000]),
        (9.0, 11.0, True, [9, 9.5, 10, 10.5, 11]),
    ],
)
def test_ticks_are_round(low: float, high: float, is_log: bool, wanted: list[float]) -> None:
    assert ticks(low, high, is_log=is_log) == pytest.approx(wanted)


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize("values", [[5.0], [1e-3, 2.0, 7e5], [3.0, 3.0]])
def test_every_point_is_inside(values: list[float], is_log: bool) -> None:
    points = tuple((value, value) for value in values)
    text = draw(
        "title", Axis(label="x", is_log=is_log), Axis(label="y", is_log=is_log), [Series(label="s", points=points)]
    )
    circles = ElementTree.fromstring(text).findall("circle")
    assert len(circles) == len(points)
    assert all(70 <= float(circle.get("cx", "")) <= 606 for circle in circles)
    assert all(30 <= float(circle.get("cy", "")) <= 296 for circle in circles)


def test_words_are_escaped() -> None:
    text = draw("<a> & b", Axis(label="x"), Axis(label="y"), [Series(label='"<c>', points=((1.0, 1.0),))])
    titles = [element.text for element in ElementTree.fromstring(text).iter("text")]
    assert "<a> & b" in titles and '"<c>' in titles


def test_many_points_are_thinned_and_the_last_is_kept() -> None:
    points = tuple((float(place), float(place)) for place in range(1, 10_001))
    text = draw("t", Axis(label="x"), Axis(label="y"), [Series(label="s", points=points)])
    circles = ElementTree.fromstring(text).findall("circle")
    assert len(circles) == 400
    last = draw("t", Axis(label="x"), Axis(label="y"), [Series(label="s", points=(points[0], points[-1]))])
    assert circles[-1].attrib == ElementTree.fromstring(last).findall("circle")[-1].attrib


def test_steps_have_corners() -> None:
    text = draw(
        "t", Axis(label="x"), Axis(label="y"), [Series(label="s", points=((1.0, 1.0), (2.0, 2.0)), shape="steps")]
    )
    found = re.search(r'polyline points="([^"]*)"', text)
    assert found is not None
    start, corner, end = (place.split(",") for place in found[1].split())
    assert corner == [end[0], start[1]]
