"""A folder's pictures are those whose first bytes are an image's; what is left out is counted, with an example."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from edgeclip.errors import InputError
from edgeclip.inputs.image_folder import ImageFolder, holds_image, list_images
from edgeclip.inputs.image_kinds import HEAD_BYTES, image_kind
from edgeclip.inputs.images import decode_image, decodes
from tests.scenes.image_inputs import FILES, IMAGES, PNG, encoded
from tests.scenes.permissions import bound_by_permissions

PICTURE = Image.new("RGB", (40, 30), (200, 30, 30))
SAVED = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "ICO", "PPM", "TGA", "JPEG2000")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("kind", SAVED)
def test_every_format_that_is_decoded_is_known_by_its_first_bytes(tmp_path: Path, kind: str) -> None:
    data = encoded(PICTURE, kind)
    name = "x.tga" if kind == "TGA" else "x"
    assert image_kind(data[:HEAD_BYTES], name) == kind
    (tmp_path / name).write_bytes(data)
    assert list(list_images(tmp_path)) == [str(tmp_path / name)]
    decode_image(tmp_path / name, label="image")


def test_the_reference_images_are_known(tmp_path: Path) -> None:
    for name in FILES:
        assert image_kind((IMAGES / name).read_bytes()[:HEAD_BYTES]) in ("PNG", "JPEG")


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"BMW builds cars\n", b"P3 is the road to Rome", b"P6", b"GIF", b"II", b"MM\n", PNG[:4]),
        *(b"<svg/>", b"%PDF-1.7", b"RIFF1234WAVEfmt ", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"),
        b"\0\x05\x16\x07\0\2\0\0Mac OS X        ",
    ],
)
def test_what_is_no_image_is_none(text: bytes) -> None:
    assert image_kind(text, "notes.txt") is None


def test_the_name_decides_nothing(tmp_path: Path) -> None:
    """But that a file which is called like an image and is none is a broken one, and not passed over."""
    good = dict.fromkeys(("a.jfif", "b.jpe", "c", "d.txt", "e.JPG", "f.png.bak"), encoded(PICTURE, "JPEG"))
    broken = {"g.jpg": b"", "h.webp": b"<html>not found</html>"}
    others = {"notes.txt": b"BMW", "page.html": b"<html>", "x.pdf": b"%PDF-1.4", "raw.NEF": encoded(PICTURE, "TIFF")}
    found = list_images(write(tmp_path, good | broken | others))
    assert found.names == sorted(good | broken)
    assert found.notes() == ["left out 4 files that are no images, e.g. notes.txt"]


def test_raw_photos_are_left_out(tmp_path: Path) -> None:
    """By their names, by their tags under any other; called like an image, they are broken ones."""
    plain, dng = encoded(PICTURE, "TIFF"), encoded(PICTURE, "TIFF", tiffinfo={50706: b"\1\4\0\0"})
    reduced, cr2 = encoded(PICTURE, "TIFF", tiffinfo={254: 1}), b"II*\0\x10\0\0\0CR\2\0" + bytes(60)
    suffixes = ["mef", "mos", "fff", "dcr", "gpr", "srf", "k25", "raw", "dng", "NEF", "rwl"]
    raw = {f"a.{suffix}": plain for suffix in suffixes} | {"b.cr2.bak": cr2, "c": dng, "d.bak": reduced}
    found = list_images(write(tmp_path, raw | {"e.tif": dng, "f": plain, "g": plain[:9], "h": plain[:200]}))
    assert found.names == ["e.tif", "f", "g", "h"]
    assert found.left_out.count == len(raw)


def test_what_systems_leave_is_passed_over(tmp_path: Path) -> None:
    left = [
        ".hidden.png",
        "._a.png",
        ".DS_Store",
        "Thumbs.db",
        "__MACOSX/a.png",
        "@eaDir/a.png/SYNO.jpg",
        ".git/a.png",
    ]
    found = list_images(write(tmp_path, dict.fromkeys(["a.png", *left], PNG)), is_recursive=True)
    assert (found.names, found.notes()) == (["a.png"], [])


def test_subfolders_are_walked_when_asked(tmp_path: Path) -> None:
    """In the order of the paths' parts, which is not that of the whole names: "b-c" goes after "b/z"."""
    names = ["a.png", "b/a.png", "b/c/a.png", "b/z.png", "b-c.png", "z/a.png"]
    write(tmp_path, dict.fromkeys(names, PNG))
    found = list_images(tmp_path, is_recursive=True)
    assert found.names == sorted(names, key=lambda name: name.split("/")) and found.notes() == []
    assert found[1:3] == [str(tmp_path / name) for name in found.names[1:3]] and found[-1] == str(
        tmp_path / "z/a.png"
    )
    flat = list_images(tmp_path)
    assert flat.names == ["a.png", "b-c.png"]
    assert flat.notes(" (ask)") == ["did not enter 2 subfolders, e.g. b (ask)"]


def test_links_that_loop_come_to_an_end(tmp_path: Path) -> None:
    """A folder counts once; a link to a file is a file; one that leads nowhere is a broken picture."""
    write(tmp_path, {"a/x.png": PNG, "a/b/y.png": PNG})
    for link, target in {"a/b/up": tmp_path, "a/again": tmp_path / "a", "self.png": tmp_path / "self.png"}.items():
        (tmp_path / link).symlink_to(target)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a" / "x.png")
    assert list_images(tmp_path, is_recursive=True).names == [
        "a/b/y.png",
        "a/x.png",
        "gone.png",
        "link.png",
        "self.png",
    ]


def test_folders_as_deep_as_a_path_may_be(tmp_path: Path) -> None:
    """Deeper than functions may call themselves."""
    folders = [f"{tmp_path}{'/d' * depth}" for depth in range(1, 1201)]
    for folder in folders:
        os.mkdir(folder)
    Path(folders[-1], "x.png").write_bytes(PNG)
    try:
        assert len(list_images(tmp_path, is_recursive=True)) == 1
    finally:  # pytest's own removal calls itself
        os.unlink(f"{folders[-1]}/x.png")
        for folder in reversed(folders):
            os.rmdir(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_no_picture_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert list_images(tmp_path).notes() == ["left out 1 file that is no image, e.g. pipe.png"]


@bound_by_permissions
def test_what_may_not_be_read_is_counted(tmp_path: Path) -> None:
    """A file that is called an image stays in, for decoding says what is wrong with it."""
    write(tmp_path, {"a.png": PNG, "b.png": PNG, "notes": b"x", "shut/c.png": PNG})
    for name in ("b.png", "notes", "shut"):
        (tmp_path / name).chmod(0)
    found = list_images(tmp_path, is_recursive=True)
    (tmp_path / "shut").chmod(0o700)
    assert found.names == ["a.png", "b.png"]
    assert found.notes() == ["could not read 2, e.g. notes (Permission denied)"]


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(PNG)
    for name, told in {
        "nowhere": r"cannot be listed \(No such file or directory\)",
        "x": "is a file, wanted a folder of images",
    }.items():
        with pytest.raises(InputError, match=f"{name}: {told}$"):
            list_images(tmp_path / name)


def test_one_picture_is_enough_to_hold_one(tmp_path: Path) -> None:
    write(tmp_path, {"notes.txt": b"x", "sub/a.png": PNG})
    assert holds_image(tmp_path / "sub") and not holds_image(tmp_path)


def test_heic_is_named_where_it_cannot_be_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    found = list_images(write(tmp_path, {"IMG_1.HEIC": heic, "photo": heic, "a.png": PNG}))
    assert found.names == ["IMG_1.HEIC", "a.png", "photo"] and found.needing["HEIF"].count == 2
    monkeypatch.setattr("edgeclip.inputs.images.known_formats", lambda: ["JPEG", "PNG"])
    assert not decodes("HEIF")
    with pytest.raises(InputError, match=r"found a HEIC image, which needs pillow-heif: `pip install .*\[heic\]"):
        decode_image(tmp_path / "photo", label="image 0")


def test_heic_is_decoded_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    assert decodes("HEIF")
    PICTURE.save(tmp_path / "photo", "HEIF")
    assert list_images(tmp_path).needing["HEIF"].count == 1
    image = decode_image(tmp_path / "photo", label="image")
    assert isinstance(image, Image.Image) and image.size == PICTURE.size


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_not_utf8_is_listed(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff"
    Path(os.fsdecode(name)).write_bytes(PNG)
    found = list_images(tmp_path)
    assert isinstance(found, ImageFolder) and [os.fsencode(path) for path in found] == [name]
