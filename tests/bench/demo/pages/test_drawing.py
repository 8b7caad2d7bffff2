"""A page shows what it is said to: marks lie on what they name, every size works, the seed decides all."""

from itertools import islice

import numpy as np
import pytest

from edgeclip_bench.demo.pages.contents import KINDS, LANGUAGES, Fact, Kind, Page, draw_pages
from edgeclip_bench.demo.pages.drawing import Drawn, draw_page
from edgeclip_bench.demo.pages.questions import words

BARS = Page(
    topic="water",
    kind="bars",
    language="en",
    facts=(Fact(label="red", value=1), Fact(label="blue", value=5), Fact(label="green", value=3)),
)


def drawn(
    page: Page, seed: int = 0, columns: int = 5, rows: int = 6, cell_px: int = 28, enlarged: float = 1.0
) -> Drawn:
    draw = np.random.default_rng(seed)
    return draw_page(page, draw, columns=columns, rows=rows, cell_px=cell_px, enlarged=enlarged)


def pages(kind: Kind, count: int) -> list[Page]:
    found = (page for page in draw_pages("train", np.random.default_rng(3), family=1) if page.kind == kind)
    return list(islice(found, count))


def around(found: Drawn, x: float, y: float, reach: int) -> np.ndarray:
    height, width = found.pixels.shape[:2]
    row, column = int(y * height), int(x * width)
    return found.pixels[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]


def extent(found: Drawn, channel: int) -> tuple[int, int]:
    """The first and the last row of what has clearly more of one colour than of the other two."""
    others = np.delete(found.pixels.astype(int), channel, axis=2).max(axis=2)
    rows = ((found.pixels[..., channel] - others) > 60).sum(axis=1)
    (where,) = np.nonzero(rows > 4)
    return int(where.min()), int(where.max())


@pytest.mark.parametrize("seed", range(4))
def test_bars_are_as_high_as_their_values_and_marked_at_the_top(seed: int) -> None:
    found = drawn(BARS, seed)
    tops, bottoms = {}, {}
    for label, channel in (("red", 0), ("green", 1), ("blue", 2)):
        tops[label], bottoms[label] = extent(found, channel)
        (mark,) = (mark for mark in found.marks if mark.fact and mark.fact.label == label)
        assert int(mark.y * 6) == (tops[label] + 2) // 28
        column = found.pixels[:, int(mark.x * found.pixels.shape[1])].astype(int)
        assert (column[tops[label] + 2 : bottoms[label] - 1].argmax(axis=1) == channel).all()
    heights = {label: bottoms[label] + 1 - top for label, top in tops.items()}
    assert heights["blue"] == pytest.approx(5 * heights["red"], abs=4)
    assert heights["green"] == pytest.approx(3 * heights["red"], abs=4)


@pytest.mark.parametrize("kind", ["list", "table"])
def test_there_is_ink_at_every_mark(kind: Kind) -> None:
    for page in pages(kind, 12):
        found = drawn(page)
        for mark in found.marks:
            assert around(found, mark.x, mark.y, reach=13).min() < 110, (page, mark)


@pytest.mark.parametrize("kind", KINDS)
def test_every_fact_and_the_heading_are_marked(kind: Kind) -> None:
    for page in pages(kind, 5):
        marks = drawn(page).marks
        assert {mark.fact for mark in marks} == {None, *page.facts}
        assert all(0 <= mark.x < 1 and 0 <= mark.y < 1 for mark in marks)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_fonts_have_every_word(language: str) -> None:
    """A character that a font lacks is drawn as the same box as any other that it lacks."""
    from edgeclip_bench.demo.pages.drawing import _FONTS, load_font

    known = words(language)
    characters = {one for table in ("topics", "items", "rows") for word in known[table].values() for one in word}
    for name in _FONTS:
        font = load_font(name, 24)
        missing = bytes(font.getmask("\U0001f9ff"))
        assert all(bytes(font.getmask(one)) != missing for one in characters), name


@pytest.mark.parametrize(("columns", "rows", "cell_px"), [(4, 5, 28), (5, 5, 28), (6, 5, 51), (4, 9, 40)])
def test_a_page_has_the_size_that_is_asked_for(columns: int, rows: int, cell_px: int) -> None:
    for page in (BARS, *pages("list", 2), *pages("table", 2)):
        for enlarged in (1.0, 1.7):
            pixels = drawn(page, columns=columns, rows=rows, cell_px=cell_px, enlarged=enlarged).pixels
            assert pixels.shape == (rows * cell_px, columns * cell_px, 3) and pixels.dtype == np.uint8


def test_the_seed_decides_a_page() -> None:
    assert np.array_equal(drawn(BARS).pixels, drawn(BARS).pixels)
    assert not np.array_equal(drawn(BARS).pixels, drawn(BARS, seed=1).pixels)
