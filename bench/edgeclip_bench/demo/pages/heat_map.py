"""Where on a page a question is answered: MaxSim's products, image token by image token, drawn over the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgeclip.inputs.patches import resized_size
from edgeclip.manifest import Manifest
from edgeclip_bench.demo.contact_sheet import RIGHT, wrap
from edgeclip_bench.demo.pages.drawing import load_font

Heat = NDArray[np.float32]

_PAGE_PX, _GAP_PX, _LINE_PX = 210, 18, 22
_PAPER, _INK, _PALE = "#ffffff", "#1d2126", "#7a828c"
_GLOW = np.array([232, 62, 20], np.float32)
# With 0.1 the hottest image token of 96 pages always held what was asked for, with 0.05 of 94 %.
_TEMPERATURE = 0.1
_TEXT_PX, _TEXT_WIDTH_PX = 13, 360


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A question, the page that it found first, whether that is an answer, and the heat (rows, columns) on it.

    `wanted` (rows, columns) are the image tokens that hold what was asked for, of an answer.
    """

    asked: str
    question: str
    page: Path
    is_right: bool
    heat: Heat
    wanted: NDArray[np.bool_] | None = None


def heat_of(
    question: NDArray[np.float32], page: NDArray[np.float32], manifest: Manifest, size: tuple[int, int]
) -> Heat:
    """How much of a question (T, E) each image token of a page (S, E) answers: (rows, columns), the most is 1.

    Each token of the question gives one, by softmax of its products with the image tokens: so a word that is like all
    of them heats none. `size` is the page's width and height before it is resized.
    """
    facts = manifest.need_patches()
    width, height = resized_size(size, facts, facts.max_pixels)
    rows, columns = height // facts.token_px, width // facts.token_px
    first = facts.prompt_ids.index(facts.image_id)
    products = question @ page[first : first + rows * columns].T  # (T, M)
    shares = np.exp((products - products.max(axis=1, keepdims=True)) / _TEMPERATURE)
    given = (shares / shares.sum(axis=1, keepdims=True)).sum(axis=0)
    heat: Heat = (given / given.max()).reshape(rows, columns)
    return heat


def draw_findings(findings: Sequence[Finding], *, title: str, note: str) -> Image.Image:
    """A picture with a row for each question: its text, the page that it found, and the heat map on it."""
    row_px = _PAGE_PX + 2 * _GAP_PX + _LINE_PX
    head_px = 2 * _LINE_PX + 3 * _GAP_PX
    width = 4 * _GAP_PX + 2 * _PAGE_PX + _TEXT_WIDTH_PX
    sheet = Image.new("RGB", (width, head_px + len(findings) * row_px), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP_PX, _GAP_PX), title, fill=_INK, font=load_font("DejaVuSans-Bold.ttf", 19))
    pen.text((_GAP_PX, _GAP_PX + 30), note, fill=_PALE, font=load_font("DejaVuSans.ttf", _TEXT_PX))
    for row, finding in enumerate(findings):
        top = head_px + row * row_px
        pen.line((_GAP_PX, top, width - _GAP_PX, top), fill="#e4e7eb")
        _draw_finding(sheet, pen, finding, top + _GAP_PX)
    return sheet


def _draw_finding(sheet: Image.Image, pen: ImageDraw.ImageDraw, finding: Finding, top: int) -> None:
    with Image.open(finding.page) as file:
        page = file.convert("RGB")
    scale = _PAGE_PX / max(page.size)
    page = page.resize((round(page.width * scale), round(page.height * scale)), Image.Resampling.LANCZOS)
    heated = _overlay(page, finding.heat)
    colour = RIGHT if finding.is_right else _PALE
    for column, picture in enumerate((page, heated)):
        left = _GAP_PX + column * (_PAGE_PX + _GAP_PX)
        pen.rectangle((left - 2, top - 2, left + page.width + 1, top + page.height + 1), outline=colour, width=2)
        sheet.paste(picture, (left, top))
    left = 3 * _GAP_PX + 2 * _PAGE_PX
    pen.text((left, top), finding.asked, fill=_PALE, font=load_font("DejaVuSans.ttf", _TEXT_PX))
    font = load_font("DejaVuSans-Bold.ttf", 15)
    for line, text in enumerate(wrap(finding.question, font, _TEXT_WIDTH_PX)):
        pen.text((left, top + (line + 1) * _LINE_PX), text, fill=_INK, font=font)
    said = f"{finding.page.name}: {'an answer' if finding.is_right else 'no answer'}"
    pen.text((left, top + _PAGE_PX - 20), said, fill=colour, font=load_font("DejaVuSans.ttf", _TEXT_PX))


def _overlay(page: Image.Image, heat: Heat) -> Image.Image:
    """The page in grey, and red where the heat is."""
    spread = Image.fromarray(np.round(255 * heat).astype(np.uint8)).resize(page.size, Image.Resampling.BICUBIC)
    share = np.asarray(spread, np.float32)[..., None] / 255 * 0.75
    grey = np.asarray(page.convert("L"), np.float32)[..., None].repeat(3, axis=2)
    return Image.fromarray((grey * (1 - share) + _GLOW * share).astype(np.uint8))
