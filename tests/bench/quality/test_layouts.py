"""A path is opened by what is there; what is not understood, damaged, or asked for in vain is one clear line."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

from edgeclip.errors import InputError
from edgeclip_bench.quality import records
from edgeclip_bench.quality.datasets import Data, ImageTextData, StsData
from edgeclip_bench.quality.layouts import open_data
from edgeclip_bench.quality.selection import Selection, choose_split
from tests.scenes.layout_files import refusal, write_images, write_lines
from tests.scenes.permissions import bound_by_permissions

CAPTION = {"image": "a.png", "caption": "a"}
DOCUMENT = {"_id": "d", "text": "a text"}
PAIR = {"sentence1": "a", "sentence2": "b", "score": 1}


def only(data: tuple[Data, ...]) -> Data:
    assert len(data) == 1
    return data[0]


def test_a_dataset_is_called_as_its_path_or_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_lines(tmp_path / "sick" / "pairs.v2.jsonl.gz.jsonl", [PAIR])
    assert only(open_data(file)).name == "pairs.v2.jsonl.gz"
    assert only(open_data(file.parent)).name == "sick"
    assert only(open_data(file, name="SICK")).name == "SICK"
    monkeypatch.chdir(file.parent)
    assert only(open_data(Path("."))).name == "sick"
    assert only(open_data(Path("../sick/"))).name == "sick"
    (tmp_path / "sick" / "sub").mkdir()
    assert only(open_data(Path("sub/.."))).name == "sick"


def test_a_gzipped_file_is_read_like_a_plain_one(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl.gz"
    file.write_bytes(gzip.compress(write_lines(tmp_path / "plain", [PAIR]).read_bytes()))
    data = only(open_data(file))
    assert isinstance(data, StsData)
    assert (data.name, data.first) == ("test", ("a",))


@pytest.mark.parametrize("keep", [0, 3, 12, 30])
def test_a_damaged_gzip_is_one_line(tmp_path: Path, keep: int) -> None:
    whole = gzip.compress(write_lines(tmp_path / "plain", [PAIR] * 50).read_bytes())
    (tmp_path / "test.jsonl.gz").write_bytes(whole[:keep])
    assert refusal(tmp_path / "test.jsonl.gz").startswith(f"{tmp_path / 'test.jsonl.gz'}: ")
    (tmp_path / "test.jsonl.gz").write_bytes(whole[:20] + b"\xff\xff\xff" + whole[23:])
    assert "cannot be read" in refusal(tmp_path / "test.jsonl.gz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f.jsonl: is empty"),
        (b"\n \n", "f.jsonl: is empty"),
        (b'\xef\xbb\xbf{"image": 1', "f.jsonl:1: not JSON (Expecting ',' delimiter at character 11)"),
        (b"[1]\n", "f.jsonl:1: wanted a JSON object, found an array"),
        (
            b'{"sentence1": "a", "sentence2": "b", "score": 1}\r\n\r\nnull',
            "f.jsonl:3: wanted a JSON object, found null",
        ),
        (
            b'{"sentence1": "a", "sentence2": "b", "score": 1}\n\xff',
            "f.jsonl:2: not UTF-8 (invalid start byte at byte 0)",
        ),
        (b"\xff\xfe{\0", "f.jsonl:1: not UTF-8 (invalid start byte at byte 0)"),
        (b'{"sentence1": ' + b"[" * 200_000, "f.jsonl:1: JSON that cannot be read"),
        (b'{"sentence1": ' + b"1" * 10_000 + b"}", "f.jsonl:1: JSON that cannot be read"),
        (
            b'{"text": "a"}',
            "f.jsonl: no layout that is known: its first line has 'text'; understood are: captions.jsonl",
        ),
        (b"{}", "f.jsonl: no layout that is known: its first line has no fields"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f.jsonl").write_bytes(content)
    assert refusal(tmp_path / "f.jsonl").startswith(f"{tmp_path}/{message}")


def test_lines_end_as_on_any_system_and_nowhere_else(tmp_path: Path) -> None:
    """Unicode's own separators belong to the text."""
    (tmp_path / "f").write_bytes("\ufeffa\r\nb\u2028\u0085\n\n\ufeffc".encode())
    lines = [(f"{tmp_path}/f:{number}", line) for number, line in enumerate(("a", "b\u2028\u0085", "", "\ufeffc"), 1)]
    assert list(records.read_lines(tmp_path / "f")) == lines


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gzip of 8 KB that unpacks to 8 MB. The limit is 64 MiB in truth; less here, to be quick."""
    monkeypatch.setattr(records, "LONGEST_LINE_BYTES", 1 << 20)
    file = tmp_path / "f.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(PAIR).encode() + b"\n" + b"x" * (8 << 20)))
    tracemalloc.start()
    try:
        assert refusal(file) == f"{file}:2: the line is longer than 1 MiB"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "f.json: not JSON (Expecting value at character 0)"),
        ("[]", "f.json: wanted a JSON object, found an array"),
        ('{"info": 1, "licences": 2}', "f.json: no layout that is known: has 'info', 'licences'; understood are:"),
        ("{}", "f.json: no layout that is known: has no fields"),
    ],
)
def test_a_json_file_that_is_no_dataset(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "f.json").write_text(content)
    assert refusal(tmp_path / "f.json").startswith(f"{tmp_path}/{message}")


def test_what_is_not_there_or_not_understood_says_what_was_found(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path}/none: no such file or folder"
    (tmp_path / "a.npz").touch()
    (tmp_path / "bare").touch()
    assert refusal(tmp_path / "a.npz").startswith(
        f"{tmp_path}/a.npz: no layout that is known: is .npz; understood are:"
    )
    assert "known: is without a suffix; understood" in refusal(tmp_path / "bare")
    assert "known: holds a.npz, bare; understood" in refusal(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "known: holds nothing; understood" in refusal(tmp_path / "empty")
    for number in range(9):
        (tmp_path / "many" / f"{number}").mkdir(parents=True)
    (tmp_path / "many" / ".hidden").touch()
    assert "known: holds 0/, 1/, 2/, 3/, 4/, 5/, 6/, 7/ and 1 more; understood" in refusal(tmp_path / "many")


def test_parquet_of_anything_but_pages_is_said_to_be_unread(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    file = tmp_path / "corpus" / "test-00000-of-00001.parquet"
    write_table(pa.table({"id": ["a"], "text": ["words"]}), file)
    wanted = "parquet is read only as pages with queries: write it as JSON lines"
    assert f"holds corpus/; {wanted}" in refusal(tmp_path)
    assert wanted in refusal(file)
    file.write_bytes(b"PAR1")
    assert refusal(file).startswith(f"{file}: cannot be read as parquet (")


def test_two_datasets_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    write_lines(tmp_path / "captions.jsonl", [CAPTION])
    assert isinstance(only(open_data(tmp_path)), ImageTextData)
    write_lines(tmp_path / "dataset_coco.json", [{"images": []}])
    write_lines(tmp_path / "corpus.jsonl", [DOCUMENT])
    wanted = "holds a corpus, captions.jsonl, dataset_coco.json; name the file that is meant, or keep them apart"
    assert refusal(tmp_path) == f"{tmp_path}: {wanted}"
    assert isinstance(only(open_data(tmp_path / "captions.jsonl")), ImageTextData)


@pytest.mark.parametrize("image", ["a.png", "images/a.png"])
def test_captions_under_another_name_are_not_guessed_at(tmp_path: Path, image: str) -> None:
    """Else the images beside them would be taken for ones with a .txt each, or for a class."""
    write_images(tmp_path, image)
    file = write_lines(tmp_path / "data.jsonl", [CAPTION])
    wanted = "holds data.jsonl; name the file that is meant, or call it captions.jsonl"
    assert refusal(tmp_path) == f"{tmp_path}: {wanted}"
    assert isinstance(only(open_data(file)), ImageTextData)


def test_files_of_other_kinds_do_not_matter(tmp_path: Path) -> None:
    """A README, a licence and the Hub's own JSON lie beside most datasets."""
    write_images(tmp_path, "a.png")
    write_lines(tmp_path / "captions.jsonl", [CAPTION])
    write_lines(tmp_path / "README.md", ["words"])
    write_lines(tmp_path / "dataset_infos.json", [{"splits": ["test"]}])
    write_lines(tmp_path / "odd.tsv", ["a\tb"])
    (tmp_path / "folder.json").mkdir()
    assert isinstance(only(open_data(tmp_path)), ImageTextData)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit is 0, wanted 1 or more"),
        ({"languages": ()}, "no --language is given, wanted one or more"),
        ({"images": Path("none")}, "none: is no folder, wanted the one that holds the images"),
        ({"split": "test"}, "{file}: --split does not go with a list of captions, which has no splits"),
        ({"languages": ["en"]}, "{file}: nothing in language 'en'; its texts name no language"),
    ],
)
def test_options_that_cannot_be_followed(tmp_path: Path, options: dict[str, object], message: str) -> None:
    write_images(tmp_path, "a.png")
    file = write_lines(tmp_path / "captions.jsonl", [CAPTION])
    assert refusal(file, **options) == message.format(file=file)


def test_the_split_is_test_or_the_only_one_or_held_out() -> None:
    assert choose_split(["train", "test", "dev"], None, Path("d")) == "test"
    assert choose_split(["train", "test", "dev"], "train", Path("d")) == "train"
    assert choose_split(["train"], None, Path("d")) == "train"
    assert choose_split(["train", "validation", "dev"], None, Path("d")) == "dev"
    with pytest.raises(
        InputError, match="d: several splits and none of them test; name one with --split; there are: a, b"
    ):
        choose_split(["b", "a"], None, Path("d"))
    with pytest.raises(InputError, match="d: no split 'val'; there are: test, train"):
        choose_split(["train", "test"], "val", Path("d"))


def test_every_language_asked_for_must_be_there() -> None:
    selection = Selection(name="n", languages=("de", "fr"))
    selection.check_languages(["en", "de", None, "fr"], Path("d"))
    with pytest.raises(InputError, match="d: nothing in language 'fr'; there are: de, en"):
        selection.check_languages(["en", "de", None], Path("d"))


def test_opening_loads_no_image_library(tmp_path: Path) -> None:
    """Only what is decoded needs one, and the corpora need none."""
    file = write_lines(tmp_path / "test.jsonl", [PAIR])
    program = (
        "import sys; from pathlib import Path; from edgeclip_bench.quality.layouts import open_data\n"
        "open_data(Path(sys.argv[1])); print(*sorted({'PIL', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@bound_by_permissions
@pytest.mark.parametrize("mode", [0, 0o444])
def test_a_subfolder_that_cannot_be_read_matters_only_where_it_is_asked_for(tmp_path: Path, mode: int) -> None:
    """A backup or a trash bin beside the data ends nothing; one that may be the split that is meant does."""
    data, shut = tmp_path / "data", tmp_path / "data" / "test"
    write_images(data, "a.png")
    captions = write_lines(data / "captions.jsonl", [CAPTION])
    shut.mkdir(mode=mode)
    assert isinstance(only(open_data(data)), ImageTextData)
    captions.unlink()
    write_lines(data / "a.txt", ["a"])
    assert isinstance(only(open_data(data)), ImageTextData)
    (data / "a.txt").rename(data / "a.md")
    (data / "a.png").unlink()
    assert refusal(data).startswith(
        f"{data}: no layout that is known: " if mode else f"{shut}: cannot be listed (Perm"
    )
    write_images(data, "train/a.png")
    write_lines(data / "train" / "metadata.jsonl", [{"file_name": "a.png", "text": "a"}])
    told = "cannot be read; make it readable, or name the folder or file that is meant"
    assert refusal(data) == f"{shut}: {told}"
    assert isinstance(only(open_data(data, split="train")), ImageTextData)
