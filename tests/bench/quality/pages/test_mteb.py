"""The figures of `edgeclip eval` on pages are those that mteb computes with the same bundle on the same pages."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from edgeclip_bench.quality.evaluate import evaluate
from edgeclip_bench.quality.layouts import open_data
from edgeclip_bench.quality.mteb_model import BundleModel
from tests.scenes.page_files import draw_page, embedded, qrels, queries, write_parquet

# Pages 2 and 9, and 4 and 10, are the same image, so they tie, and "10" comes before "2" and "4".
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 11)
GRADES = {(0, 1): 1, (0, 2): 2, (1, 9): 1, (2, 4): 3, (2, 10): 1, (3, 10): 1, (4, 0): 0, (4, 5): 2}
QUERIES = 5
# mteb rounds its figures to 5 digits.
ROUNDED = 1e-5


@pytest.fixture(scope="module")
def mteb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MTEB_CACHE", "HF_HOME"):
            patch.setenv(name, str(folder / name))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("mteb")


def make_task(mteb: ModuleType) -> Any:
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    relevant: dict[str, dict[str, int]] = {}
    for (query, page), grade in GRADES.items():
        relevant.setdefault(f"{query}", {})[f"{page}"] = grade
    images = [Image.open(io.BytesIO(draw_page(number))) for number in NUMBERS]
    found = {
        "queries": Dataset.from_list(
            [{"id": f"{row['query-id']}", "text": row["query"]} for row in queries(range(QUERIES))]
        ),
        "corpus": Dataset.from_dict({"id": [f"{place}" for place in range(len(images))], "image": images}),
        "relevant_docs": relevant,
        "top_ranked": None,
    }

    class Pages(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name="Pages",
            description="made in memory",
            type="DocumentUnderstanding",
            category="t2i",
            modalities=["text", "image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_5",
            dataset={"path": "none", "revision": "none"},
        )
        dataset: Any = {"default": {"test": found}}  # noqa: RUF012 - as mteb has it
        data_loaded = True

    return Pages()


@pytest.mark.parametrize("space", ["single", "multi"])
def test_every_figure_is_mtebs(mteb: ModuleType, v4_bundle: Path, tmp_path: Path, space: str) -> None:
    rows = [{"corpus-id": place, "image": embedded(number)} for place, number in enumerate(NUMBERS)]
    write_parquet(tmp_path / "corpus" / "test.parquet", rows, shards=2)
    write_parquet(tmp_path / "queries" / "test.parquet", queries(range(QUERIES)))
    write_parquet(tmp_path / "qrels" / "test.parquet", qrels(GRADES))
    ours = evaluate(v4_bundle, open_data(tmp_path), truncate_dims=[], cache=None, device="cpu", progress=False)
    model = BundleModel(v4_bundle, device="cpu", multivector=space == "multi")
    with model.encoder:
        (theirs,) = mteb.evaluate(model, make_task(mteb), cache=None).task_results[0].scores["test"]
    compared = 0
    for score in ours.data[0].scores:
        if score.space == space:
            metric, _, k = score.metric.partition("@")
            assert score.value == pytest.approx(theirs[f"{metric}_at_{k}"], abs=ROUNDED), score.metric
            compared += 1
    assert compared == 5
