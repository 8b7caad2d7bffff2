"""Data sets of pages are read in every layout of the Hub, and what is missing is named in one line."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from edgeclip.errors import InputError, MissingExtraError
from edgeclip_bench.quality.datasets import PageData, PageQueries, TextRetrievalData
from edgeclip_bench.quality.layouts import open_captions, open_data
from tests.scenes.layout_files import refusal, write_images, write_lines
from tests.scenes.page_files import (
    corpus,
    draw_page,
    embedded,
    qrels,
    queries,
    write_jsonl,
    write_parquet,
)

GRADES: Mapping[tuple[Any, Any], int] = {(0, 1): 1, (0, 2): 2, (2, 4): 3, (2, 0): 0}
SHARD = "test-00000-of-00001.parquet"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def read(path: Path, **options: Any) -> PageData:
    (data,) = open_data(path, **options)
    assert isinstance(data, PageData)
    return data


def contents(part: PageQueries) -> tuple[Any, ...]:
    """All that a part holds, with the images' bytes."""
    images = [
        page.source if isinstance(page.source, bytes) else page.source.read_bytes() for page in part.pages.images
    ]
    return part.pages.ids, images, part.query_ids, part.queries, part.grades


PAGES = [draw_page(number) for number in range(6)]
WANTED = (
    ("0", "1", "2", "3", "4", "5"),
    PAGES,
    ("0", "2"),  # 1 was never judged
    ("what is on page 0", "what is on page 2"),
    ((0, 1, 1), (0, 2, 2), (1, 4, 3), (1, 0, 0)),
)


def write_v1(folder: Path) -> None:
    """ViDoRe v1: a folder for each config, and the corpus in shards."""
    write_parquet(folder / "corpus" / "test.parquet", corpus(range(6)), shards=3)
    write_parquet(folder / "queries" / SHARD, queries(range(3)))
    write_parquet(folder / "qrels" / SHARD, qrels(GRADES))


def write_converted(folder: Path) -> None:
    """The Hub's own conversion: a folder for each split."""
    write_parquet(folder / "corpus" / "test" / "0000.parquet", corpus(range(4)))
    write_parquet(folder / "corpus" / "test" / "0001.parquet", corpus((4, 5)))
    write_parquet(folder / "queries" / "test" / "0000.parquet", queries(range(3)))
    write_parquet(folder / "qrels" / "test" / "0000.parquet", qrels(GRADES))
    write_parquet(folder / "qrels" / "train" / "0000.parquet", qrels({(1, 1): 1}))


def write_vdr(folder: Path) -> None:
    """Jina-VDR in one language."""
    write_v1(folder / "default")


def write_v3(folder: Path) -> None:
    """ViDoRe v3: configs with the language in their names, other names of columns, and other files beside."""
    pages = [{"id": row["corpus-id"], "image": row["image"], "text": "words"} for row in corpus(range(6))]
    write_parquet(folder / "english-corpus" / SHARD, pages)
    write_parquet(folder / "english-queries" / SHARD, queries(range(3), key="id", text="text"))
    write_parquet(folder / "english-qrels" / SHARD, qrels(GRADES))
    write_parquet(folder / "documents_metadata" / SHARD, [{"id": 1}])


def write_described(folder: Path) -> None:
    """Files of any name, which the head of README.md gives to configs."""
    write_parquet(folder / "parts" / "a.parquet", corpus(range(6)), shards=2)
    write_parquet(folder / "parts" / "b.parquet", queries(range(3)))
    write_parquet(folder / "parts" / "c.parquet", qrels(GRADES))
    head = ["---", "license: mit", "configs:"]
    for config, pattern in (("corpus", "parts/a-*"), ("queries", "parts/b.parquet"), ("qrels", "parts/c.*")):
        head += [f"- config_name: {config}", "  data_files:", "  - split: test", f"    path: {pattern}"]
    write_lines(folder / "README.md", [*head, "---", "# Pages"])


def write_cached(folder: Path) -> None:
    """The Hub's cache: the files lie under the revision that refs/main names."""
    write_v1(folder / "snapshots" / "abc")
    (folder / "snapshots" / "old").mkdir()
    write_lines(folder / "refs" / "main", ["abc"], end="")


def write_json(folder: Path) -> None:
    """JSON lines, tables of judgements, and images as files."""
    write_jsonl(folder / "corpus.jsonl", corpus(range(6), key="_id"))
    write_jsonl(folder / "queries.jsonl", queries(range(3), key="_id", text="text"))
    rows = [f"{query}\t{page}\t{grade}" for (query, page), grade in GRADES.items()]
    write_lines(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *rows])


def write_hashed(folder: Path) -> None:
    """Shards as older versions of `datasets` called them, in data/."""
    for name, rows in (("corpus", corpus(range(6))), ("queries", queries(range(3))), ("qrels", qrels(GRADES))):
        write_parquet(folder / "data" / name / "test-00000-of-00001-0123456789abcdef.parquet", rows)


LAYOUTS = (write_v1, write_converted, write_vdr, write_v3, write_described, write_cached, write_json, write_hashed)


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_holds_the_same(tmp_path: Path, write: Callable[[Path], None]) -> None:
    name = "datasets--jinaai--tqa_beir" if write is write_cached else "tqa_beir"
    write(tmp_path / name)
    data = read(tmp_path / name)
    assert (data.name, data.is_whole) == ("tqa_beir", True)
    (part,) = data.parts
    assert part.language == ("english" if write is write_v3 else None)
    assert part.pages.form == "beir" and contents(part) == WANTED
    assert contents(part) == WANTED  # read again
    if write is write_cached:
        assert read(tmp_path / name / "snapshots" / "abc").name == "tqa_beir"


def test_jina_vdr_in_several_languages(tmp_path: Path) -> None:
    """Each language has pages of its own."""
    for place, language in enumerate(("de", "jp", "zh")):
        folder = tmp_path / "tweets" / language
        write_parquet(folder / "corpus" / SHARD, corpus(range(place, place + 3)))
        write_parquet(folder / "queries" / SHARD, queries([place]))
        write_parquet(folder / "qrels" / SHARD, qrels({(place, place): 1}))
    data = read(tmp_path / "tweets")
    assert [(part.language, part.pages.ids, part.query_ids) for part in data.parts] == [
        ("de", ("0", "1", "2"), ("0",)),
        ("jp", ("1", "2", "3"), ("1",)),
        ("zh", ("2", "3", "4"), ("2",)),
    ]
    assert [part.language for part in read(tmp_path / "tweets", languages=["jp"]).parts] == ["jp"]
    assert "nothing in language 'fr'; there are: de, jp, zh" in refusal(tmp_path / "tweets", languages=["fr"])


def test_vidore_2_filters_queries_and_shares_its_pages(tmp_path: Path) -> None:
    """A column names the language of each query; the corpus and the judgements are whole."""
    rows = [*queries([0, 1], language="french"), *queries([2], language="german")]
    write_parquet(tmp_path / "corpus" / SHARD, corpus(range(4)))
    write_parquet(tmp_path / "queries" / SHARD, rows)
    write_parquet(tmp_path / "qrels" / SHARD, qrels({(0, 1): 1, (1, 2): 1, (2, 3): 2}))
    data = read(tmp_path)
    assert [(part.language, part.query_ids, part.grades) for part in data.parts] == [
        ("french", ("0", "1"), ((0, 1, 1), (1, 2, 1))),
        ("german", ("2",), ((0, 3, 2),)),
    ]
    assert len(data.corpora) == 1
    (german,) = read(tmp_path, languages=["german"]).parts
    assert german.grades == ((0, 3, 2),)


def test_one_table_is_read_as_the_leaderboard_reads_it(tmp_path: Path) -> None:
    """A query counts once; its right page is that of its last row; images of one file name are one document."""
    asked = [("a", 0, "x.png"), (None, 1, "y.png"), ("b", 2, "z.png"), ("a", 3, "y.png"), ("", 0, "x.png")]
    rows = [{"query": query, "image": embedded(page), "image_filename": name} for query, page, name in asked]
    write_parquet(tmp_path / "vqa" / "data" / "test.parquet", rows, shards=2)
    write_jsonl(tmp_path / "lines" / "test.jsonl", rows)
    for folder in ("vqa", "lines"):
        (part,) = read(tmp_path / folder).parts
        assert part.pages.form == "qa"
        assert contents(part) == (
            ("x.png", "y.png", "z.png"),
            [PAGES[page] for _, page, _ in asked],
            ("a", "b"),
            ("a", "b"),
            ((0, 1, 1), (1, 2, 1)),
        )
        assert part.pages.documents == (0, 1, 2, 1, 0)
    assert read(tmp_path / "lines" / "test.jsonl").parts[0].queries == ("a", "b")
    assert not read(tmp_path / "vqa", limit=1).is_whole


def test_the_name_of_an_image_is_its_documents_where_no_column_says_it(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [{"query": "a", "image": embedded(3)}])
    assert read(tmp_path).parts[0].pages.ids == ("3.png",)


@pytest.mark.parametrize("name", ["0000.parquet", "default/test/0000.parquet", "train-00000-of-00001.parquet"])
def test_one_table_lies_under_many_names(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / name, [{"query": "a", "image": embedded(1), "image_filename": "a"}])
    data = read(tmp_path)
    assert data.parts[0].queries == ("a",) and data.is_whole == (not name.startswith("train"))


def test_one_table_for_each_language(tmp_path: Path) -> None:
    for language in ("ar", "de"):
        rows = [{"query": language, "image": embedded(1), "image_filename": "a"}]
        write_parquet(tmp_path / language / "test.parquet", rows, shards=1)
    assert [(part.language, part.queries) for part in read(tmp_path).parts] == [("ar", ("ar",)), ("de", ("de",))]
    assert [part.language for part in read(tmp_path, languages=["de"]).parts] == ["de"]


def test_a_file_name_beside_a_text_is_no_image(tmp_path: Path) -> None:
    """A corpus of texts is read as one, whatever else its lines say; without a text, a file name is an image's."""
    write_jsonl(tmp_path / "texts" / "corpus.jsonl", [{"_id": "1", "text": "words", "file_name": "a.txt"}])
    write_images(tmp_path / "pages", "a.png")
    write_jsonl(tmp_path / "pages" / "corpus.jsonl", [{"_id": "1", "file_name": "a.png"}])
    for folder in (tmp_path / "texts", tmp_path / "pages"):
        write_jsonl(folder / "queries.jsonl", queries(["q"], key="_id", text="text"))
        write_jsonl(folder / "qrels.jsonl", qrels({("q", "1"): 1}))
    (texts,), (pages,) = open_data(tmp_path / "texts"), open_data(tmp_path / "pages")
    assert isinstance(texts, TextRetrievalData) and isinstance(pages, PageData)
    assert [page.source for page in pages.parts[0].pages.images] == [tmp_path / "pages" / "a.png"]


def test_images_may_lie_beside_their_table_or_elsewhere(tmp_path: Path) -> None:
    """A parquet file may name its images, and --images say where they are."""
    write_images(tmp_path / "elsewhere", "a.png", "b.png")
    rows = [{"corpus-id": name, "image": {"bytes": None, "path": f"{name}.png"}} for name in ("a", "b")]
    write_parquet(tmp_path / "set" / "corpus" / SHARD, rows)
    write_jsonl(tmp_path / "set" / "queries.jsonl", queries(["q"]))
    write_jsonl(tmp_path / "set" / "qrels.jsonl", qrels({("q", "a"): 1}))
    (part,) = read(tmp_path / "set", images=tmp_path / "elsewhere").parts
    assert [page.source for page in part.pages.images] == [tmp_path / "elsewhere" / f"{name}.png" for name in "ab"]


def test_a_judged_page_that_is_not_there_counts_in_the_ideal(tmp_path: Path) -> None:
    write_v1(tmp_path)
    write_parquet(tmp_path / "qrels" / SHARD, qrels({(0, 1): 1, (0, 77): 2}))
    with pytest.warns(UserWarning, match="1 of 2 judgements are of documents that the corpus does not hold"):
        assert read(tmp_path).parts[0].grades == ((0, 1, 1), (0, 6, 2))


def without(folder: Path, *names: str) -> Path:
    write_v1(folder)
    for name in names:
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("queries",), "has corpus and qrels, but no queries (queries.jsonl, or files in queries/)"),
        (("qrels",), "has corpus and queries, but no qrels (qrels.jsonl, or files in qrels/)"),
        (("corpus",), "has qrels and queries, but no corpus (corpus.jsonl, or files in corpus/)"),
        (("queries", "qrels"), "has corpus, but no queries (queries.jsonl, or files in queries/)"),
    ],
)
def test_a_missing_piece_is_named(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    folder = without(tmp_path / "set", *names)
    assert refusal(folder) == f"{folder}: {message}"


def damage_scores(folder: Path) -> None:
    write_parquet(folder / "qrels" / SHARD, [{"query-id": 0, "corpus-id": 1}])


def damage_query(folder: Path) -> None:
    write_parquet(folder / "qrels" / SHARD, qrels({(9, 1): 1}))


def damage_grade(folder: Path) -> None:
    write_parquet(folder / "qrels" / SHARD, [{"query-id": 0, "corpus-id": 1, "score": 0.5}])


def damage_ids(folder: Path) -> None:
    write_parquet(folder / "corpus" / "test.parquet", corpus([5]))


def damage_shard(folder: Path) -> None:
    (folder / "corpus" / "test-00001-of-00003.parquet").write_bytes(b"PAR1")


def damage_pointer(folder: Path) -> None:
    (folder / "queries" / SHARD).write_bytes(LFS_POINTER)


def damage_answers(folder: Path) -> None:
    write_parquet(folder / "qrels" / SHARD, qrels({(0, 1): 0, (2, 3): -1}))


def damage_columns(folder: Path) -> None:
    write_parquet(folder / "queries" / SHARD, [{"query-id": 0, "words": "a"}])


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (damage_scores, f"qrels/{SHARD}", ": no column for the grades (score); there are: 'query-id', 'corpus-id'"),
        (damage_query, f"qrels/{SHARD}", ": query '9' is not in "),
        (damage_grade, f"qrels/{SHARD}", ", row 1: the score is 0.5, wanted a whole number"),
        (damage_ids, "corpus/test.parquet", ", row 1: page '5' is there twice"),
        (damage_shard, "corpus/test-00001-of-00003.parquet", ": cannot be read as parquet ("),
        (damage_pointer, f"queries/{SHARD}", ": a pointer of Git LFS; fetch the file with `git lfs pull`"),
        (damage_answers, f"qrels/{SHARD}", ": no grade is above 0, so no query has an answer"),
        (damage_columns, f"queries/{SHARD}", ": no column for the queries (query or text or question); there are: "),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, damage: Callable[[Path], None], file: str, message: str) -> None:
    write_v1(tmp_path)
    damage(tmp_path)
    assert refusal(tmp_path).startswith(f"{tmp_path / file}{message}")


def test_an_image_that_is_not_there_is_named_when_the_data_are_opened(tmp_path: Path) -> None:
    write_json(tmp_path)
    (tmp_path / "images" / "4.png").unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path}/corpus.jsonl:5: image 'images/4.png' is not in {tmp_path}, nor there in images, pages"
    )


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    write_v1(tmp_path)
    write_parquet(
        tmp_path / "corpus" / "test.parquet", [*corpus(range(5)), {"corpus-id": 5, "image": None}], shards=3
    )
    with pytest.raises(Exception, match=r"test-00002-of-00003.parquet, row 2: the page has no image"):
        contents(read(tmp_path).parts[0])


def test_texts_alone_are_no_pages(tmp_path: Path) -> None:
    write_parquet(tmp_path / "corpus" / SHARD, [{"_id": "a", "text": "words"}])
    write_parquet(tmp_path / "queries" / SHARD, queries(["q"]))
    write_parquet(tmp_path / "qrels" / SHARD, qrels({("q", "a"): 1}))
    assert refusal(tmp_path).endswith("its corpus has no images; texts alone are read from JSON lines, corpus.jsonl")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_columns_may_be_in_capitals_and_lie_between_several_characters(tmp_path: Path, delimiter: str) -> None:
    """As in tables of captions; parquet and JSON lines too."""
    write_json(tmp_path)
    (tmp_path / "qrels" / "test.tsv").unlink()
    rows = [delimiter.join(map(str, (query, page, grade))) for (query, page), grade in GRADES.items()]
    header = delimiter.join(("Query-ID", "Corpus-ID", "Score"))
    write_lines(tmp_path / "qrels" / "test.csv", [header, *rows])
    (tmp_path / "queries.jsonl").unlink()
    write_parquet(tmp_path / "queries" / SHARD, queries(range(3), key="ID", text="Query"))
    lines = (tmp_path / "corpus.jsonl").read_text()
    (tmp_path / "corpus.jsonl").write_text(lines.replace('"image"', '"Image"'))
    assert contents(read(tmp_path).parts[0]) == WANTED


def test_one_table_may_have_columns_in_capitals(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [{"Query": "a", "Image": embedded(3)}])
    assert contents(read(tmp_path).parts[0])[:3] == (("3.png",), [PAGES[3]], ("a",))


def test_a_download_that_was_not_finished_is_named(tmp_path: Path) -> None:
    """Fewer pages are easier to search; a split that is not read may lack files."""
    write_v1(tmp_path)
    write_parquet(tmp_path / "qrels" / "train.parquet", qrels({(1, 1): 1}), shards=2)
    (tmp_path / "qrels" / "train-00000-of-00002.parquet").unlink()
    assert contents(read(tmp_path).parts[0]) == WANTED
    (tmp_path / "corpus" / "test-00001-of-00003.parquet").unlink()
    assert refusal(tmp_path) == f"{tmp_path}/corpus/test-*: 2 of 3 files are there; download the rest"


@pytest.mark.parametrize("lost", ["queries", "qrels", "corpus"])
def test_a_language_that_lacks_a_piece_is_named(tmp_path: Path, lost: str) -> None:
    """It is not left out of the mean over the languages."""
    write_v1(tmp_path / "de")
    without(tmp_path / "jp", lost)
    message = f"{tmp_path}: has no {lost} of language 'jp' ({lost}.jsonl, or files in {lost}/)"
    assert refusal(tmp_path) == message
    assert [part.language for part in read(tmp_path, languages=["de"]).parts] == ["de"]


def test_a_judgement_that_contradicts_an_earlier_one_is_warned_of(tmp_path: Path) -> None:
    write_v1(tmp_path)
    write_parquet(tmp_path / "qrels" / SHARD, [*qrels({(0, 1): 1, (0, 2): 1}), *qrels({(0, 1): 3})])
    with pytest.warns(UserWarning, match="1 judgements contradict an earlier one of the same pair; the last counts"):
        assert read(tmp_path).parts[0].grades == ((0, 1, 3), (0, 2, 1))


def test_pyarrow_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only parquet needs it."""
    write_v1(tmp_path / "parquet")
    write_json(tmp_path / "json")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    assert contents(read(tmp_path / "json").parts[0]) == WANTED
    with pytest.raises(MissingExtraError, match=r"^pyarrow is not installed: `pip install .*\[bench\]"):
        open_data(tmp_path / "parquet")


def test_a_corpus_of_parquet_is_not_held(tmp_path: Path) -> None:
    """Of 24 images of 1 MB in row groups of 2, four are read at once, and twice that is allocated (8.0 MB)."""
    images = [{"corpus-id": number, "image": {"bytes": bytes([number]) * 10**6, "path": ""}} for number in range(24)]
    write_v1(tmp_path)
    write_parquet(tmp_path / "corpus" / "test.parquet", images, shards=3)
    before = pa.total_allocated_bytes()
    part = read(tmp_path).parts[0]
    assert pa.total_allocated_bytes() - before < 1e5
    held = [pa.total_allocated_bytes() - before for _ in part.pages.images]
    assert len(held) == 24 and max(held) < 9e6


def test_a_readme_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    write_v1(tmp_path)
    write_lines(tmp_path / "README.md", ["---", "configs: [data_files", "---"])
    assert refusal(tmp_path).startswith(f"{tmp_path}/README.md: its head is no YAML that says configs (")
    write_lines(tmp_path / "README.md", [json.dumps("no head")])
    assert contents(read(tmp_path).parts[0]) == WANTED


def test_queries_are_the_captions_of_their_best_pages(tmp_path: Path) -> None:
    """As `quantize --calibrate` takes them; pages without a query stay images."""
    write_json(tmp_path / "set")
    found = open_captions(tmp_path / "set")
    assert found is not None
    assert [path.read_bytes() for path in found.images] == PAGES
    assert [(caption.text, caption.image) for caption in found.captions] == [
        ("what is on page 0", 2),  # grades 1 and 2
        ("what is on page 2", 4),
    ]
    write_v1(tmp_path / "parquet")
    with pytest.raises(
        InputError, match=r"row 1: wanted an image file beside JSON lines, found one inside of parquet"
    ):
        open_captions(tmp_path / "parquet")
