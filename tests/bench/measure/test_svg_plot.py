"""Plots: well-formed without namespaces, every point inside, words as they are, ids that no other plot has."""

import re
from xml.etree import ElementTree

import pytest

from edgeclip_bench.measure.svg_plot import Axis, Series, draw


def plot(*points: tuple[float, float], is_log: bool = False, shape: str = "points", title: str = "title") -> str:
    axes = Axis(label="x", is_log=is_log), Axis(label="y", is_log=is_log)
    return draw(title, *axes, [Series(label='"<c>', points=points, shape=shape)])  # type: ignore[arg-type]


def marks(text: str) -> list[tuple[float, float]]:
    """Where the dots stand; the legend's is the last and is left out."""
    tree = ElementTree.fromstring(text)
    dots = [use for use in tree.iter("use") if "fill" in use.get("style", "") or "#0072b2" in use.get("style", "")]
    return [(float(use.attrib["x"]), float(use.attrib["y"])) for use in dots][:-1]


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize("values", [[5.0], [1e-3, 2.0, 7e5], [3.0, 3.0]])
def test_every_point_is_inside(values: list[float], is_log: bool) -> None:
    text = plot(*((value, value) for value in values), is_log=is_log)
    _, _, width, height = (float(edge) for edge in ElementTree.fromstring(text).attrib["viewBox"].split())
    found = marks(text)
    assert len(found) == len(values)
    assert all(0 < x < width and 0 < y < height for x, y in found)


def test_words_are_escaped_and_stay_words() -> None:
    """No formula is read in a bundle's name either."""
    words = list(ElementTree.fromstring(plot((1.0, 1.0), title="<a> & $b$")).itertext())
    assert "<a> & $b$" in words and '"<c>' in words


def test_many_points_are_thinned_and_the_last_is_kept() -> None:
    points = tuple((float(place), float(place)) for place in range(1, 10_001))
    found = marks(plot(*points))
    assert len(found) == 400
    assert found[-1] == marks(plot(points[0], points[-1]))[-1]


def test_several_share_a_page() -> None:
    one, other = plot((1.0, 1.0)), plot((1.0, 2.0), (2.0, 1.0))
    ids = [set(re.findall(r'id="([^"]+)"', text)) for text in (one, other)]
    assert ids[0] and not ids[0] & ids[1]
    for text, own in zip((one, other), ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) and not re.search(r"https?:", text)
        assert {name for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text) for name in pair if name} <= own
