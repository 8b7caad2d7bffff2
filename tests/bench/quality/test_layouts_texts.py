"""Retrieval corpora and sentence pairs: read as BEIR and MTEB read them, and a corpus never held."""

import gzip
import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from edgeclip.errors import InputError
from edgeclip_bench.quality.datasets import StsData, TextRetrievalData
from edgeclip_bench.quality.layouts import open_data
from tests.scenes.layout_files import refusal, write_lines

CORPUS = [
    {"_id": "d1", "title": "Einstein", "text": "A physicist.", "metadata": {}},
    {"_id": "d2", "title": "", "text": " No title. "},
    {"_id": "d3", "text": "None at all."},
    {"_id": "d4", "title": None, "text": ""},
]
QUERIES = [{"_id": "q2", "text": "two"}, {"_id": "q1", "text": " one "}, {"_id": "q3", "text": ""}]
HEADER = "query-id\tcorpus-id\tscore"
# What may be held of 50 MB of texts. Measured: 0.6 MB, the 5000 ids and their index.
HELD_BYTES = 2e6
GRADES = ["q1\td1\t1", "q2\td3\t2", "q1\td2\t0"]


def read(path: Path, **options: Any) -> TextRetrievalData:
    (data,) = open_data(path, **options)
    assert isinstance(data, TextRetrievalData)
    return data


def write_beir(folder: Path, *, grades: Iterable[object] = (HEADER, *GRADES)) -> Path:
    write_lines(folder / "corpus.jsonl", CORPUS)
    write_lines(folder / "queries.jsonl", QUERIES)
    write_lines(folder / "qrels" / "test.tsv", grades)
    return folder


# Retrieval


def test_beirs_layout(tmp_path: Path) -> None:
    """Titles are joined as BEIR joins them; unjudged queries are left out; order is the file's."""
    data = read(write_beir(tmp_path / "scifact"))
    assert (data.name, data.language) == ("scifact", None)
    assert data.corpus_ids == ("d1", "d2", "d3", "d4")
    assert list(data.corpus) == ["Einstein A physicist.", "No title.", "None at all.", ""]
    assert len(data.corpus) == 4
    assert (data.query_ids, data.queries) == (("q2", "q1"), ("two", " one "))
    assert data.grades == ((1, 0, 1), (0, 2, 2), (1, 1, 0))


def test_mtebs_layout_in_json_lines(tmp_path: Path) -> None:
    """ "id" for "_id", numbers for ids, several gzipped parts, one list of judgements, whole numbers as floats."""
    for number, document in enumerate(CORPUS):
        document = {"id": number, "text": document["text"], "title": document.get("title") or ""}
        plain = write_lines(tmp_path / "plain", [document])
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / "corpus" / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    write_lines(tmp_path / "queries" / "all.jsonl", [{"id": "a", "text": "one"}])
    qrels = [{"query-id": "a", "corpus-id": 3, "score": 1.0}, {"query-id": "a", "corpus-id": "0", "score": -1}]
    write_lines(tmp_path / "qrels.jsonl", qrels)
    data = read(tmp_path)
    assert data.corpus_ids == ("0", "1", "2", "3")
    assert next(iter(data.corpus)) == "Einstein A physicist."
    assert data.grades == ((0, 3, 1), (0, 0, -1))
    refused = "--split does not go with the only list of judgements, which names no splits"
    assert refusal(tmp_path, split="test") == f"{tmp_path}/qrels.jsonl: {refused}"


def test_the_splits_of_the_judgements(tmp_path: Path) -> None:
    write_beir(tmp_path)
    write_lines(tmp_path / "qrels" / "train.jsonl", [{"query-id": "q1", "corpus-id": "d4", "score": 3}])
    assert read(tmp_path, split="train").grades == ((0, 3, 3),)
    assert len(read(tmp_path).grades) == 3
    assert refusal(tmp_path, split="dev") == f"{tmp_path}: no split 'dev'; there are: test, train"
    (tmp_path / "qrels" / "test.tsv").rename(tmp_path / "qrels" / "dev.tsv")
    assert len(read(tmp_path).grades) == 3


def test_limit_keeps_the_first_judged_queries_and_the_whole_corpus(tmp_path: Path) -> None:
    data = read(write_beir(tmp_path), limit=1)
    assert (data.query_ids, data.queries, data.grades) == (("q2",), ("two",), ((0, 2, 2),))
    assert len(list(data.corpus)) == 4


def test_a_folder_of_corpora_is_one_dataset_each(tmp_path: Path) -> None:
    """As BEIR's cqadupstack is."""
    for part in ("tex", "android"):
        write_beir(tmp_path / "cqadupstack" / part)
    data = open_data(tmp_path / "cqadupstack")
    assert [one.name for one in data] == ["cqadupstack/android", "cqadupstack/tex"]
    assert [one.name for one in open_data(tmp_path / "cqadupstack", name="cqa")] == ["cqa/android", "cqa/tex"]


def test_a_judged_document_that_is_not_there_counts_as_never_found(tmp_path: Path) -> None:
    """ArguAna has five. Dropping them would give better scores than BEIR's own."""
    write_beir(tmp_path, grades=[HEADER, *GRADES, "q1\tgone\t1", "q2\tgone\t2", "q2\tlost\t1"])
    with pytest.warns(UserWarning, match="3 of 6 judgements are of documents that the corpus does not hold .'gone'."):
        data = read(tmp_path)
    assert data.grades[3:] == ((1, 4, 1), (0, 4, 2), (0, 5, 1))
    assert data.corpus_ids == ("d1", "d2", "d3", "d4")
    write_beir(tmp_path, grades=[HEADER, "q2\td1\t1", "q1\tgone\t1"])
    assert read(tmp_path, limit=1).grades == ((0, 0, 1),)  # no warning of what is not asked for


def test_of_two_grades_of_a_pair_the_last_counts(tmp_path: Path) -> None:
    write_beir(tmp_path, grades=[HEADER, *GRADES, GRADES[0]])
    assert read(tmp_path).grades == ((1, 0, 1), (0, 2, 2), (1, 1, 0))
    write_beir(tmp_path, grades=[HEADER, *GRADES, "q1\td1\t2"])
    with pytest.warns(
        UserWarning, match="test.tsv: 1 judgements contradict an earlier one of the same pair; the last"
    ):
        assert read(tmp_path).grades == ((1, 0, 2), (0, 2, 2), (1, 1, 0))


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("corpus.jsonl", [], ": holds no document"),
        ("corpus.jsonl", [*CORPUS, CORPUS[1]], ":5: document 'd2' is there twice"),
        ("corpus.jsonl", [{"text": "a"}], ":1: '_id' is missing; there are: 'text'"),
        ("corpus.jsonl", [{"_id": None, "text": "a"}], ":1: '_id' is null, wanted a string"),
        (
            "corpus.jsonl",
            [CORPUS[0], "{"],
            ":2: not JSON (Expecting property name enclosed in double quotes at character 1)",
        ),
        ("queries.jsonl", [*QUERIES, QUERIES[0]], ":4: query 'q2' is there twice"),
        ("queries.jsonl", [*QUERIES, {"_id": "q4"}], ":4: 'text' is missing; there are: '_id'"),
        (
            "queries.jsonl",
            [{"_id": "q1", "text": " "}, {"_id": "q2", "text": "a"}],
            ": query 'q1': its text is empty",
        ),
        ("qrels/test.tsv", [], ":1: wanted the header query-id, corpus-id, score between tabs, found []"),
        ("qrels/test.tsv", [HEADER], ": holds no judgement"),
        (
            "qrels/test.tsv",
            GRADES,
            ":1: wanted the header query-id, corpus-id, score between tabs, found ['q1', 'd1', '1']",
        ),
        ("qrels/test.tsv", [HEADER, GRADES[0], "q1 d2 1"], ":3: 1 columns, wanted query-id, corpus-id, score"),
        ("qrels/test.tsv", [HEADER, "q1\t0\td2\t1"], ":2: 4 columns, wanted query-id, corpus-id, score"),
        ("qrels/test.tsv", [HEADER, "q1\td2\thigh"], ":2: the score is 'high', wanted a number"),
        ("qrels/test.tsv", [HEADER, "q1\td2\t0.5"], ":2: the score is 0.5, wanted a whole number"),
        ("qrels/test.tsv", [HEADER, "q1\td2\tnan"], ":2: the score is nan, wanted a whole number"),
        ("qrels/test.tsv", [HEADER, *GRADES, "q9\td1\t1"], ":5: query 'q9' is not in queries.jsonl"),
        ("qrels/test.tsv", [HEADER, 'q1\t"d1\t1'], ":2: not a row of a table (unexpected end of data)"),
    ],
)
def test_retrieval_refuses(tmp_path: Path, name: str, lines: list[object], message: str) -> None:
    write_beir(tmp_path)
    file = write_lines(tmp_path / name, lines)
    assert refusal(tmp_path) == f"{file}{message}"


def test_retrieval_whose_parts_are_missing(tmp_path: Path) -> None:
    write_beir(tmp_path)
    assert "--images does not go with a retrieval dataset" in refusal(tmp_path, images=tmp_path)
    assert "--language does not go with a retrieval dataset" in refusal(tmp_path, languages=["en"])
    (tmp_path / "qrels" / "test.tsv").unlink()
    wanted = "has a corpus but no judgements (qrels/test.tsv or .jsonl, or qrels.jsonl)"
    assert refusal(tmp_path) == f"{tmp_path}: {wanted}"
    (tmp_path / "queries.jsonl").unlink()
    assert refusal(tmp_path) == f"{tmp_path}: has a corpus but no queries.jsonl"


def test_a_bad_text_is_named_when_the_corpus_is_iterated(tmp_path: Path) -> None:
    """Not before: opening reads ids alone."""
    write_beir(tmp_path)
    file = write_lines(tmp_path / "corpus.jsonl", [*CORPUS, {"_id": "d5", "text": ["a"]}])
    data = read(tmp_path)
    with pytest.raises(InputError, match=f"{file}:5: 'text' is an array, wanted a string"):
        list(data.corpus)


def test_a_corpus_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    data = read(write_beir(tmp_path))
    write_lines(tmp_path / "corpus.jsonl", [CORPUS[0], CORPUS[2]])
    with pytest.raises(InputError, match=r"corpus.jsonl:2: the corpus has changed since its ids were read"):
        list(data.corpus)
    write_lines(tmp_path / "corpus.jsonl", CORPUS[:2])
    with pytest.raises(InputError, match=r"corpus.jsonl: the corpus is shorter than when its ids were read"):
        list(data.corpus)


def test_a_corpus_is_not_held(tmp_path: Path) -> None:
    """50 MB of texts, in far less: opening holds its 5000 ids, iterating a line at a time."""
    write_beir(tmp_path, grades=[HEADER, "q1\td4999\t1"])
    with (tmp_path / "corpus.jsonl").open("w") as file:
        for number in range(5000):
            file.write(json.dumps({"_id": f"d{number}", "title": "t", "text": f"{number} " * 2000}) + "\n")
    assert (tmp_path / "corpus.jsonl").stat().st_size > 45e6
    tracemalloc.start()
    try:
        data = read(tmp_path)
        for _ in range(2):
            assert sum(map(len, data.corpus)) > 45e6
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < HELD_BYTES


# Pairs of sentences

PAIRS = [
    {"sentence1": "A plane.", "sentence2": "A jet.", "score": 5.0},
    {"sentence1": 'He said "no".', "sentence2": "A cat, two dogs", "score": "0.25"},
]


def read_sts(path: Path, **options: Any) -> StsData:
    (data,) = open_data(path, **options)
    assert isinstance(data, StsData)
    return data


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("test.jsonl", [{"split": "test", **pair} for pair in PAIRS]),
        (  # GLUE's, without quoting
            "dev.tsv",
            [
                "index\tsentence1\tsentence2\tscore",
                "0\tA plane.\tA jet.\t5.0",
                '1\tHe said "no".\tA cat, two dogs\t0.25',
            ],
        ),
        ("pairs.csv", ["score,sentence2,sentence1", "5,A jet.,A plane.", '0.25,"A cat, two dogs","He said ""no""."']),
        (  # the STS benchmark's own, some rows with where they are from
            "sts-test.csv",
            [
                "main-captions\tMSRvid\t2012test\t0024\t5.000\tA plane.\tA jet.",
                'main-news\theadlines\t2016\t12\t0.25\tHe said "no".\tA cat, two dogs\tlicence\thttp://x',
            ],
        ),
        ("stsb-en-test.csv", ["A plane.,A jet.,5.0", '"He said ""no"".","A cat, two dogs",0.25']),  # stsb-multi-mt
    ],
)
def test_sentence_pairs_in_every_form(tmp_path: Path, name: str, lines: list[object]) -> None:
    file = write_lines(tmp_path / name, lines, end="\r\n")
    data = read_sts(file)
    assert data.first == ("A plane.", 'He said "no".')
    assert data.second == ("A jet.", "A cat, two dogs")
    assert (data.scores, data.language) == ((5.0, 0.25), None)
    assert read_sts(tmp_path, name=data.name) == data
    assert read_sts(file, limit=1).scores == (5.0,)
    assert "--split does not go with a file of sentence pairs, which is one" in refusal(file, split="test")
    assert "--images does not go with a file of sentence pairs" in refusal(file, images=tmp_path)


def test_a_quote_without_its_other_half_is_text_between_tabs(tmp_path: Path) -> None:
    """The STS benchmark has such sentences; with quoting, the lines after would be swallowed."""
    row = 'main-forums\tanswers\t2015\t7\t1.0\t"You should.\tShould I?'
    assert read_sts(write_lines(tmp_path / "sts-test.csv", [row, row])).first == ('"You should.',) * 2
    comma = write_lines(tmp_path / "pairs.csv", ["sentence1,sentence2,score", '"a,b,1', "c,d,2"])
    assert refusal(comma) == f"{comma}:3: not a row of a table (unexpected end of data)"


def test_languages_are_datasets_of_their_own(tmp_path: Path) -> None:
    """As in MTEB's STS17 and STS22."""
    lines = [{**PAIRS[0], "lang": "en-de"}, {**PAIRS[1], "lang": "ko-ko"}, {**PAIRS[1], "lang": "en-de"}]
    file = write_lines(tmp_path / "test.jsonl", lines)
    data = open_data(file)
    assert all(isinstance(one, StsData) for one in data)
    assert [(one.language, len(one.scores)) for one in data if isinstance(one, StsData)] == [
        ("en-de", 2),
        ("ko-ko", 1),
    ]
    assert read_sts(file, languages=["ko-ko"]).scores == (0.25,)
    assert [len(one.scores) for one in open_data(file, limit=1) if isinstance(one, StsData)] == [1, 1]
    assert refusal(file, languages=["de"]) == f"{file}: nothing in language 'de'; there are: en-de, ko-ko"


def test_a_folder_of_pairs_has_splits(tmp_path: Path) -> None:
    for number, split in enumerate(("dev", "test", "train")):
        write_lines(tmp_path / f"sts-{split}.csv", [f"main\tx\t2012\t1\t{number}\ta\tb"])
    write_lines(tmp_path / "readme.txt", ["words"])
    write_lines(tmp_path / "other.csv", ["a,b", "1,2"])
    assert read_sts(tmp_path).scores == (1.0,)
    assert read_sts(tmp_path, split="dev").scores == (0.0,)
    assert refusal(tmp_path, split="val") == f"{tmp_path}: no split 'val'; there are: dev, test, train"
    write_lines(tmp_path / "test.jsonl", PAIRS)
    assert refusal(tmp_path) == f"{tmp_path}: sts-test.csv and test.jsonl are both of 'test'; name the file"


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "f.jsonl",
            [PAIRS[0], {"sentence1": "a", "score": 1}],
            ":2: 'sentence2' is missing; there are: 'sentence1', 'score'",
        ),
        ("f.jsonl", [PAIRS[0], {**PAIRS[0], "score": None}], ":2: the score is None, wanted a number"),
        ("f.jsonl", [PAIRS[0], {**PAIRS[0], "score": True}], ":2: the score is True, wanted a number"),
        ("f.jsonl", ['{"sentence1": "a", "sentence2": "b", "score": NaN}'], ":1: the score is nan"),
        ("f.jsonl", [{**PAIRS[0], "score": "1e999"}], ":1: the score is inf"),
        ("f.jsonl", [{**PAIRS[0], "score": 10**400}], f":1: the score is 1{'0' * 49}, wanted a number"),
        ("f.jsonl", [{**PAIRS[0], "sentence1": ""}], ":1: sentence 1 is empty"),
        ("f.jsonl", [{**PAIRS[0], "sentence2": 2}], ":1: sentence 2 is a number, wanted a string"),
        ("f.csv", [], ": holds no pair of sentences"),
        ("f.csv", ["sentence1,sentence2,score"], ": holds no pair of sentences"),
        ("f.csv", ["sentence1,sentence2,score", "a,b"], ":2: 2 columns, wanted 3"),
        ("f.csv", ["a,b,1", "a,b,c"], ":2: the score is 'c', wanted a number"),
        ("f.csv", ["a,b,1", "a,b,1,2"], ":2: 4 columns, wanted 3"),
        ("f.tsv", ["m\tx\t2012\t1\t1\ta\tb", "m\tx\t2012\t1\t1\ta"], ":2: 6 columns, wanted 7"),
        (
            "f.tsv",
            ["a\tb"],
            ":1: columns that say no pair of sentences; wanted a header with sentence1, sentence2, score,",
        ),
        ("f.tsv", ["sentence1\tscore", "a\t1"], ":1: columns that say no pair of sentences"),
    ],
)
def test_sentence_pairs_refuse(tmp_path: Path, name: str, lines: list[object], message: str) -> None:
    file = write_lines(tmp_path / name, lines)
    assert refusal(file).startswith(f"{file}{message}")
