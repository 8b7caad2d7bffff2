"""Draw pages: a heading, and below it bars, a list or a table, in the words of the page's language.

A page is divided into cells as large as an image token, and a number or the beginning of a word has a cell of its
own: a model this small could not be taught to read them anywhere in the time that its training may take. Fonts,
sizes, inks, papers and the choice of cells vary; grey lines stand for text that no question is about. The fonts are
the DejaVu family's, which come with matplotlib and have the Latin, Greek and Cyrillic scripts.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edgeclip_bench.demo.pages.contents import COLUMNS, MAX_VALUE, Fact, Page
from edgeclip_bench.demo.pages.layout import TOKEN_PX
from edgeclip_bench.demo.pages.questions import label_word, words

Pixels = NDArray[np.uint8]

_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
_HEADING, _LABEL, _NUMBER = 19.0, 16.0, 24.0  # sizes of fonts
_SHIFT = 1.5  # how far all words of a page are out of place
_RGB = {
    "red": (205, 30, 35),
    "yellow": (240, 205, 40),
    "green": (35, 145, 60),
    "blue": (35, 75, 205),
    "purple": (135, 45, 165),
    "black": (30, 30, 34),
}
_HUES = 22.0  # of 255, how far a colour is from its name's in each channel
_NOISE = 6.0  # of 255, standard deviation
_GREY = (172, 174, 178)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The middle of a cell where a fact of a page can be read, in parts of its width and height; None is the heading.

    That is where a word and a number of a list are, a number of a table, the upper edge of a bar.
    """

    fact: Fact | None
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A page as a picture (height, width, 3) uint8 RGB, and where things are in it."""

    pixels: Pixels
    marks: tuple[Mark, ...]


def draw_page(
    page: Page, draw: np.random.Generator, *, columns: int, rows: int, cell_px: int = TOKEN_PX, enlarged: float = 1.0
) -> Drawn:
    """Draw a page of so many cells, `cell_px` a side; it is drawn `enlarged` and then reduced to its size.

    It has 4 columns or more and 5 rows or more.
    """
    sheet = _Sheet(draw, columns, rows, cell_px * enlarged / TOKEN_PX)
    image = sheet.draw(page).resize((columns * cell_px, rows * cell_px), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32)
    noise = draw.standard_normal((*pixels.shape[:2], 1), np.float32) * np.float32(_NOISE)
    return Drawn(pixels=(pixels + noise).clip(0, 255).astype(np.uint8), marks=tuple(sheet.marks))


class _Sheet:
    """A page that is being drawn; lengths are in pixels where a cell has TOKEN_PX, `scale` makes them larger."""

    def __init__(self, draw: np.random.Generator, columns: int, rows: int, scale: float) -> None:
        self._draw, self._scale = draw, scale
        self._columns, self._rows = columns, rows
        self._shift = draw.uniform(-_SHIFT, _SHIFT, 2)
        paper = 255 - draw.uniform(0, 22, 3)
        self._ink = tuple(int(value) for value in draw.uniform(0, 60, 3))
        size = (round(columns * TOKEN_PX * scale), round(rows * TOKEN_PX * scale))
        self._image = Image.new("RGB", size, tuple(int(value) for value in paper))
        self._pen = ImageDraw.Draw(self._image)
        self.marks: list[Mark] = []

    def draw(self, page: Page) -> Image.Image:
        """The heading in the first row, and below it what the page's kind has."""
        heading = words(page.language)["topics"][page.topic]
        end = self._word(heading[0].upper() + heading[1:], 0, self._columns, _HEADING, self._any(_FONTS))
        self._mark(None, 0, 0)
        if end < (self._columns - 1) * TOKEN_PX and self._draw.random() < 0.5:
            self._lines(end + 8, 6, self._columns * TOKEN_PX - 6, 22)
        {"bars": self._bars, "list": self._list, "table": self._table}[page.kind](page)
        return self._image

    def _bars(self, page: Page) -> None:
        bottom, most = self._rows * TOKEN_PX - 6, MAX_VALUE["bars"]
        step = (bottom - TOKEN_PX - 8) / most
        for level in range(most + 1):
            y = bottom - level * step
            self._rectangle(4, y - 0.5, self._columns * TOKEN_PX - 4, y + 0.5, self._ink if level == 0 else _GREY)
        for column, fact in zip(self._choose(self._columns, len(page.facts)), page.facts, strict=True):
            thick, height = self._between(14, 22), fact.value * step
            start = (column + 0.5) * TOKEN_PX - thick / 2
            self._rectangle(start, bottom - height, start + thick, bottom, self._colour(fact.label))
            self._mark(fact, column, int((bottom - height + 2) // TOKEN_PX))

    def _list(self, page: Page) -> None:
        font, last = self._any(_FONTS), self._columns - 1
        for row, fact in zip(self._choose(self._rows - 1, len(page.facts)), page.facts, strict=True):
            name = label_word(page.kind, fact.label, page.language)
            end = self._word(name, row + 1, last, _LABEL, font)
            if end < last * TOKEN_PX - 14:
                y = (row + 1.5) * TOKEN_PX
                self._rectangle(end + 5, y, last * TOKEN_PX - 3, y + 1, _GREY)
            self._number(fact, last, row + 1, font)
            self._mark(fact, 0, row + 1)

    def _table(self, page: Page) -> None:
        font, first = self._any(_FONTS), self._columns - len(COLUMNS)
        count = len(page.facts) // len(COLUMNS)
        top = 1 + int(self._draw.integers(self._rows - count - 1))
        for row in range(top, top + count + 2):
            self._rectangle(2, row * TOKEN_PX - 0.5, self._columns * TOKEN_PX - 2, row * TOKEN_PX + 0.5, _GREY)
        for column in range(first, self._columns):
            x = column * TOKEN_PX
            self._rectangle(x - 0.5, top * TOKEN_PX, x + 0.5, (top + count + 1) * TOKEN_PX, _GREY)
        for column, name in enumerate(COLUMNS):
            self._letter(name, first + column, top, font)
        for place, fact in enumerate(page.facts):
            row, column = divmod(place, len(COLUMNS))
            if column == 0:
                name = label_word(page.kind, fact.label, page.language).rpartition(" ")[0]
                self._word(name, top + 1 + row, first, _LABEL, font)
            self._number(fact, first + column, top + 1 + row, font)

    def _choose(self, places: int, count: int) -> list[int]:
        """Some of so many places, in their order."""
        return sorted(self._draw.permutation(places)[:count].tolist())

    def _mark(self, fact: Fact | None, column: int, row: int) -> None:
        self.marks.append(Mark(fact=fact, x=(column + 0.5) / self._columns, y=(row + 0.5) / self._rows))

    def _word(self, text: str, row: int, columns: int, size: float, font: str) -> float:
        """Write a text at the left of a row, narrowed to so many columns; return where it ends."""
        size *= self._between(0.93, 1.07)
        for part in (1.0, 0.9, 0.8, 0.7, 0.6):
            found = load_font(font, max(6, round(size * part * self._scale)))
            if found.getlength(text) <= (columns * TOKEN_PX - 4) * self._scale:
                break
        left, middle = 3 + self._shift[0], (row + 0.5) * TOKEN_PX + self._shift[1]
        self._pen.text((left * self._scale, middle * self._scale), text, fill=self._ink, font=found, anchor="lm")
        return float(left + found.getlength(text) / self._scale)

    def _number(self, fact: Fact, column: int, row: int, font: str) -> None:
        self._letter(str(fact.value), column, row, font)
        self._mark(fact, column, row)

    def _letter(self, text: str, column: int, row: int, font: str) -> None:
        found = load_font(font, max(6, round(_NUMBER * self._between(0.93, 1.07) * self._scale)))
        x, y = ((place + 0.5) * TOKEN_PX + shift for place, shift in zip((column, row), self._shift, strict=True))
        self._pen.text((x * self._scale, y * self._scale), text, fill=self._ink, font=found, anchor="mm")

    def _lines(self, left: float, top: float, right: float, bottom: float) -> None:
        y = top
        while y < bottom:
            self._rectangle(left, y, right - self._between(0, (right - left) / 3), y + 1, _GREY)
            y += 5

    def _rectangle(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, ...]) -> None:
        box = [round(side * self._scale) for side in (left, top, right, bottom)]
        self._pen.rectangle((*box[:2], max(box[0], box[2] - 1), max(box[1], box[3] - 1)), fill=colour)

    def _colour(self, name: str) -> tuple[int, ...]:
        drawn = np.array(_RGB[name]) + self._draw.uniform(-_HUES, _HUES, 3)
        return tuple(int(value) for value in drawn.clip(0, 255))

    def _between(self, low: float, high: float) -> float:
        return float(self._draw.uniform(low, high))

    def _any(self, names: tuple[str, ...]) -> str:
        return names[int(self._draw.integers(len(names)))]


@functools.lru_cache(maxsize=512)
def load_font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    """A font of the DejaVu family by its file's name."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)
