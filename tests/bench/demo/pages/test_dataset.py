"""The files of a data set: every query is judged, judgements are true, and the same seed gives the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeclip.errors import BuildError
from edgeclip_bench.demo.pages.dataset import write_pages
from edgeclip_bench.demo.pages.questions import LANGUAGES


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "made"
    write_pages(out, pages=12, family=4)
    return out


def test_files_hold_what_is_returned(folder: Path, tmp_path: Path) -> None:
    written = write_pages(tmp_path / "again", pages=12, family=4)
    corpus, queries = lines(folder / "corpus.jsonl"), lines(folder / "queries.jsonl")
    assert [row["image"] for row in corpus] == [one.file.name for one in written]
    assert [row["query"] for row in queries] == [text for one in written for text in one.texts.values()]
    assert {row["language"] for row in queries} == set(LANGUAGES)
    for row in corpus:
        with Image.open(folder / "images" / row["image"]) as picture:
            assert min(picture.size) >= 4 * 36 and max(picture.size) <= 6 * 64
    for name in ("corpus.jsonl", "queries.jsonl", "qrels.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    first = corpus[0]["image"]
    assert (folder / "images" / first).read_bytes() == (tmp_path / "again" / "images" / first).read_bytes()


def test_every_page_that_answers_is_judged_so_and_no_other(tmp_path: Path) -> None:
    """In families of twelve several pages have the two facts of a question."""
    written = write_pages(tmp_path / "made", pages=24, family=12)
    names = {one.file.stem: one for one in written}
    found: dict[str, set[str]] = {}
    for row in lines(tmp_path / "made" / "qrels.jsonl"):
        assert row["score"] == 1
        found.setdefault(row["query-id"], set()).add(row["corpus-id"])
    assert len(found) == 24 * len(LANGUAGES)
    for query, answers in found.items():
        asked = names[query.rpartition("-")[0]]
        assert asked.file.stem in answers
        assert answers == {name for name, one in names.items() if asked.question.is_answered_by(one.page)}
    assert any(len(answers) > 1 for answers in found.values())


@pytest.mark.parametrize(
    ("options", "message"), [({"pages": 10, "family": 4}, "no whole families"), ({"seed": -1}, "seed is -1")]
)
def test_what_cannot_be_is_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        write_pages(tmp_path / "made", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "made").exists()


def test_a_folder_that_is_there_is_left_alone(folder: Path) -> None:
    with pytest.raises(BuildError, match="cannot be written"):
        write_pages(folder, pages=4, family=4)
