"""Captioned images as users have them, in captions.jsonl or in texts beside: read whole, or refused at the place."""

import json
from pathlib import Path

import pytest

from tests.scenes.captioned_images import captions, read
from tests.scenes.layout_files import refusal, write_images, write_lines

# edgeclip's own captions.jsonl


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Every form a line may have; b.png on two lines, under two names."""
    write_images(tmp_path, "a.png", "sub/b.png", "images/c.png")
    lines = [
        {"image": "a.png", "caption": " a red dot\n", "width": 4},
        {"image": "sub/b.png", "captions": ["ein Punkt", "Punkt"], "language": "de"},
        {"image": "c.png", "captions": {"en": ["a dot", "dot"], "de": "Fleck"}},
        {"image": "./sub/../sub/b.png", "caption": "a spot", "language": "en"},
    ]
    return write_lines(tmp_path / "captions.jsonl", lines)


def test_own_layout_in_every_form(own: Path) -> None:
    for path in (own, own.parent):
        data = read(path)
        assert data.images == tuple(own.parent / name for name in ("a.png", "sub/b.png", "images/c.png"))
        assert captions(data) == [
            ("a red dot", 0, None),
            ("ein Punkt", 1, "de"),
            ("Punkt", 1, "de"),
            ("a dot", 2, "en"),
            ("dot", 2, "en"),
            ("Fleck", 2, "de"),
            ("a spot", 1, "en"),
        ]


def test_languages_keep_captions_and_all_images(own: Path) -> None:
    """So that a language's recall does not depend on which others were asked for."""
    data = read(own, languages=["de"])
    assert len(data.images) == 3
    assert captions(data) == [("ein Punkt", 1, "de"), ("Punkt", 1, "de"), ("Fleck", 2, "de")]
    assert refusal(own, languages=["de", "fr"]) == f"{own}: nothing in language 'fr'; there are: de, en"


def test_limit_keeps_the_first_images_and_their_later_captions(own: Path) -> None:
    data = read(own, limit=2)
    assert [path.name for path in data.images] == ["a.png", "b.png"]
    assert [caption.text for caption in data.captions] == ["a red dot", "ein Punkt", "Punkt", "a spot"]
    own.with_name("images").rename(own.with_name("gone"))
    assert read(own, limit=2) == data


def test_images_may_lie_elsewhere(own: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder, "a.png", "sub/b.png", "c.png")
    assert read(own, images=folder).images == (folder / "a.png", folder / "sub" / "b.png", folder / "c.png")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_blank_lines_are_taken(tmp_path: Path, end: str) -> None:
    write_images(tmp_path, "a.png")
    line = "\ufeff" + json.dumps({"image": "a.png", "caption": "a"})
    assert captions(read(write_lines(tmp_path / "captions.jsonl", [line, "", "  "], end=end))) == [("a", 0, None)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": "none.png", "caption": "a"}, ":2: image 'none.png' is not in {folder}, nor there in images"),
        ({"image": "", "caption": "a"}, ":2: 'image' is empty"),
        ({"image": 3, "caption": "a"}, ":2: 'image' is a number, wanted a string"),
        ({"caption": "a"}, ":2: 'image' is missing; there are: 'caption'"),
        ({"image": "a.png"}, ":2: has neither of 'caption' and 'captions', wanted one"),
        ({"image": "a.png", "caption": "a", "captions": []}, ":2: has both of 'caption' and 'captions', wanted one"),
        ({"image": "a.png", "caption": " "}, ":2: a caption is empty"),
        ({"image": "a.png", "caption": {"en": "a"}}, ":2: a caption is an object, wanted a string"),
        ({"image": "a.png", "caption": None}, ":2: a caption is null, wanted a string"),
        ({"image": "a.png", "captions": ["a", 1]}, ":2: a caption is a number, wanted a string"),
        ({"image": "a.png", "captions": []}, ":2: image 'a.png' has no caption"),
        ({"image": "a.png", "captions": {}}, ":2: image 'a.png' has no caption"),
        ({"image": "a.png", "captions": {"en": [""]}}, ":2: 'captions': a caption is empty"),
        ({"image": "a.png", "captions": {"": "a"}}, ":2: a language is empty"),
        (
            {"image": "a.png", "captions": {"en": "a"}, "language": "en"},
            ":2: 'captions' are by language, so 'language' must not be there",
        ),
        ({"image": "a.png", "caption": "a", "language": True}, ":2: 'language' is a boolean, wanted a string"),
        (
            '{"image": "a.png", "caption": "\\ud800"}',
            ":2: a caption holds a lone surrogate, so it is no Unicode text",
        ),
        (
            '{"image": "a\\u0000.png", "caption": "a"}',
            ":2: image 'a\\x00.png' is not in {folder}, nor there in images",
        ),
    ],
)
def test_own_layout_refuses(tmp_path: Path, line: object, message: str) -> None:
    write_images(tmp_path, "a.png")
    file = write_lines(tmp_path / "captions.jsonl", [{"image": "a.png", "caption": "a"}, line])
    assert refusal(tmp_path) == f"{file}{message.format(folder=tmp_path)}"


# What a file may name


def test_no_image_outside_the_data_is_read(tmp_path: Path) -> None:
    """Neither absolute nor by climbing, though it is there: captions come from the internet."""
    secret, inside = write_images(tmp_path, "secret.png", "data/a.png")
    for name in (
        str(secret),
        "../secret.png",
        "a/../../secret.png",
        "../data/../secret.png",
        "../datax/../secret.png",
    ):
        file = write_lines(tmp_path / "data" / "captions.jsonl", [{"image": name, "caption": "a"}])
        outside = f"lies outside {file.parent}; link it there, or name its folder with `edgeclip eval --images`"
        assert refusal(file) == f"{file}:1: image {name!r} {outside}"
    for name in (str(inside), "../data/a.png", "x/../a.png"):
        write_lines(tmp_path / "data" / "captions.jsonl", [{"image": name, "caption": "a"}])
        assert read(file).images == (inside,)


def test_a_folder_named_by_the_user_may_be_read(tmp_path: Path) -> None:
    secret, _ = write_images(tmp_path, "secret.png", "data/a.png")
    file = write_lines(tmp_path / "data" / "captions.jsonl", [{"image": str(secret), "caption": "a"}])
    assert read(file, images=tmp_path).images == (secret,)
    assert read(file, images=Path(tmp_path.anchor)).images == (secret,)
    write_lines(file, [{"image": "../secret.png", "caption": "a"}])
    assert "lies outside" in refusal(file, images=tmp_path)


def test_the_working_folder_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "secret.png", "data/a.png")
    write_lines(tmp_path / "data" / "captions.jsonl", [{"image": "a.png", "caption": "a"}])
    monkeypatch.chdir(tmp_path / "data")
    assert read(Path("captions.jsonl")).images == (Path("a.png"),)
    write_lines(tmp_path / "data" / "captions.jsonl", [{"image": "../secret.png", "caption": "a"}])
    assert "lies outside ." in refusal(Path("captions.jsonl"))


def test_links_are_the_users_own(tmp_path: Path) -> None:
    """People link their one copy of COCO into many folders."""
    write_images(tmp_path, "store/a.png")
    file = write_lines(tmp_path / "data" / "captions.jsonl", [{"image": "a.png", "caption": "a"}])
    (tmp_path / "data" / "images").symlink_to(tmp_path / "store")
    assert read(file).images == (tmp_path / "data" / "images" / "a.png",)


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "captions.jsonl", [{"image": "a.png", "caption": "a"}])
    (tmp_path / "a.png").mkdir()
    assert refusal(file) == f"{file}:1: image 'a.png' is not in {tmp_path}, nor there in images"
    write_lines(file, [{"image": "x" * 5000, "caption": "a"}])
    message = refusal(file)
    assert f"image '{'x' * 97}...{'x' * 98}' is not in" in message and len(message) < 500


# Images with a .txt beside each


def test_images_with_texts_beside_them(tmp_path: Path) -> None:
    images = write_images(tmp_path, "b.PNG", "a.jpg")
    write_lines(tmp_path / "a.txt", ["\ufefffirst", "", " second "], end="\r\n")
    write_lines(tmp_path / "b.txt", ["third"])
    data = read(tmp_path)
    assert (data.name, data.images) == (tmp_path.name, (images[1], images[0]))
    assert captions(data) == [("first", 0, None), ("second", 0, None), ("third", 1, None)]
    assert captions(read(tmp_path, limit=1)) == [("first", 0, None), ("second", 0, None)]


def test_what_belongs_to_no_image_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, "a.png")
    write_lines(tmp_path / "a.txt", ["a"])
    for name in ("b.txt", "README.md", ".hidden"):
        (tmp_path / name).touch()
    assert len(read(tmp_path).images) == 1
    told = f"edgeclip: {tmp_path}: left out 2 files that are no images, e.g. README.md\n"
    assert capsys.readouterr().err == told


def test_images_without_their_texts(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    assert refusal(tmp_path) == f"{tmp_path}/a.png: a.txt with its captions is not beside it"
    write_lines(tmp_path / "a.txt", [" "])
    assert refusal(tmp_path) == f"{tmp_path}/a.txt: image 'a.png' has no caption"
    write_images(tmp_path, "a.jpg")
    twin = "another image has the same name but for the suffix, so the same .txt"
    assert refusal(tmp_path) == f"{tmp_path}/a.jpg: {twin}"
    assert "--images does not go with" in refusal(tmp_path, images=tmp_path)


def test_other_captions_are_what_they_are_called(own: Path, tmp_path: Path) -> None:
    assert read(own, name="XTD10").benchmark == "xtd10"
    write_images(tmp_path, "Flickr30k/a.png")
    write_lines(tmp_path / "Flickr30k" / "a.txt", ["a"])
    assert read(tmp_path / "Flickr30k").benchmark == "flickr30k"
    assert read(tmp_path / "Flickr30k", limit=1).benchmark is None
