"""A contact sheet is as large as its rows, frames what was right, keeps labels in their column and pictures whole."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from edgeclip_bench.demo.contact_sheet import Hit, Search, draw_contact_sheet

FRAME = (0x1F, 0x9D, 0x55)
PAPER = (0xFF, 0xFF, 0xFF)
PAD = (0xF1, 0xF3, 0xF5)
BLUE = (0, 0, 255)
THUMB_PX, FRAME_PX, LABEL_PX = 150, 4, 300
SENTENCE = (
    "three small dotted purple crescents to the left of one large striped orange heart on a turquoise background"
)

Pixels = NDArray[np.uint8]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return painted(tmp_path / "00000.png", (THUMB_PX, THUMB_PX))


def painted(path: Path, size: tuple[int, int], mode: str = "RGB", colour: tuple[int, ...] | int = BLUE) -> Path:
    Image.new(mode, size, colour).save(path)
    return path


def search(image: Path, rights: str, *, asked: str = "English", label: str = "a red star") -> Search:
    """A hit for each letter of `rights`, an r for a right one."""
    hits = tuple(Hit(image=image, cosine=0.5 - at / 10, is_right=letter == "r") for at, letter in enumerate(rights))
    return Search(asked=asked, label=label, hits=hits)


def drawn(*searches: Search, title: str = "Title", note: str = "Note") -> Pixels:
    sheet = draw_contact_sheet(searches, title=title, note=note)
    assert sheet.mode == "RGB"
    return np.asarray(sheet)


def boxes_of(sheet: Pixels, colour: tuple[int, ...], at_least_px: int) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of what has a colour and is at least so wide and high."""
    regions = ndimage.find_objects(ndimage.label((sheet == colour).all(axis=2))[0])
    boxes = [(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in regions]
    return [box for box in boxes if min(box[2:]) >= at_least_px]


def changed(one: Pixels, other: Pixels) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of where two sheets differ; right and bottom are the last that do."""
    rows, columns = np.nonzero((one != other).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def lines_of(label: Pixels) -> int:
    """Lines of text, with paper between them."""
    has_ink = (label != PAPER).any(axis=(1, 2)).astype(int)
    return int((np.diff(has_ink, prepend=0) == 1).sum())


def test_a_sheet_grows_by_its_rows_and_by_its_longest_row(image: Path) -> None:
    one, two, three = (drawn(*[search(image, "..")] * rows) for rows in (1, 2, 3))
    assert one.shape[1] == two.shape[1] == three.shape[1]
    assert three.shape[0] - two.shape[0] == two.shape[0] - one.shape[0] > THUMB_PX
    longer = drawn(search(image, ".."), search(image, "....."))
    assert longer.shape[0] == two.shape[0]
    assert longer.shape[1] - two.shape[1] == 3 * (drawn(search(image, "...")).shape[1] - one.shape[1]) > 3 * THUMB_PX
    assert one.shape[1] > LABEL_PX + 2 * THUMB_PX


def test_every_hit_is_shown_side_by_side_and_rows_below_each_other(image: Path) -> None:
    found = boxes_of(drawn(search(image, ".r."), search(image, "r")), BLUE, THUMB_PX)
    assert [box[2:] for box in found] == [(THUMB_PX, THUMB_PX)] * 4
    first, second = [box for box in found if box[1] == found[0][1]], found[3:]
    assert len(first) == 3 and len(second) == 1
    assert first[0][0] == second[0][0] >= LABEL_PX
    steps = np.diff([box[0] for box in sorted(first)])
    assert (steps > THUMB_PX + 2 * FRAME_PX).all() and len(set(steps)) == 1  # frames do not touch
    assert second[0][1] > first[0][1] + THUMB_PX


@pytest.mark.parametrize("rows", [("...",), ("r..",), ("rrr",), (".r.", "...", "r.r")])
def test_what_is_right_is_framed_and_nothing_else(image: Path, rows: tuple[str, ...]) -> None:
    """Four pixels round the whole picture, of which nothing is covered."""
    sheet = drawn(*(search(image, row) for row in rows))
    frames = boxes_of(sheet, FRAME, THUMB_PX)
    assert len(frames) == "".join(rows).count("r")
    pictures = boxes_of(sheet, BLUE, THUMB_PX)
    for left, top, width, height in frames:
        assert (width, height) == (THUMB_PX + 2 * FRAME_PX,) * 2
        assert (left + FRAME_PX, top + FRAME_PX, THUMB_PX, THUMB_PX) in pictures
        inside = (sheet[top : top + height, left : left + width] == FRAME).all(axis=2)
        assert inside.sum() == width * height - THUMB_PX**2


def test_a_hit_says_its_cosine_and_its_file_below_it(tmp_path: Path, image: Path) -> None:
    """In the frame's colour where it is right."""
    twin = painted(tmp_path / "00001.png", (THUMB_PX, THUMB_PX))
    [(left, top, _, _)] = boxes_of(drawn(search(image, ".")), BLUE, THUMB_PX)
    other_cosine = Search(asked="English", label="a red star", hits=(Hit(image=image, cosine=0.4, is_right=False),))
    for other in (search(twin, "."), other_cosine):
        x, y, right, bottom = changed(drawn(search(image, ".")), drawn(other))
        assert left <= x and right < left + THUMB_PX
        assert top + THUMB_PX < y and bottom < top + THUMB_PX + 25
    below = slice(top + THUMB_PX + FRAME_PX, top + THUMB_PX + 25)
    for rights, is_green in ((".", False), ("r", True)):
        text = drawn(search(image, rights))[below, left : left + THUMB_PX]
        assert (text == FRAME).all(axis=2).any() == is_green


def test_title_note_and_language_are_written(image: Path) -> None:
    plain = drawn(search(image, "r"))
    title = changed(plain, drawn(search(image, "r"), title="Other"))
    note = changed(plain, drawn(search(image, "r"), note="Other"))
    language = changed(plain, drawn(search(image, "r", asked="Deutsch")))
    assert title[3] < note[1] < note[3] < language[1]
    assert language[2] < LABEL_PX


def test_a_long_label_goes_on_on_further_lines_within_its_column(image: Path) -> None:
    """It changes nothing but its own row's column, and none of its words is cut."""
    label = search(image, "rr", label=SENTENCE)
    short, long = drawn(search(image, "rr", label="a"), search(image, "rr")), drawn(label, search(image, "rr"))
    left, top, right, bottom = changed(short, long)
    pictures = boxes_of(long, BLUE, THUMB_PX)
    assert left > 0 and right < LABEL_PX
    assert pictures[0][1] < top and bottom < pictures[0][1] + THUMB_PX
    column = long[pictures[0][1] : pictures[0][1] + THUMB_PX, :LABEL_PX]
    assert lines_of(column) == 1 + 3  # the language, and the sentence as wide as it may be
    assert (column[:, :-FRAME_PX] != PAPER).any(axis=(0, 2)).nonzero()[0].max() > 0.7 * LABEL_PX


def test_every_word_of_a_label_is_there(image: Path) -> None:
    """Whichever is another word, the sheet is another."""
    words = SENTENCE.split()
    whole = drawn(search(image, "r", label=SENTENCE))
    for index in range(len(words)):
        without = " ".join(["x" if at == index else word for at, word in enumerate(words)])
        assert not np.array_equal(drawn(search(image, "r", label=without)), whole), words[index]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((300, 100), (150, 50)),
        ((100, 300), (50, 150)),
        ((40, 40), (150, 150)),
        ((1000, 10), (150, 2)),
        ((10, 1000), (2, 150)),
        ((1, 1), (150, 150)),
    ],
)
def test_pictures_of_any_aspect_are_shown_whole_in_the_middle(
    tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    """Not stretched, not cut, with a pale pad round them."""
    sheet = drawn(search(painted(tmp_path / "a.png", size), "."))
    [(left, top, width, height)] = boxes_of(sheet, BLUE, 1)
    assert (width, height) == shown
    square = Image.new("RGB", (THUMB_PX, THUMB_PX), PAD)
    inside = (round((THUMB_PX - shown[0]) / 2), round((THUMB_PX - shown[1]) / 2))
    square.paste(BLUE, (*inside, inside[0] + shown[0], inside[1] + shown[1]))
    top, left = top - inside[1], left - inside[0]
    assert np.array_equal(sheet[top : top + THUMB_PX, left : left + THUMB_PX], np.asarray(square))


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (0, 0, 255, 255)), ("L", 40), ("P", 3), ("1", 1)])
def test_pictures_of_any_mode_are_shown(tmp_path: Path, mode: str, colour: tuple[int, ...] | int) -> None:
    path = painted(tmp_path / "a.png", (20, 20), mode, colour)
    with Image.open(path) as opened:
        wanted = opened.convert("RGB").getpixel((0, 0))
    assert isinstance(wanted, tuple)
    sheet = drawn(search(path, "r"))
    [(left, top, _, _)] = boxes_of(sheet, FRAME, THUMB_PX)
    inside = sheet[top + FRAME_PX :, left + FRAME_PX :][:THUMB_PX, :THUMB_PX]
    assert (inside == wanted).all()
