"""Class folders: every image under its class, and a message where the folders do not say which that is."""

from pathlib import Path
from typing import Any

import pytest

from edgeclip_bench.quality.class_folders import share_out
from edgeclip_bench.quality.datasets import ClassificationData
from edgeclip_bench.quality.layouts import open_data
from tests.scenes.layout_files import refusal, write_images, write_lines


def read(path: Path, **options: Any) -> ClassificationData:
    (data,) = open_data(path, **options)
    assert isinstance(data, ClassificationData)
    return data


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    write_images(tmp_path / "pets", "persian_cat/2.png", "persian_cat/10.JPEG", "Husky/1.webp", "persian_cat/3.png")
    return tmp_path / "pets"


def test_a_folder_for_each_class(pets: Path) -> None:
    """Sorted by name, as torchvision does it; underscores are spaces in a prompt."""
    data = read(pets)
    assert (data.name, data.classes, data.templates) == ("pets", ("Husky", "persian cat"), ("{}",))
    names = ["Husky/1.webp", "persian_cat/10.JPEG", "persian_cat/2.png", "persian_cat/3.png"]
    assert data.images == tuple(pets / name for name in names)
    assert data.labels == (0, 1, 1, 1)


def test_names_and_prompts_have_files(pets: Path) -> None:
    write_lines(pets / "classes.txt", ["\ufeffpersian_cat\tPersian cat ", "", "Husky\tSiberian husky"], end="\r\n")
    write_lines(pets / "templates.txt", ["a photo of a {}, a pet.", "", "{}"])
    data = read(pets)
    assert data.classes == ("Siberian husky", "Persian cat")
    assert data.templates == ("a photo of a {}, a pet.", "{}")


def test_splits_are_folders_of_class_folders(pets: Path) -> None:
    """Their names and prompts may stand above."""
    pets.rename(pets.with_name("test"))
    folder = pets.parent
    write_images(folder, "train/husky/1.png", "train/tabby/2.png")
    write_lines(folder / "templates.txt", ["a {}"])
    assert read(folder).classes == ("Husky", "persian cat")
    assert read(folder, split="train").classes == ("husky", "tabby")
    assert read(folder).templates == ("a {}",)
    write_lines(folder / "train" / "templates.txt", ["the {}"])
    assert read(folder, split="train").templates == ("the {}",)
    assert refusal(folder, split="val") == f"{folder}: no split 'val'; there are: test, train"
    assert "--split does not go with class folders, which are of no split" in refusal(folder / "test", split="test")


def test_limit_takes_of_every_class_in_turn(pets: Path) -> None:
    """The first of a sorted folder would all be of one class."""
    data = read(pets, limit=3)
    assert (data.labels, [image.name for image in data.images]) == ((0, 1, 1), ["1.webp", "10.JPEG", "2.png"])
    assert read(pets, limit=99) == read(pets)
    assert read(pets, limit=1).classes == ("Husky", "persian cat")


@pytest.mark.parametrize(
    ("sizes", "limit", "shares"),
    [
        ([3, 1, 5], None, [3, 1, 5]),
        ([3, 1, 5], 9, [3, 1, 5]),
        ([3, 1, 5], 8, [3, 1, 4]),
        ([3, 1, 5], 4, [2, 1, 1]),
        ([3, 1, 5], 2, [1, 1, 0]),
    ],
)
def test_share_out(sizes: list[int], limit: int | None, shares: list[int]) -> None:
    assert share_out(sizes, limit) == shares


def test_what_is_no_image_is_counted(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pets / "Husky" / "more").mkdir()
    (pets / "Husky" / "Thumbs.db").touch()
    (pets / "Husky" / "notes.md").touch()
    (pets / "Husky" / ".DS_Store").touch()
    assert len(read(pets).images) == 4
    notes = ("left out 1 file that is no image, e.g. notes.md", "did not enter 1 subfolder, e.g. more")
    assert capsys.readouterr().err == "".join(f"edgeclip: {pets / 'Husky'}: {note}\n" for note in notes)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("classes.txt", ["Husky\tdog", "persian_cat"], ":2: wanted a folder, a tab and the name of its class"),
        ("classes.txt", ["Husky\t "], ":1: wanted a folder, a tab and the name of its class"),
        ("classes.txt", ["Husky\tdog", "tabby\tcat"], ":2: 'tabby' is no folder of {folder}"),
        ("classes.txt", ["Husky\tdog", "Husky\thusky"], ":2: 'Husky' is there twice"),
        ("classes.txt", ["Husky\tdog"], ": has no name for the folder 'persian_cat'"),
        ("classes.txt", ["Husky\tpet", "persian_cat\tpet"], ": 'Husky' and 'persian_cat' are both called 'pet'"),
        ("templates.txt", ["a {}", "a photo"], ":2: wanted one {{}} for the class's name and no other brace"),
        ("templates.txt", ["a {} {}"], ":1: wanted one {{}} for the class's name and no other brace"),
        ("templates.txt", ["a {} {name}"], ":1: wanted one {{}} for the class's name and no other brace"),
        ("templates.txt", ["{{}}"], ":1: wanted one {{}} for the class's name and no other brace"),
        ("templates.txt", [" "], ": holds no prompt"),
    ],
)
def test_class_folders_refuse(pets: Path, name: str, lines: list[object], message: str) -> None:
    file = write_lines(pets / name, lines)
    assert refusal(pets) == f"{file}{message.format(folder=pets)}"


def test_folders_that_are_no_classes(pets: Path) -> None:
    assert "--images does not go with class folders, which hold the images" in refusal(pets, images=pets)
    assert "--language does not go with class folders" in refusal(pets, languages=["en"])
    (pets / "annotations").mkdir()
    no_image = "holds no image; a class has some, and other folders do not belong here"
    assert refusal(pets) == f"{pets}/annotations: {no_image}"
    (pets / "annotations").rmdir()
    write_images(pets, "Persian cat/1.png", "persian cat/1.png")
    assert refusal(pets) == f"{pets}: 'persian cat' and 'persian_cat' are both called 'persian cat'"


def test_one_class_is_nothing_to_choose_from(tmp_path: Path) -> None:
    """More likely a dataset's images without its captions."""
    write_images(tmp_path, "images/1.jpg")
    wanted = "holds one folder of images, wanted one for each of several classes; understood are: captions.jsonl"
    assert refusal(tmp_path).startswith(f"{tmp_path}: no layout that is known: {wanted}")


@pytest.mark.parametrize(
    "names", [("test", "train"), ("train2017", "val2017"), ("Test",), ("other", "dev", "validation")]
)
def test_splits_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_images(tmp_path, *(f"{name}/1.jpg" for name in names))
    splits = ", ".join(name for name in names if name != "other")
    told = f"holds images in {splits}, which are splits and no classes; understood are: captions.jsonl"
    assert refusal(tmp_path).startswith(f"{tmp_path}: no layout that is known: {told}")


def test_one_class_among_others_may_be_called_like_a_split(tmp_path: Path) -> None:
    """CIFAR-100 has a class of trains."""
    write_images(tmp_path, "train/1.jpg", "trout/1.jpg")
    assert read(tmp_path).classes == ("train", "trout")
