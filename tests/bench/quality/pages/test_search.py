"""Scores, ranks and figures of pages: those of the goldens, of pytrec_eval, and of the plainest numpy."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import pytrec_eval
from numpy.typing import NDArray

from edgeclip import MultiVectors
from edgeclip_bench.quality.datasets import Pages
from edgeclip_bench.quality.pages.scoring import NDCG_AT, RECALL_AT, judge_pages
from edgeclip_bench.quality.pages.search import TOP, PageSearch, merge, rank
from tests.conftest import DATA

GOLDEN = DATA / "multi_vectors"
# Sums of a few quotients in another order.
ROUNDING = 1e-12
Grades = Mapping[str, Mapping[str, int]]


def judge(
    scores: NDArray[np.float32], query_ids: Sequence[str], ids: Sequence[str], qrels: Grades
) -> dict[str, dict[str, float]]:
    """Every metric of each query, by pytrec_eval's names."""
    number = {document: place for place, document in enumerate(ids)}
    rows = [row for row, query in enumerate(query_ids) if query in qrels]
    search = PageSearch(
        language=None,
        groups=np.arange(len(rows)),
        top=rank(scores, ids, TOP)[rows],
        grades=[{number[page]: grade for page, grade in qrels[query_ids[row]].items()} for row in rows],
    )
    samples = {sample.metric: sample.values for sample in judge_pages([search])}
    names = {f"ndcg@{k}": f"ndcg_cut_{k}" for k in NDCG_AT} | {f"recall@{k}": f"recall_{k}" for k in RECALL_AT}
    return {
        query_ids[row]: {names[metric]: float(values[place]) for metric, values in samples.items()}
        for place, row in enumerate(rows)
    }


def assert_equal(found: Mapping[str, Mapping[str, float]], wanted: Mapping[str, Mapping[str, float]]) -> None:
    assert found.keys() == wanted.keys()
    for query, figures in found.items():
        for metric, value in figures.items():
            assert value == pytest.approx(wanted[query][metric], abs=ROUNDING), (query, metric)


def by_pytrec_eval(
    scores: NDArray[np.float32], query_ids: Sequence[str], ids: Sequence[str], qrels: Grades
) -> dict[str, dict[str, float]]:
    run = {query: dict(zip(ids, map(float, row), strict=True)) for query, row in zip(query_ids, scores, strict=True)}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.5,10", "recall.1,5,10"})
    return dict(evaluator.evaluate({query: run[query] for query in qrels}))


def test_the_figures_of_the_golden() -> None:
    """MaxSim of the golden matrices, ranked and judged, gives what pytrec_eval gave for them, tie and all."""
    golden = json.loads((GOLDEN / "ndcg_golden.json").read_text())
    with np.load(GOLDEN / "maxsim_golden.npz") as arrays:
        queries = MultiVectors.of(arrays[f"query.{place}"] for place in range(6))
        pages = MultiVectors.of(arrays[f"doc.{place}"] for place in range(10))
    found = judge(queries.maxsim(pages), golden["query_ids"], golden["doc_ids"], golden["qrels"])
    wanted = golden["per_query_from_scores_unpadded"]
    assert_equal(found, wanted)
    for metric, mean in golden["mean"].items():
        if metric in found["q0"]:
            assert np.mean([found[query][metric] for query in found]) == pytest.approx(mean, abs=ROUNDING)


@pytest.mark.parametrize("seed", range(4))
def test_any_scores_are_judged_as_pytrec_eval_judges_them(seed: int) -> None:
    """Graded judgements, grades of 0, many ties, ids whose order is another as numbers, few pages."""
    draw = np.random.default_rng(seed)
    pages, queries = (30, 4, 12, 200)[seed], 25
    ids = [f"corpus-test-{number}" for number in draw.permutation(pages)]
    query_ids = [f"query-test-{number}" for number in range(queries)]
    scores = draw.integers(-3, 4, (queries, pages)).astype(np.float32) / 4
    qrels = {
        query: {ids[page]: int(draw.integers(0, 4)) for page in draw.choice(pages, size=min(4, pages), replace=False)}
        for query in query_ids[::2]
    }
    assert_equal(judge(scores, query_ids, ids, qrels), by_pytrec_eval(scores, query_ids, ids, qrels))


def test_the_order_of_ids_decides_between_equal_scores() -> None:
    scores = np.array([[0.5, 0.5, 0.7, 0.5]], np.float32)
    assert rank(scores, ["a", "c", "b", "d"], 4).tolist() == [[2, 3, 1, 0]]
    assert rank(scores, ["9", "10", "é", "z"], 5).tolist() == [[2, 3, 0, 1, -1]]


@pytest.mark.parametrize("seed", range(3))
def test_images_of_one_name_are_merged_as_vidore_benchmark_merges_them(seed: int) -> None:
    """A dictionary, filled an image at a time: a name that is not there yet begins with 0, all but the first."""
    draw = np.random.default_rng(seed)
    documents = draw.integers(0, 6, 15)
    names = [f"{number}.png" for number in dict.fromkeys(documents.tolist())]
    place = {number: index for index, number in enumerate(dict.fromkeys(documents.tolist()))}
    scores = draw.uniform(-1, 0.3, (8, 15)).astype(np.float32)
    wanted = []
    for row in scores:
        results: dict[str, float] = {}
        for number, score in zip(documents.tolist(), row.tolist(), strict=True):
            name = f"{number}.png"
            results[name] = max(results.get(name, 0), score) if results else score
        wanted.append([results[name] for name in names])
    pages = Pages(form="qa", ids=tuple(names), images=[], documents=tuple(place[one] for one in documents.tolist()))
    found = merge(scores, pages)
    assert np.array_equal(found, np.array(wanted, np.float32)) and (found < 0).any()


def test_the_form_beir_keeps_scores_as_they_are() -> None:
    scores = np.array([[-0.5, 0.2]], np.float32)
    assert merge(scores, Pages(form="beir", ids=("a", "b"), images=[], documents=(0, 1))) is scores


def test_goldens_of_other_rules_are_other_figures() -> None:
    """The golden can tell a tie in the order of the corpus, and an exponential gain, from what is right."""
    golden = json.loads((GOLDEN / "ndcg_golden.json").read_text())
    with np.load(GOLDEN / "maxsim_golden.npz") as arrays:
        scores = arrays["scores_unpadded"]
    reversed_ids = [f"{9 - place}" for place in range(10)]
    renamed = {
        query: {reversed_ids[int(page[1:])]: grade for page, grade in its.items()}
        for query, its in golden["qrels"].items()
    }
    wrong = judge(scores, golden["query_ids"], reversed_ids, renamed)
    wanted = golden["per_query_from_scores_unpadded"]
    assert any(abs(wrong[query]["ndcg_cut_5"] - wanted[query]["ndcg_cut_5"]) > 0.1 for query in wrong)
