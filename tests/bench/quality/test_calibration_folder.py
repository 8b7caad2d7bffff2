"""A folder is read as it is meant, an even share of it when it is large; what is wrong is said with its line."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip import InputError, Manifest, TruncationWarning
from edgeclip.families.family import Item
from edgeclip.inputs.square import preprocess_image
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip_bench.quality import calibration_folder
from edgeclip_bench.quality.calibration_folder import read_samples
from edgeclip_quant.inputs.made_up import Samples
from tests.scenes.damage import reseal
from tests.scenes.layout_files import write_images, write_lines

CAPTIONS = "captions.jsonl"


def read(folder: Path, bundle: Path) -> Samples:
    samples: Samples = read_samples(folder, bundle, Manifest.read(bundle))
    return samples


def texts_of(samples: Samples, bundle: Path) -> list[str]:
    """In words: all of these are of letters that the golden tokenizer has as they are."""
    manifest = Manifest.read(bundle)
    tokenizer = TextTokenizer(bundle / manifest.need_text().file, manifest.need_text())
    decoded: list[str] = [tokenizer._tokenizer.decode(item.arrays["input_ids"].tolist()) for item in samples.text]
    return decoded


def images_of(samples: Samples) -> list[int]:
    """The numbers that `write_images` painted them with."""
    return [int(item.arrays["pixel_values"][0, 0, 0]) for item in samples.image]


def ids_of(item: Item) -> tuple[int, ...]:
    return tuple(item.arrays["input_ids"].tolist())


def refusal(folder: Path, bundle: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, bundle)
    message = str(caught.value)
    assert "\n" not in message
    return message


def captioned(folder: Path, rows: Sequence[object], images: Sequence[str] = ("a.png", "b.png", "c.png")) -> Path:
    write_images(folder, *images)
    write_lines(folder / CAPTIONS, rows)
    return folder


def test_images_and_the_lines_of_text_files(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path, "b.png", "a.PNG", "c.jpeg")
    (tmp_path / "texts.txt").write_bytes("\ufeffone\r\n\r\n  \r\ntwo two\r\n".encode())
    (tmp_path / "more.TXT").write_text("three\n\u2028\nfour five", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not this", encoding="utf-8")
    (tmp_path / "deeper").mkdir()
    write_images(tmp_path / "deeper", "d.png")
    samples = read(tmp_path, bundle)
    assert samples.name == tmp_path.name and samples.pairs is None
    assert images_of(samples)[:2] == [1, 0]  # by name; a JPEG's colours move
    assert texts_of(samples, bundle) == ["three", "four five", "one", "two two"]
    side = Manifest.read(bundle).need_image().size_px
    assert {item.arrays["pixel_values"].shape for item in samples.image} == {(side, side, 3)}
    assert {item.arrays["input_ids"].dtype for item in samples.text} == {np.dtype(np.int64)}


def test_inputs_are_what_an_encoder_makes_of_them(bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(bundle)
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (90, 70 + index, 3), dtype=np.uint8) for index in range(2)]
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    write_lines(tmp_path / "t.txt", ["ein Satz", "zwei"])
    samples = read(tmp_path, bundle)
    for picture, item in zip(pictures, samples.image, strict=True):
        wanted_pixels = preprocess_image(picture, manifest.need_image())
        np.testing.assert_array_equal(item.arrays["pixel_values"], wanted_pixels)
    tokenizer = TextTokenizer(bundle / manifest.need_text().file, manifest.need_text())
    rows = tokenizer.encode(["ein Satz", "zwei"], None).rows
    for item, wanted in zip(samples.text, rows, strict=True):
        np.testing.assert_array_equal(item.arrays["input_ids"], wanted)


def test_captions_in_their_forms(bundle: Path, tmp_path: Path) -> None:
    rows: list[object] = [
        {"image": "b.png", "caption": "one"},
        "",
        {"image": "a.png", "captions": ["two", "three"]},
        {"image": "c.png", "captions": {"de": ["four"], "fr": "five", "nl": []}},
        {"image": "d.png", "captions": "ten", "id": 7},
    ]
    captioned(tmp_path, rows, ("a.png", "b.png", "c.png", "d.png"))
    write_images(tmp_path, "unnamed.png")
    write_lines(tmp_path / "texts.txt", ["not these"])
    samples = read(tmp_path, bundle)
    assert texts_of(samples, bundle) == ["one", "two", "three", "four", "five", "ten"]
    assert images_of(samples) == [1, 0, 2, 3]
    assert samples.pairs == (0, 1, 1, 2, 2, 3)


def test_an_image_on_several_lines_is_one_image(bundle: Path, tmp_path: Path) -> None:
    """As Flickr's and COCO's lists have it, a line for each caption; twice, it would be its own rival."""
    rows = [
        {"image": "a.png", "caption": "one"},
        {"image": "b.png", "caption": "two"},
        {"image": "./a.png", "caption": "three"},
        {"image": "images/../a.png", "caption": "four"},
    ]
    samples = read(captioned(tmp_path, rows), bundle)
    assert images_of(samples) == [0, 1] and samples.pairs == (0, 1, 0, 0)


def test_images_may_lie_in_a_folder_of_that_name(bundle: Path, tmp_path: Path) -> None:
    rows = [{"image": f"{name}.png", "caption": name} for name in ("a", "b")]
    captioned(tmp_path, rows, ("b.png",))
    write_images(tmp_path / "images", "b.png", "a.png")
    samples = read(tmp_path, bundle)
    assert images_of(samples) == [1, 0]  # b.png beside the captions goes first


def test_a_caption_may_hold_what_others_take_for_the_end_of_a_line(bundle: Path, tmp_path: Path) -> None:
    rows = [{"image": "a.png", "caption": "one\u2028two\u0085three"}, {"image": "b.png", "caption": "x"}]
    path = captioned(tmp_path, rows) / CAPTIONS
    assert len(read(tmp_path, bundle).text) == 2
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # as Windows has it
    assert len(read(tmp_path, bundle).text) == 2


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"image": "a.png", "caption": "x"', "not JSON ("),
        ({"image": "a.png"}, "has neither of 'caption' and 'captions'"),
        ({"image": "a.png", "captions": []}, "image 'a.png' has no caption"),
        ({"image": "a.png", "captions": ["x", " "]}, "a caption is empty"),
        ({"image": "z.png", "caption": "x"}, "image 'z.png' is not in "),
        ({"image": "../b.png", "caption": "x"}, "image '../b.png' lies outside "),
        ({"image": "/etc/hostname", "caption": "x"}, "image '/etc/hostname' lies outside "),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(
    bundle: Path, tmp_path: Path, row: object, told: str
) -> None:
    """As `edgeclip eval` says it, whose reader this is (`test_layouts_images`)."""
    folder = captioned(tmp_path / "photos", [{"image": "b.png", "caption": "y"}, "", row])
    write_images(tmp_path, "b.png")
    assert refusal(folder, bundle).startswith(f"{folder / CAPTIONS}:3: {told}")


def test_metadata_of_an_imagefolder_is_read_too(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    write_lines(tmp_path / "metadata.csv", ["file_name,text", "b.png,one", "a.png,two", "b.png,three"])
    samples = read(tmp_path, bundle)
    assert images_of(samples) == [1, 0] and samples.pairs == (0, 1, 0)
    assert texts_of(samples, bundle) == ["one", "two", "three"]


def test_subfolders_are_taken_when_asked(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "sub/b.png", "__MACOSX/c.png")
    for name in ("t.txt", "sub/u.txt", "__MACOSX/v.txt", "._t.txt"):
        write_lines(tmp_path / name, [f"{name[-5]} {name[-5]}"])
    samples: Samples = read_samples(tmp_path, bundle, Manifest.read(bundle), is_recursive=True)
    assert images_of(samples) == [0, 1] and texts_of(samples, bundle) == ["u u", "t t"]


def test_broken_images_go_with_their_captions(bundle: Path, tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(5)]
    folder = captioned(tmp_path, [{"image": name, "captions": [f"{name} x", f"{name} y"]} for name in names], names)
    for name in (names[1], names[4]):
        (folder / name).write_bytes(b"")
    told: list[str] = []
    samples: Samples = read_samples(folder, bundle, Manifest.read(bundle), on_skip=told.append)
    assert images_of(samples) == [0, 2, 3] and samples.pairs == (0, 0, 1, 1, 2, 2) and len(samples.text) == 6
    assert told == [f"--calibrate: image ({folder / name}): is empty (0 bytes)" for name in (names[1], names[4])]
    assert samples.name == f"{folder.name} (3 of 5 images, 6 of 10 texts)"
    with pytest.raises(InputError, match=r"1.png\): is empty"):
        read(folder, bundle)


def test_an_image_that_is_named_and_missing_is_skipped_like_a_broken_one(bundle: Path, tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(4)]
    lines = [{"image": name, "captions": [f"{name} x", f"{name} y"]} for name in names]
    folder = captioned(tmp_path, [*lines, {"image": names[1], "caption": "again"}], names)
    (folder / names[1]).unlink()
    told: list[str] = []
    samples: Samples = read_samples(folder, bundle, Manifest.read(bundle), on_skip=told.append)
    assert images_of(samples) == [0, 2, 3] and samples.pairs == (0, 0, 1, 1, 2, 2)
    missing = f"{folder / CAPTIONS}:2: image '1.png' is not in {folder}, nor there in images"
    assert told == [missing] and refusal(folder, bundle) == missing


@pytest.mark.parametrize("layout", ["split", "data", "karpathy", "capitals"])
def test_every_layout_that_eval_reads_is_read(bundle: Path, tmp_path: Path, layout: str) -> None:
    """Not only captions.jsonl: the folder's texts would otherwise say nothing of its images."""
    place = {"split": tmp_path / "train", "data": tmp_path / "data" / "train"}.get(layout, tmp_path)
    write_images(place, "a.png", "b.png")
    rows = [("a.png", "one"), ("b.png", "two")]
    if layout in ("split", "data"):
        write_lines(place / "metadata.jsonl", [{"file_name": name, "text": text} for name, text in rows])
    elif layout == "capitals":
        write_lines(place / "captions.txt", ["Image,Caption", *map(",".join, rows)])
    else:
        images = [{"filename": name, "split": "test", "sentences": [{"raw": text}]} for name, text in rows]
        write_lines(place / "dataset.json", [{"images": images}])
    samples = read(tmp_path, bundle)
    assert images_of(samples) == [0, 1] and samples.pairs == (0, 1)
    assert texts_of(samples, bundle) == ["one", "two"]


def test_a_link_is_its_users_own(bundle: Path, tmp_path: Path) -> None:
    (outside,) = write_images(tmp_path, "outside.png")
    folder = captioned(tmp_path / "photos", [{"image": name, "caption": name} for name in ("a.png", "link.png")])
    (folder / "link.png").symlink_to(outside)
    assert len(read(folder, bundle).image) == 2


def test_an_absolute_name_may_lie_inside(bundle: Path, tmp_path: Path) -> None:
    rows = [{"image": str(tmp_path / name), "caption": name} for name in ("a.png", "b.png")]
    assert images_of(read(captioned(tmp_path, rows), bundle)) == [0, 1]


def test_a_folder_may_be_named_from_where_one_stands(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = captioned(tmp_path / "photos", [{"image": name, "caption": name} for name in ("a.png", "b.png")])
    monkeypatch.chdir(folder)
    assert read(Path("."), bundle).name == "photos"
    monkeypatch.chdir(tmp_path)
    assert images_of(read(Path("photos"), bundle)) == [0, 1]


def test_too_little_is_refused(bundle: Path, tmp_path: Path) -> None:
    def told(folder: Path, images: int, texts: int) -> None:
        assert refusal(folder, bundle) == (
            f"--calibrate {folder}: {images} images and {texts} texts (lines of .txt files, or captions in "
            "captions.jsonl), wanted 2 of each or more"
        )

    assert refusal(tmp_path, bundle) == f"{tmp_path}: holds no image (it is empty)"
    write_images(tmp_path, "a.png", "b.png")
    told(tmp_path, 2, 0)
    write_lines(tmp_path / "t.txt", ["one", ""])
    told(tmp_path, 2, 1)
    (tmp_path / "b.png").unlink()
    write_lines(tmp_path / "t.txt", ["one", "two"])
    told(tmp_path, 1, 2)
    told(captioned(tmp_path / "photos", [{"image": "a.png", "captions": ["x", "y"]}]), 1, 2)
    assert refusal(captioned(tmp_path / "empty", []), bundle) == f"{tmp_path / 'empty' / CAPTIONS}: is empty"


def test_what_cannot_be_read_is_named(bundle: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refusal(missing, bundle) == f"--calibrate {missing}: is no folder, wanted one with images and texts"
    write_images(tmp_path, "a.png", "b.png")
    (tmp_path / "t.txt").write_bytes(b"one\ntwo\xff\n")
    told = f"--calibrate {tmp_path / 't.txt'}: not UTF-8 (invalid start byte at byte 7)"
    assert refusal(tmp_path, bundle) == told
    write_lines(tmp_path / "t.txt", ["one", "two"])
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert refusal(tmp_path, bundle).startswith(f"--calibrate: image ({tmp_path / 'b.png'}): not an image")


def test_of_much_an_even_share_is_taken(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_folder, "_MOST_IMAGES", 4)
    monkeypatch.setattr(calibration_folder, "_MOST_TEXTS", 3)
    write_images(tmp_path, *(f"{index}.png" for index in range(10)))
    write_lines(tmp_path / "t.txt", ["one", "two", "three", "four", "five", "six"])
    samples = read(tmp_path, bundle)
    assert images_of(samples) == [0, 2, 5, 7] and texts_of(samples, bundle) == ["one", "three", "five"]
    assert samples.name == f"{tmp_path.name} (4 of 10 images, 3 of 6 texts)"


def test_of_many_pairs_whole_ones_are_taken(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text without its image; of texts an even share of those."""
    names = [f"{index}.png" for index in range(6)]
    rows = [{"image": name, "captions": [f"{name} one", f"{name} two"]} for name in names]
    folder = captioned(tmp_path, rows, names)
    tokens = {ids_of(item): (index // 2, index % 2) for index, item in enumerate(read(folder, bundle).text)}
    monkeypatch.setattr(calibration_folder, "_MOST_IMAGES", 3)
    samples = read(folder, bundle)
    assert images_of(samples) == [0, 2, 4] and samples.pairs == (0, 0, 1, 1, 2, 2)
    monkeypatch.setattr(calibration_folder, "_MOST_TEXTS", 4)
    samples = read(folder, bundle)
    assert samples.name == f"{folder.name} (3 of 6 images, 4 of 12 texts)"
    assert samples.pairs is not None and len(samples.text) == len(samples.pairs) == 4
    for item, image in zip(samples.text, samples.pairs, strict=True):
        assert tokens[ids_of(item)][0] == images_of(samples)[image]
    assert set(samples.pairs) == {0, 1, 2}


def test_a_text_that_is_cut_is_told(copied_bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(copied_bundle)
    document = json.loads((copied_bundle / "manifest.json").read_text(encoding="utf-8"))
    document["text"]["max_length"] = 5
    (copied_bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    write_images(tmp_path / "photos", "a.png", "b.png")
    write_lines(tmp_path / "photos" / "t.txt", ["one two three four five six", "x", "seven eight nine ten eleven"])
    with pytest.warns(TruncationWarning, match="2 of 3 texts were cut to 5 tokens"):
        samples = read(tmp_path / "photos", copied_bundle)
    assert max(item.tokens for item in samples.text) == 5
    assert manifest.need_text().max_length > 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reseal(copied_bundle, text=manifest.text)
        read(tmp_path / "photos", copied_bundle)
