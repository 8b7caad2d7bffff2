"""Draw the results of searches as one picture: a row for each query, its best hits side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

_THUMB_PX = 150
_GAP_PX = 14
_FRAME_PX = 4
_LABEL_PX = 300  # the column that says what was asked
_LINE_PX = 20
_PAPER, _INK, _PALE = "#ffffff", "#1d2126", "#7a828c"
RIGHT = "#1f9d55"  # the frame of what was meant


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A picture that was found, its cosine to the query, and whether it is the right one."""

    image: Path
    cosine: float
    is_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A query and what it found, best first: `asked` is the language, `label` the query in Latin script."""

    asked: str
    label: str
    hits: tuple[Hit, ...]


def draw_contact_sheet(searches: Sequence[Search], *, title: str, note: str) -> Image.Image:
    """The sheet, as wide as its longest row."""
    columns = max(len(search.hits) for search in searches)
    row_px = _THUMB_PX + _LINE_PX + 2 * _GAP_PX
    head_px = 2 * _LINE_PX + 3 * _GAP_PX
    width = _LABEL_PX + columns * (_THUMB_PX + _GAP_PX) + 2 * _GAP_PX
    sheet = Image.new("RGB", (width, head_px + len(searches) * row_px + _GAP_PX), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((2 * _GAP_PX, _GAP_PX), title, fill=_INK, font=ImageFont.load_default(22))
    pen.text((2 * _GAP_PX, _GAP_PX + 30), note, fill=_PALE, font=ImageFont.load_default(14))
    for row, search in enumerate(searches):
        top = head_px + row * row_px
        pen.line((_GAP_PX, top, width - _GAP_PX, top), fill="#e4e7eb")
        _draw_label(pen, search, top + _GAP_PX)
        for column, hit in enumerate(search.hits):
            _draw_hit(sheet, pen, hit, _LABEL_PX + column * (_THUMB_PX + _GAP_PX) + _GAP_PX, top + _GAP_PX)
    return sheet


def _draw_label(pen: ImageDraw.ImageDraw, search: Search, top: int) -> None:
    pen.text((2 * _GAP_PX, top), search.asked, fill=_INK, font=ImageFont.load_default(18))
    font = ImageFont.load_default(14)
    for line, text in enumerate(wrap(search.label, font, _LABEL_PX - 3 * _GAP_PX)):
        pen.text((2 * _GAP_PX, top + 30 + line * _LINE_PX), text, fill=_INK, font=font)


def _draw_hit(sheet: Image.Image, pen: ImageDraw.ImageDraw, hit: Hit, left: int, top: int) -> None:
    with Image.open(hit.image) as file:
        thumb = ImageOps.pad(file.convert("RGB"), (_THUMB_PX, _THUMB_PX), color="#f1f3f5")
    frame_px, colour = (_FRAME_PX, RIGHT) if hit.is_right else (0, _PALE)
    sheet.paste(ImageOps.expand(thumb, frame_px, colour), (left - frame_px, top - frame_px))
    words, font = f"{hit.cosine:.3f}  {hit.image.name}", ImageFont.load_default(13)
    pen.text((left, top + _THUMB_PX + 6), words, fill=colour, font=font)


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    """The words on as few lines of `width_px` as they need."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
