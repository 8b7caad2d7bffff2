"""Which files the page takes, in a real browser: judged by their first bytes, named where they are left out."""

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, features

from edgeclip import Encoder
from edgeclip.serve.images.decoder import _FORMATS
from tests.scenes.web_page import add, left_out, names, search, wait_for_pictures

if TYPE_CHECKING:
    from tests.scenes.browser import Browser

TEXT = "ein rotes Fahrrad"
# A score is shown with three digits. AVIF's colours are rounded otherwise by Chromium than by Pillow: measured 0.002.
SHOWN, DRAWN = 0.0006, 0.01

ATOM = b"\0\0\0\x18ftyp"
REFUSED = {
    "empty.jpg": (b"", "an empty file"),
    "photo.heic": (ATOM + b"heic\0\0\0\0mif1heic" + bytes(64), "a HEIC picture"),
    "renamed-heic.jpg": (ATOM + b"mif1\0\0\0\0mif1heic" + bytes(64), "a HEIC picture"),
    "broken.avif": (ATOM + b"avif\0\0\0\0mif1avif" + bytes(64), "an AVIF picture"),
    "scan.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64), "a JPEG 2000 picture"),
    "new.jxl": (b"\xff\x0a" + bytes(64), "a JPEG XL picture"),
    "paper.pdf": (b"%PDF-1.7\n", "a PDF document"),
    "pdf-named.png": (b"%PDF-1.7\n", "a PDF document"),
    "layers.psd": (b"8BPS\0\1", "a Photoshop document"),
    "film.mov": (b"\0\0\0\x14ftypqt  " + bytes(64), "a video"),
    "notes": ("Ein Text, größer als nichts".encode(), "a text and not a picture"),
    "notes-utf16.png": ("Ein Text".encode("utf-16"), "a text and not a picture"),
    "download.jpg": (b"<!DOCTYPE html><html>", "a web page"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    "._photo.jpg": (b"\0\x05\x16\x07\0\2\0\0Mac OS X", "an AppleDouble file"),
    "noise.jpg": (bytes(range(1, 255)), "not a picture that is known"),
}


def picture(seed: int, form: str = "PNG", **options: object) -> bytes:
    """The file of a small picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def test_pictures_are_told_by_their_bytes_and_the_others_are_named(page: "Browser", tmp_path: Path) -> None:
    """Without a suffix or with a wrong one a picture is taken; what is none is named, and stops nothing."""
    taken = {
        "no-suffix": picture(1),
        "report.pdf": picture(2, "JPEG"),
        "movie.mp4": picture(3, "WEBP"),
        "a.txt": picture(4, "GIF"),
        "photo.heic.png": picture(5, "BMP"),
        "UPPER.TIF": picture(6, "TIFF"),
    }
    assert {Image.open(io.BytesIO(data)).format for data in taken.values()} == set(_FORMATS)
    refused = REFUSED | {"archive.zip": (zipped(), "an archive")}
    for name, data in taken.items() | {(name, data) for name, (data, _) in refused.items()}:
        (tmp_path / name).write_bytes(data)
    add(page, sorted(tmp_path.iterdir()), len(taken))
    assert sorted(names(page)) == sorted(taken)
    told = left_out(page)
    assert set(told) == set(refused)
    for name, (_, what) in refused.items():
        assert told[name].startswith(what), (name, told[name])
    assert f"{len(refused)} files were left out" in page.text("#left-out-count")
    # Chromium shows every one of them but TIFF.
    assert page.run("document.querySelectorAll('#results .unseen').length") == 1


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    return file.getvalue()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_what_only_the_browser_reads_is_sent_as_it_draws_it(
    page: "Browser", tmp_path: Path, encoder: Encoder
) -> None:
    """An AVIF, which the service refuses, has the vector that Pillow's decoder gives; an SVG has one too."""
    (tmp_path / "avif-inside.jpg").write_bytes(picture(7, "AVIF", quality=95))
    add(page, [tmp_path / "avif-inside.jpg"], 1)
    ((name, score),) = search(page, TEXT)
    wanted = float(encoder.encode_image(tmp_path / "avif-inside.jpg") @ encoder.encode_text(TEXT))
    assert name == "avif-inside.jpg" and abs(score - wanted) <= DRAWN
    assert abs(score - float(encoder.encode_image(picture(8)) @ encoder.encode_text(TEXT))) > DRAWN
    (tmp_path / "drawing").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9"/></svg>'
    )
    add(page, [tmp_path / "drawing"], 2)
    assert left_out(page) == {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures at two depths, among what is no picture or hidden."""
    files = {
        "photos/b10.png": picture(1),
        "photos/b9.png": picture(2),
        "photos/more/deep/c": picture(3, "JPEG"),
        "photos/more/notes.txt": b"some words",
        "photos/._b9.png": b"\0\x05\x16\x07",
        "photos/.DS_Store": b"\0\0\0\1Bud1",
        "photos/Thumbs.db": b"\xd0\xcf\x11\xe0",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path / "photos"


def test_a_folder_is_chosen(page: "Browser", folder: Path) -> None:
    """All that is in it, in the order of the paths; hidden files are only counted, others are named."""
    add(page, [folder], 3, by="#folder")
    assert names(page) == ["b9.png", "b10.png", "c"]
    told = left_out(page)
    assert told.pop("photos/more/notes.txt") == "a text and not a picture"
    assert told.pop("hidden").startswith("3;") and not told
    assert page.text("#left-out-count") == "4 files were left out, 3 of them hidden"


def test_a_folder_is_dropped(page: "Browser", folder: Path) -> None:
    """With a single file beside it, by a real drag; a hidden folder in it is not entered."""
    (folder / ".git").mkdir()
    for number in range(3):
        (folder / ".git" / f"{number}.png").write_bytes(picture(number))
    (folder.parent / ".single.png").write_bytes(picture(9))
    data = {"items": [], "files": [str(folder), str(folder.parent / ".single.png")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)
    wait_for_pictures(page, 4)
    assert sorted(names(page)) == [".single.png", "b10.png", "b9.png", "c"]  # the one that was meant is taken
    assert left_out(page)["hidden"].startswith("4;")


def test_thousands_of_files_are_looked_at(page: "Browser") -> None:
    """Five thousand, of which seventy are pictures: sixty are shown at first, the others on demand."""
    page.run(
        """(async () => {
            const canvas = new OffscreenCanvas(8, 8);
            canvas.getContext("2d").fillRect(0, 0, 4, 4);
            const blob = await canvas.convertToBlob();
            const transfer = new DataTransfer();
            for (let i = 0; i < 5000; i++)
                transfer.items.add(new File([i % 71 ? "words" : blob], `${i}`, { lastModified: i }));
            const drop = { bubbles: true, cancelable: true, dataTransfer: transfer };
            document.body.dispatchEvent(new DragEvent("drop", drop));
        })()"""
    )
    wait_for_pictures(page, 60)
    assert page.text("#more") == "Show the other 11"
    page.run("document.getElementById('more').focus()")
    page.press("Enter", 13)
    assert len(names(page)) == 71
    assert page.run("document.activeElement.closest('li') === document.querySelectorAll('#results li')[60]")
    assert "4929 files were left out" in page.text("#left-out-count")
    assert not page.run("document.getElementById('left-out').open")
    assert len(left_out(page)) == 501  # five hundred are named, and how many more there are
