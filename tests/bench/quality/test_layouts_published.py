"""Captioned images as their authors publish them: read whole, or refused at the exact place."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.scenes.captioned_images import captions, read
from tests.scenes.layout_files import refusal, write_images, write_lines

# Karpathy's splits


def entry(filename: str, split: str, *raw: str, **more: object) -> dict[str, Any]:
    sentences = [{"tokens": text.split(), "raw": text, "imgid": 0, "sentid": 0} for text in raw]
    return {"sentids": [0], "imgid": 0, "sentences": sentences, "split": split, "filename": filename, **more}


def write_karpathy(path: Path, *entries: object) -> Path:
    return write_lines(path, [{"images": entries, "dataset": "flickr30k"}])


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    write_images(tmp_path, "flickr30k-images/1.jpg", "flickr30k-images/2.jpg", "flickr30k-images/3.jpg")
    return write_karpathy(
        tmp_path / "dataset_flickr30k.json",
        entry("1.jpg", "train", "Not this."),
        entry("2.jpg", "test", "Two young guys .", "Two men \n"),
        entry("3.jpg", "test", "A child ."),
    )


def test_karpathys_flickr30k(flickr: Path) -> None:
    for path in (flickr, flickr.parent):
        data = read(path)
        assert [path.name for path in data.images] == ["2.jpg", "3.jpg"]
        assert captions(data) == [("Two young guys .", 0, None), ("Two men", 0, None), ("A child .", 1, None)]
    assert read(flickr).name == "dataset_flickr30k"
    assert captions(read(flickr, split="train")) == [("Not this.", 0, None)]
    assert captions(read(flickr, limit=1))[-1] == ("Two men", 0, None)
    assert refusal(flickr, split="val") == f"{flickr}: no split 'val'; there are: test, train"
    assert refusal(flickr, languages=["en"]) == f"{flickr}: nothing in language 'en'; its texts name no language"


def test_karpathys_coco_has_folders_and_restval(tmp_path: Path) -> None:
    """Images under `filepath`, or straight in the folder given; restval is for training."""
    write_images(
        tmp_path, "val2014/COCO_val2014_1.jpg", "val2014/COCO_val2014_2.jpg", "train2014/COCO_train2014_3.jpg"
    )
    file = write_karpathy(
        tmp_path / "dataset_coco.json",
        entry("COCO_val2014_1.jpg", "test", "A man .", filepath="val2014", cocoid=1),
        entry("COCO_val2014_2.jpg", "restval", "A road .", filepath="val2014", cocoid=2),
        entry("COCO_train2014_3.jpg", "train", "A dog .", filepath="train2014", cocoid=3),
    )
    assert read(file).images == (tmp_path / "val2014" / "COCO_val2014_1.jpg",)
    assert read(file, images=tmp_path / "val2014").images == (tmp_path / "val2014" / "COCO_val2014_1.jpg",)
    assert [path.name for path in read(file, split="train").images] == ["COCO_val2014_2.jpg", "COCO_train2014_3.jpg"]
    assert refusal(file, split="restval") == f"{file}: no split 'restval'; there are: test, train"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], ": 'images' is empty"),
        ([1], ": images[0]: wanted a JSON object, found a number"),
        ([entry("2.jpg", "test", "a"), {}], ": images[1]: 'split' is missing; there are: no fields"),
        (
            [{"split": "test", "filename": "2.jpg"}],
            ": images[0]: 'sentences' is missing; there are: 'split', 'filename'",
        ),
        ([entry("2.jpg", "test")], ": images[0]: image '2.jpg' has no caption"),
        ([entry("2.jpg", "test", " ")], ": images[0]: 'raw' is empty"),
        ([entry("2.jpg", "test", sentences=["a"])], ": images[0]: 'sentences': wanted a JSON object, found a string"),
        ([entry("2.jpg", "test", sentences="a")], ": images[0]: 'sentences': wanted a JSON array, found a string"),
        ([entry("2.jpg", "test", "a"), entry("2.jpg", "test", "a")], ": images[1]: image '2.jpg' is there twice"),
        ([entry("../../2.jpg", "test", "a")], ": images[0]: image '../../2.jpg' lies outside"),
        ([entry("2.jpg", "test", "a", filepath="/etc")], ": images[0]: image '/etc/2.jpg' lies outside"),
        ([entry("9.jpg", "test", "a")], ": images[0]: image '9.jpg' is not in"),
    ],
)
def test_karpathys_split_refuses(flickr: Path, entries: list[object], message: str) -> None:
    write_karpathy(flickr, *entries)
    assert refusal(flickr).startswith(f"{flickr}{message}")


def test_images_that_are_not_asked_for_need_not_be_there(flickr: Path) -> None:
    (flickr.parent / "flickr30k-images" / "1.jpg").unlink()
    assert len(read(flickr).images) == 2
    assert "image '1.jpg' is not in" in refusal(flickr, split="train")


# COCO's captions


def write_coco(path: Path, images: object, annotations: object) -> Path:
    return write_lines(path, [{"info": {"year": 2017}, "images": images, "licenses": [], "annotations": annotations}])


IMAGES = [{"license": 4, "file_name": "07.jpg", "id": 7}, {"license": 4, "file_name": "05.jpg", "id": 5}]
ANNOTATIONS = [
    {"image_id": 5, "id": 1, "caption": "A black Honda."},
    {"image_id": 7, "id": 2, "caption": "A bicycle \n"},
    {"image_id": 5, "id": 3, "caption": "A motorcycle."},
]


@pytest.mark.parametrize("place", ["annotations/captions_val2017.json", "captions_val2017.json"])
def test_cocos_captions(tmp_path: Path, place: str) -> None:
    """Unpacked as COCO's archives are, or side by side; a file's captions are grouped by image."""
    write_images(tmp_path, "val2017/05.jpg", "val2017/07.jpg")
    file = write_coco(tmp_path / place, IMAGES, ANNOTATIONS)
    data = read(file)
    assert data.images == (tmp_path / "val2017" / "07.jpg", tmp_path / "val2017" / "05.jpg")
    assert captions(data) == [("A bicycle", 0, None), ("A black Honda.", 1, None), ("A motorcycle.", 1, None)]
    assert read(file, images=tmp_path / "val2017") == data
    assert captions(read(file.parent)) == captions(data)
    assert captions(read(file, limit=1)) == [("A bicycle", 0, None)]
    assert "--split does not go with COCO captions, of which each split is a file" in refusal(file, split="val")
    (tmp_path / "val2017" / "05.jpg").unlink()
    assert refusal(file).startswith(
        f"{file}: images[1]: image '05.jpg' is not in {file.parent}, nor there in images,"
    )


def test_coco_as_it_unzips(tmp_path: Path) -> None:
    """annotations/ beside the images; its other files are of other tasks, and the split is what is held out."""
    write_images(tmp_path, "val2017/05.jpg", "val2017/07.jpg", "train2017/01.jpg")
    write_coco(tmp_path / "annotations" / "captions_val2017.json", IMAGES, ANNOTATIONS)
    write_coco(tmp_path / "annotations" / "instances_val2017.json", IMAGES, [{"image_id": 5, "bbox": []}])
    whole = read(tmp_path)
    assert (whole.name, [path.name for path in whole.images]) == (tmp_path.name, ["07.jpg", "05.jpg"])
    train = [{"id": 1, "file_name": "01.jpg"}], [{"image_id": 1, "caption": "a"}]
    write_coco(tmp_path / "annotations" / "captions_train2017.json", *train)
    assert read(tmp_path) == read(tmp_path, split="val") == read(tmp_path, split="val2017") == whole
    assert [path.name for path in read(tmp_path, split="train").images] == ["01.jpg"]
    assert refusal(tmp_path, split="test") == f"{tmp_path}: no split 'test'; there are: train, val"
    write_coco(tmp_path / "annotations" / "captions_val2014.json", IMAGES, ANNOTATIONS)
    there = "there are: train2017, val2014, val2017"
    assert refusal(tmp_path, split="val") == f"{tmp_path}: no split 'val'; {there}"
    assert refusal(tmp_path).endswith(f"name one with --split; {there}")
    assert read(tmp_path, split="val2017") == whole
    write_lines(tmp_path / "captions.jsonl", [{"image": "val2017/05.jpg", "caption": "a"}])
    assert "holds annotations/captions_*.json, captions.jsonl; name the file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([], [], ": holds no image with captions"),
        (IMAGES, [], ": images[0]: image '07.jpg' has no caption"),
        (IMAGES, ANNOTATIONS[1:2], ": images[1]: image '05.jpg' has no caption"),
        ([*IMAGES, IMAGES[0]], ANNOTATIONS, ": images[2]: id 7 is there twice"),
        (
            [*IMAGES, {**IMAGES[0], "id": 8}],
            [*ANNOTATIONS, {"image_id": 8, "caption": "a"}],
            ": images[2]: image '07.jpg' is there twice",
        ),
        (
            IMAGES,
            [*ANNOTATIONS, {"image_id": 6, "caption": "a"}],
            ": annotations[3]: image_id 6 is not among the images",
        ),
        (
            IMAGES,
            [{"image_id": 5, "bbox": []}],
            ": annotations[0]: 'caption' is missing; there are: 'image_id', 'bbox'",
        ),
        (IMAGES, [{"image_id": True, "caption": "a"}], ": annotations[0]: 'image_id' is a boolean, wanted a string"),
        (IMAGES, {}, ": 'annotations': wanted a JSON array, found an object"),
        (
            [{"id": 1, "file_name": "../a.jpg"}],
            [{"image_id": 1, "caption": "a"}],
            ": images[0]: image '../a.jpg' lies outside",
        ),
    ],
)
def test_cocos_captions_refuse(tmp_path: Path, images: object, annotations: object, message: str) -> None:
    write_images(tmp_path, "val2017/05.jpg", "val2017/07.jpg")
    file = write_coco(tmp_path / "annotations" / "captions_val2017.json", images, annotations)
    assert refusal(file).startswith(f"{file}{message}")


def test_a_file_in_annotations_may_still_name_no_image_elsewhere(tmp_path: Path) -> None:
    """The folder above is looked into for val2017 and its like, for nothing else."""
    write_images(tmp_path, "secret.jpg")
    file = write_coco(
        tmp_path / "annotations" / "captions.json",
        [{"id": 1, "file_name": str(tmp_path / "secret.jpg")}],
        [{"image_id": 1, "caption": "a"}],
    )
    assert "lies outside" in refusal(file)


def test_only_above_annotations_are_images_looked_for(tmp_path: Path) -> None:
    write_images(tmp_path, "val2017/05.jpg")
    file = write_coco(tmp_path / "mine" / "captions.json", IMAGES[1:], ANNOTATIONS[:1])
    assert "image '05.jpg' is not in" in refusal(file)
    assert len(read(file, images=tmp_path).images) == 1


# Crossmodal-3600


def crossmodal(key: str, **by_language: list[str]) -> dict[str, Any]:
    line: dict[str, Any] = {"image/key": key, "image/locale": "de"}
    for language, texts in by_language.items():
        line[language] = {"caption": texts, "caption/tokenized": texts, "caption/tokenized/lowercase": texts}
    return line


@pytest.fixture
def xm3600(tmp_path: Path) -> Path:
    write_images(tmp_path, "images/000411001ff7dd4f.jpg", "images/0a.jpg")
    lines = [
        crossmodal("000411001ff7dd4f", de=["Ein Haus", "Haus"], en=["A house"], quz=["Wasi"]),
        crossmodal("0a", de=["Ein Hund"], en=["A dog", "Dog"]),
    ]
    return write_lines(tmp_path / "captions.jsonl", lines)


def test_crossmodal_3600(xm3600: Path) -> None:
    """ "image/locale" is where the picture is from, and no language of a caption."""
    data = read(xm3600.parent)
    assert [path.name for path in data.images] == ["000411001ff7dd4f.jpg", "0a.jpg"]
    assert captions(data)[:4] == [("Ein Haus", 0, "de"), ("Haus", 0, "de"), ("A house", 0, "en"), ("Wasi", 0, "quz")]
    english = read(xm3600, languages=["en"], images=xm3600.parent / "images")
    assert captions(english) == [("A house", 0, "en"), ("A dog", 1, "en"), ("Dog", 1, "en")]
    quechua = read(xm3600, languages=["quz"])
    assert (len(quechua.images), captions(quechua)) == (2, [("Wasi", 0, "quz")])
    assert captions(read(xm3600, languages=["en"], limit=1)) == [("A house", 0, "en")]
    assert refusal(xm3600, languages=["it"]) == f"{xm3600}: nothing in language 'it'; there are: de, en, quz"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (crossmodal("none", en=["a"]), ":3: image 'none.jpg' is not in"),
        (crossmodal("../../secret", en=["a"]), ":3: image '../../secret.jpg' lies outside"),
        (crossmodal("0a", en=["a"]), ":3: image '0a.jpg' is there twice"),
        (crossmodal("0a"), ":3: image '0a.jpg' has no caption"),
        ({"image/key": "0a", "en": {}}, ":3: 'en': 'caption' is missing; there are: no fields"),
        ({"image/key": "0a", "en": {"caption": "a"}}, ":3: 'en': wanted a JSON array, found a string"),
        (crossmodal("0a", en=[""]), ":3: 'en': a caption is empty"),
        ({"image": "a", "caption": "a"}, ":3: 'image/key' is missing; there are: 'image', 'caption'"),
    ],
)
def test_crossmodal_3600_refuses(xm3600: Path, line: object, message: str) -> None:
    write_lines(xm3600, [*xm3600.read_text().splitlines(), line])
    assert refusal(xm3600).startswith(f"{xm3600}{message}")


# XTD10


@pytest.fixture
def xtd10(tmp_path: Path) -> Path:
    """The repository's three folders, with Windows line ends and a blank line at the end for good measure."""
    names = ["COCO_train2014_000000061844.jpg", "COCO_val2014_000000129945.jpg"]
    write_images(tmp_path, f"train2014/{names[0]}", f"val2014/{names[1]}")
    write_lines(tmp_path / "XTD10" / "test_image_names.txt", [*names, ""])
    write_lines(tmp_path / "XTD10" / "test_1kcaptions_zh.txt", ["\ufeff棒球大联盟联赛上", "鼠标"], end="\r\n")
    write_lines(tmp_path / "XTD10" / "test_1kcaptions_it.txt", ["una partita", "un mouse", " ", ""])
    write_lines(tmp_path / "MIC" / "test_1kcaptions_en.txt", ["a game , here", "a mouse"])
    write_lines(tmp_path / "STAIR" / "test_1kcaptions_jp.txt", ["試合", "マウス"])
    write_lines(tmp_path / "README.md", ["words"])
    return tmp_path


def test_xtd10_as_its_repository_has_it(xtd10: Path) -> None:
    """Japanese is "jp" there, and "ja" to everyone else."""
    data = read(xtd10)
    assert [path.name[:12] for path in data.images] == ["COCO_train20", "COCO_val2014"]
    assert captions(data) == [
        ("a game , here", 0, "en"),
        ("una partita", 0, "it"),
        ("試合", 0, "ja"),
        ("棒球大联盟联赛上", 0, "zh"),
        ("a mouse", 1, "en"),
        ("un mouse", 1, "it"),
        ("マウス", 1, "ja"),
        ("鼠标", 1, "zh"),
    ]
    assert captions(read(xtd10, languages=["ja"], limit=1)) == [("試合", 0, "ja")]
    assert refusal(xtd10, languages=["jp"]) == f"{xtd10}: nothing in language 'jp'; there are: en, it, ja, zh"


def test_xtd10_all_in_one_folder(xtd10: Path) -> None:
    data = read(xtd10 / "XTD10", images=xtd10)
    assert {caption.language for caption in data.captions} == {"it", "zh"}
    assert "image 'COCO_train2014_000000061844.jpg' is not in" in refusal(xtd10 / "XTD10")


def test_a_language_that_is_not_asked_for_is_not_read(xtd10: Path) -> None:
    (xtd10 / "MIC" / "test_1kcaptions_en.txt").write_bytes(b"\xff")
    assert len(read(xtd10, languages=["it"]).captions) == 2
    assert "test_1kcaptions_en.txt:1: not UTF-8" in refusal(xtd10)


def test_xtd10_refuses(xtd10: Path) -> None:
    names, english = xtd10 / "XTD10" / "test_image_names.txt", xtd10 / "MIC" / "test_1kcaptions_en.txt"
    write_lines(english, ["a game", "", "a mouse"])
    assert refusal(xtd10) == f"{english}:2: the line is empty"
    write_lines(english, ["a game"])
    assert refusal(xtd10) == f"{english}: 1 lines, but {names} has 2"
    write_lines(xtd10 / "XTD10" / "test_1kcaptions_en.txt", ["a game", "a mouse"])
    twice = f"{xtd10}/XTD10/test_1kcaptions_en.txt has the captions in 'en' too; keep one"
    assert refusal(xtd10) == f"{english}: {twice}"
    english.unlink()
    names.rename(names.with_name("names.txt"))
    wanted = "XTD10 has one of the first and one of the second a language"
    assert refusal(xtd10) == f"{xtd10}: holds 0 of test_image_names.txt and 4 of test_1kcaptions_*.txt; {wanted}"


def test_xtd10s_names_are_checked_too(xtd10: Path) -> None:
    names = write_lines(xtd10 / "XTD10" / "test_image_names.txt", ["../secret.jpg", "b.jpg"])
    assert refusal(xtd10).startswith(f"{names}:1: image '../secret.jpg' lies outside {xtd10}")
    write_lines(names, ["train2014/COCO_train2014_000000061844.jpg"] * 2)
    assert refusal(xtd10) == f"{names}:2: image 'train2014/COCO_train2014_000000061844.jpg' is there twice"


# Which known test it is


def test_files_that_say_what_they_are_need_no_name(flickr: Path, tmp_path: Path) -> None:
    """The whole test split alone: another split, or fewer images, is another test."""
    for name in (None, "mine", "coco"):
        assert read(flickr, name=name).benchmark == "flickr30k"
    assert read(flickr, split="train").benchmark is None
    assert read(flickr, limit=1).benchmark is None
    document = json.loads(flickr.read_text())
    write_lines(flickr, [{**document, "dataset": "COCO"}])
    assert read(flickr).benchmark == "coco"
    write_lines(flickr, [{"images": document["images"]}])
    assert read(flickr, name="Flickr30k").benchmark == "flickr30k"


def test_crossmodal_3600_is_known_by_its_layout(xm3600: Path) -> None:
    assert read(xm3600).benchmark == read(xm3600, languages=["de"]).benchmark == "xm3600"
    assert read(xm3600, limit=1).benchmark is None


def test_xtd10_is_known_by_its_layout(xtd10: Path) -> None:
    assert read(xtd10).benchmark == "xtd10"
    assert read(xtd10, limit=1).benchmark is None


def test_cocos_own_splits_are_no_known_test_unless_that_is_said(tmp_path: Path) -> None:
    """val2017 is not the 5000 images of Karpathy's test split, though its folder is called coco."""
    write_images(tmp_path, "coco/val2017/05.jpg", "coco/val2017/07.jpg")
    write_coco(tmp_path / "coco" / "annotations" / "captions_val2017.json", IMAGES, ANNOTATIONS)
    assert read(tmp_path / "coco").name == "coco"
    assert read(tmp_path / "coco").benchmark is None
    assert read(tmp_path / "coco", name="COCO").benchmark == "coco"
