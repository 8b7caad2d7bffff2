"""Folders of page data sets, links into the Hub's cache, and files or judgements that are not what they seem."""

from pathlib import Path

import pytest

from edgeclip_bench.quality.datasets import TextRetrievalData
from edgeclip_bench.quality.layouts import open_data
from edgeclip_bench.quality.pages.scoring import page_sizes
from tests.bench.quality.pages.test_reading import (
    LFS_POINTER,
    SHARD,
    WANTED,
    contents,
    read,
    write_cached,
    write_v1,
    write_vdr,
)
from tests.scenes.layout_files import refusal, write_images
from tests.scenes.page_files import qrels, write_jsonl, write_parquet


def test_a_collection_is_several_tasks(tmp_path: Path) -> None:
    write_v1(tmp_path / "tqa_beir")
    write_vdr(tmp_path / "docvqa_beir")
    write_images(tmp_path / "pictures", "a.png")
    write_v1(tmp_path / "ai")  # two letters, and no language
    write_v1(tmp_path / "my_pages")
    found = open_data(tmp_path)
    assert [one.name for one in found] == ["ai", "docvqa_beir", "my_pages", "tqa_beir"]


def test_a_folder_of_texts_in_a_collection_is_named(tmp_path: Path) -> None:
    write_v1(tmp_path / "tqa_beir")
    write_jsonl(tmp_path / "nfcorpus" / "corpus.jsonl", [{"_id": "a", "text": "words"}])
    write_jsonl(tmp_path / "nfcorpus" / "queries.jsonl", [{"_id": "q", "text": "which"}])
    write_jsonl(tmp_path / "nfcorpus" / "qrels.jsonl", qrels({("q", "a"): 1}))
    with pytest.warns(UserWarning, match="left out nfcorpus, which has texts and no images of pages"):
        assert [one.name for one in open_data(tmp_path)] == ["tqa_beir"]
    assert isinstance(open_data(tmp_path / "nfcorpus")[0], TextRetrievalData)


@pytest.mark.parametrize("linked", ["", "snapshots/abc"])
def test_a_link_into_the_hubs_cache_is_what_it_points_at(tmp_path: Path, linked: str) -> None:
    cached = tmp_path / "hub" / "datasets--jinaai--tqa_beir"
    write_cached(cached)
    (tmp_path / "pages").symlink_to(cached / linked)
    assert read(tmp_path / "pages").name == "tqa_beir" and contents(read(tmp_path / "pages").parts[0]) == WANTED
    (tmp_path / "collection").mkdir()
    (tmp_path / "collection" / "one").symlink_to(cached / linked)
    assert [one.name for one in open_data(tmp_path / "collection")] == ["tqa_beir"]


@pytest.mark.parametrize("name", ["pages.parquet", "pages.jsonl", "captions.jsonl", "sts-test.csv", "a.json"])
def test_a_file_that_was_not_fetched_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LFS_POINTER)
    for path in (tmp_path, tmp_path / name):
        assert refusal(path) == f"{tmp_path / name}: a pointer of Git LFS; fetch the file with `git lfs pull`"


def test_queries_without_an_answer_are_counted(tmp_path: Path) -> None:
    """They count as 0, as pytrec_eval has it."""
    write_v1(tmp_path)
    write_parquet(tmp_path / "qrels" / SHARD, qrels({(0, 1): 1, (1, 2): 0, (2, 3): 2}))
    assert page_sizes(read(tmp_path)) == {
        "pages": 6,
        "queries": 3,
        "judged queries": 3,
        "of them without an answer, which count as 0": 1,
    }
