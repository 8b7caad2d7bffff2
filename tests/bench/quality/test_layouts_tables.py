"""Captions in a table beside the images, as Hugging Face and Kaggle have them: read whole, or refused by line."""

from pathlib import Path

import pytest

from edgeclip_bench.quality.known_layouts import LAYOUTS
from tests.conftest import DATA
from tests.scenes.captioned_images import captions, read
from tests.scenes.layout_files import refusal, write_images, write_lines

ROOT = DATA.parents[1]


@pytest.mark.parametrize("column", ["text", "caption", "captions", "texts", "description"])
def test_metadata_jsonl(tmp_path: Path, column: str) -> None:
    """One caption, a list of them, more columns; an image on two lines; images in subfolders."""
    images = write_images(tmp_path, "a.png", "train/b.png")
    lines = [
        {"file_name": "a.png", column: "a dot", "width": 4},
        {"file_name": "train/b.png", column: ["two", "three"], "width": 4},
        {"file_name": "a.png", column: "again", "width": 4},
    ]
    file = write_lines(tmp_path / "metadata.jsonl", lines)
    for path in (tmp_path, file):
        data = read(path)
        assert data.images == tuple(images)
        assert captions(data) == [("a dot", 0, None), ("two", 1, None), ("three", 1, None), ("again", 0, None)]


def test_metadata_csv(tmp_path: Path) -> None:
    images = write_images(tmp_path, "a.png", "b.png")
    lines = ["file_name,text,label", 'a.png,"one, ""two""",3', "b.png,three,4", 'b.png,"[""four"", ""five""]",4']
    data = read(write_lines(tmp_path / "metadata.csv", lines, end="\r\n").parent)
    assert data.images == tuple(images)
    assert captions(data) == [('one, "two"', 0, None), ("three", 1, None), ("four", 1, None), ("five", 1, None)]


def test_splits_are_folders_with_metadata(tmp_path: Path) -> None:
    for split, suffix in (("train", "jsonl"), ("test", "jsonl"), ("validation", "csv")):
        write_images(tmp_path / "pets" / split, "a.png")
        lines: list[object] = ["file_name,text", f"a.png,{split}"]
        write_lines(
            tmp_path / "pets" / split / f"metadata.{suffix}",
            lines if suffix == "csv" else [{"file_name": "a.png", "text": split}],
        )
    assert [caption for caption, _, _ in captions(read(tmp_path / "pets"))] == ["test"]
    assert [caption for caption, _, _ in captions(read(tmp_path / "pets", split="validation"))] == ["validation"]
    assert read(tmp_path / "pets", split="train").name == "pets"
    assert refusal(tmp_path / "pets", split="dev").endswith("there are: test, train, validation")


def test_a_column_may_name_the_split(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    lines = ["raw,split,filename", '"[""one"", ""two""]",train,a.png', '"[""three""]",test,b.png']
    file = write_lines(tmp_path / "flickr_annotations_30k.csv", lines)
    assert captions(read(file)) == [("three", 0, None)]
    assert captions(read(file, split="train")) == [("one", 0, None), ("two", 0, None)]


def test_kaggles_flickr8k(tmp_path: Path) -> None:
    """captions.txt beside Images/; commas that nobody quoted belong to the caption."""
    images = write_images(tmp_path / "Images", "1_a.png", "2_b.png")
    lines = ["image,caption", '1_a.png,"A child , pink ."', "1_a.png,A girl", "2_b.png,A dog , black , runs"]
    data = read(write_lines(tmp_path / "captions.txt", lines).parent)
    assert data.images == tuple(images)
    assert [text for text, _, _ in captions(data)] == ["A child , pink .", "A girl", "A dog , black , runs"]


def test_kaggles_flickr30k(tmp_path: Path) -> None:
    """results.csv between bars, with the one row that lacks one."""
    images = write_images(tmp_path / "flickr30k_images", "1.png", "2199200615.png")
    lines = ["image_name| comment_number| comment", '1.png| 0| Two "shaggy" guys .', "1.png| 1| a | b"]
    lines += ["2199200615.png| 4   A dog runs across the grass ."]
    data = read(write_lines(tmp_path / "results.csv", lines).parent)
    assert data.images == tuple(images)
    texts = ['Two "shaggy" guys .', "a | b", "A dog runs across the grass ."]
    assert [text for text, _, _ in captions(data)] == texts


@pytest.mark.parametrize("name", ["Flickr8k.token.txt", "results_20130124.token"])
def test_flickrs_own_tokens(tmp_path: Path, name: str) -> None:
    write_images(tmp_path / "Flicker8k_Dataset", "a.png", "b.png")
    file = write_lines(tmp_path / name, ["a.png#0\tone , two", "a.png#1\tthree", "b.png#0\tfour"])
    for path in (tmp_path, file):
        assert captions(read(path)) == [("one , two", 0, None), ("three", 0, None), ("four", 1, None)]
    write_lines(file, ["a.png#0\tone", "b.png four"])
    assert refusal(file) == f"{file}:2: wanted a.jpg#0, a tab and a caption"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"file_name": "none.png", "text": "a"}], ":1: image 'none.png' is not in {folder}, nor there in images,"),
        ([{"file_name": "../x.png", "text": "a"}], ":1: image '../x.png' lies outside {folder};"),
        ([{"file_name": "a.png", "text": ""}], ":1: a caption is empty"),
        ([{"file_name": "a.png", "text": None}], ":1: a caption is null, wanted a string"),
        ([{"file_name": "a.png", "text": "a"}, {"file_name": "a.png"}], ":2: found 'file_name'; wanted one column"),
        ([{"file_name": "a.png", "text": "a"}, {"text": "b"}], ":2: found 'text'; wanted one column for the image"),
        ([{"file_name": "a.png", "text": []}], ":1: image 'a.png' has no caption"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, lines: list[object], message: str) -> None:
    write_images(tmp_path, "a.png")
    file = write_lines(tmp_path / "metadata.jsonl", lines)
    assert refusal(file).startswith(f"{file}{message.format(folder=tmp_path)}")


def test_a_row_of_another_width_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    file = write_lines(tmp_path / "metadata.csv", ["file_name,text,label", "a.png,one"])
    assert refusal(file) == f"{file}:2: 2 columns, wanted 3: file_name, text, label"


@pytest.mark.parametrize("split", ["", "train/", "test/"])
def test_metadata_without_captions_says_so(tmp_path: Path, split: str) -> None:
    """It is not passed over: images beside it are no classes and have no .txt each."""
    write_images(tmp_path, "train/a.png", "test/a.png")
    wanted = "wanted one column for the caption, called caption, captions, text,"
    file = write_lines(tmp_path / f"{split}metadata.jsonl", [{"file_name": "a.png", "additional_feature": "red"}])
    for path in (file, tmp_path):
        assert refusal(path).startswith(f"{file}:1: found 'file_name', 'additional_feature'; {wanted}")
    write_lines(file, [{"file_name": "a.png", "text": "a", "caption": "b"}])
    assert refusal(tmp_path).startswith(f"{file}:1: found 'text', 'caption'; {wanted}")


@pytest.mark.parametrize("name", ["metadata.csv", "captions.csv", "captions.tsv", "captions.txt", "results.csv"])
@pytest.mark.parametrize("images", [("a.png",), ("train2017/a.png", "val2017/b.png")])
def test_a_table_that_is_none_says_what_is_wrong(tmp_path: Path, name: str, images: tuple[str, ...]) -> None:
    write_images(tmp_path, *images)
    file = write_lines(tmp_path / name, ["Picture,Caption", "a.png,one"])
    assert refusal(tmp_path).startswith(f"{file}:1: found 'Picture', 'Caption'; wanted one column for the image")
    write_lines(file, ["a.png,one"])
    assert refusal(tmp_path).startswith(f"{file}:1: found 'a.png', 'one'; wanted one column for the image")
    file.write_bytes(b"\xff\xfe")
    assert refusal(tmp_path) == f"{file}:1: not UTF-8 (invalid start byte at byte 0)"


def test_plain_texts_and_other_results_are_no_tables(tmp_path: Path) -> None:
    images = write_images(tmp_path, "a.png")
    write_lines(tmp_path / "a.txt", ["one"])
    write_lines(tmp_path / "captions.txt", ["a dog, black, runs"])
    write_lines(tmp_path / "results.csv", ["model,recall", "small,0.5"])
    assert read(tmp_path).images == tuple(images)


@pytest.mark.parametrize("delimiter", list(",;\t|"))
@pytest.mark.parametrize("header", [("Image", "Caption"), ("FILE_NAME", "Text"), ('"image"', '"caption"')])
def test_columns_in_capitals_quotes_and_between_any_delimiter(
    tmp_path: Path, delimiter: str, header: tuple[str, str]
) -> None:
    write_images(tmp_path, "a.png", "b.png")
    rows = [("Split", *header), ("test", "a.png", "one"), ("train", "b.png", "two"), ("test", "b.png", "three")]
    file = write_lines(tmp_path / "captions.csv", map(delimiter.join, rows))
    for path in (file, tmp_path):
        assert captions(read(path)) == [("one", 0, None), ("three", 1, None)]


def test_a_table_of_another_name_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, "flickr30k-images/a.png")
    file = write_lines(tmp_path / "flickr_annotations_30k.csv", ["raw,filename", '"[""one""]",a.png'])
    wanted = "holds flickr_annotations_30k.csv; name the file that is meant, or call it captions.jsonl"
    assert refusal(tmp_path) == f"{tmp_path}: {wanted}"
    assert captions(read(file)) == [("one", 0, None)]


def test_the_data_folder_of_a_repository_is_entered(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "README.md").touch()
    for split in ("train", "test"):
        write_images(tmp_path / "pets" / "data" / split, "a.png")
        lines = [{"file_name": "a.png", "text": split}]
        write_lines(tmp_path / "pets" / "data" / split / "metadata.jsonl", lines)
    data = read(tmp_path / "pets")
    assert (data.name, captions(data)) == ("pets", [("test", 0, None)])
    assert captions(read(tmp_path / "pets", split="train")) == [("train", 0, None)]


@pytest.mark.parametrize("name", ["metadata.parquet", "train/metadata.parquet"])
def test_metadata_parquet_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, "a.png", "train/a.png")
    (tmp_path / name).write_bytes(b"PAR1")
    told = refusal(tmp_path)
    wanted = "parquet is read only as pages with queries: write it as JSON lines"
    assert told.startswith(f"{tmp_path / name}: {wanted}") and "to_json(" in told


def test_the_message_and_the_document_list_every_layout(tmp_path: Path) -> None:
    document = (ROOT / "docs" / "evaluating.md").read_text(encoding="utf-8")
    (tmp_path / "a.npz").touch()
    told = refusal(tmp_path / "a.npz")
    assert told.endswith(f"understood are: {'; '.join(LAYOUTS)}")
    listed = [line.split("|")[1].strip() for line in document.splitlines() if line.startswith("| ")]
    assert listed[2:] == list(LAYOUTS)  # below the header and its rule
