"""A query that is taken from the corpus does not find itself: not first, not among k, not before the right one."""

import dataclasses

import numpy as np
import pytest
import pytrec_eval
from numpy.typing import NDArray

from edgeclip_bench.quality.datasets import TextRetrievalData
from edgeclip_bench.quality.embeddings import Counts
from edgeclip_bench.quality.metrics import NEVER
from edgeclip_bench.quality.samples import agree, judge
from edgeclip_bench.quality.searches import Embedded, Search, own_documents, searches

DOCUMENTS, QUERIES, DIM = 150, 40, 16
# Sums of the same shares in another order.
ROUNDING = 1e-12


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def arguana_like(*, noise: float = 0.5) -> Embedded:
    """Most queries are documents of the corpus, word for word; the right one is another, and looks like them."""
    draw = np.random.default_rng(0)
    corpus = draw.standard_normal((DOCUMENTS, DIM))
    corpus[QUERIES : 2 * QUERIES] = corpus[:QUERIES] + noise * draw.standard_normal((QUERIES, DIM))
    data = TextRetrievalData(
        name="arguana",
        corpus_ids=tuple(f"d{index}" for index in range(DOCUMENTS)),
        corpus=[""] * DOCUMENTS,
        query_ids=tuple(f"d{index}" if index % 4 else f"q{index}" for index in range(QUERIES)),
        queries=("",) * QUERIES,
        grades=tuple((query, query + QUERIES, 1 + query % 2) for query in range(QUERIES)),
    )
    return Embedded(data=data, queries=unit(corpus[:QUERIES]), items=unit(corpus), counts=Counts())


def search_of(embedded: Embedded) -> Search:
    (search,) = searches(embedded, DIM)
    return search


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_figures_are_beirs_with_the_identical_document_left_out(noise: float) -> None:
    """beir.retrieval.evaluation: what was found under the query's own id goes before trec_eval sees it."""
    embedded = arguana_like(noise=noise)
    data = embedded.data
    assert isinstance(data, TextRetrievalData)
    scores = embedded.queries.astype(np.float64) @ embedded.items.astype(np.float64).T
    run = {
        query: {
            document: float(score) for document, score in zip(data.corpus_ids, row, strict=True) if document != query
        }
        for query, row in zip(data.query_ids, scores, strict=True)
    }
    qrels = {data.query_ids[query]: {data.corpus_ids[item]: grade} for query, item, grade in data.grades}
    names = {"ndcg_cut.10", "recall.10", "recall.100"}
    wanted = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
    samples = {sample.metric: sample for sample in judge(embedded, DIM, [search_of(embedded)])}
    for metric, name in (("ndcg@10", "ndcg_cut_10"), ("recall@10", "recall_10"), ("recall@100", "recall_100")):
        of_queries = [wanted[query][name] for query in data.query_ids]
        if noise:  # at 0 the queries that are no document tie with one
            assert samples[metric].values == pytest.approx(of_queries, abs=ROUNDING), metric
        is_own = own_documents(data) >= 0
        assert samples[metric].values[is_own] == pytest.approx(np.array(of_queries)[is_own], abs=ROUNDING), metric


def test_ranks_do_not_count_the_query_itself() -> None:
    search = search_of(arguana_like())
    found = search.query_vectors.astype(np.float64) @ search.item_vectors.astype(np.float64).T
    for query, row in enumerate(found):
        others = np.delete(row, [query + QUERIES, *([query] if query % 4 else [])])
        assert search.ranks[query] == (others >= row[query + QUERIES]).sum()
    plain = dataclasses.replace(search, own=None)
    assert (plain.ranks - search.ranks).tolist() == [int(query % 4 > 0) for query in range(QUERIES)]


def test_a_query_that_finds_nothing_right_has_still_no_rank() -> None:
    search = search_of(arguana_like())
    items = search.item_vectors.copy()
    items[QUERIES + 1] = np.nan
    assert dataclasses.replace(search, item_vectors=items).ranks[1] == NEVER
    assert dataclasses.replace(search, pairs=search.pairs[:1]).ranks[1] == NEVER


def test_as_many_are_found_as_without_it() -> None:
    """Also where the corpus holds fewer than are asked for, and where the own document is not near."""
    search = search_of(arguana_like())
    assert search.top.shape == (QUERIES, 100)
    plain = dataclasses.replace(search, own=None).top
    for query in range(QUERIES):
        left = [item for item in plain[query].tolist() if item != query or query % 4 == 0]
        assert search.top[query, : len(left)].tolist() == left
    few = dataclasses.replace(search, item_rows=np.arange(30), pairs=search.pairs[:0])
    assert ((few.top >= 0).sum(axis=1) == [29 if query % 4 and query < 30 else 30 for query in range(QUERIES)]).all()


def test_agreement_is_not_raised_by_what_both_find_in_themselves() -> None:
    embedded = arguana_like()
    other = dataclasses.replace(embedded, queries=-embedded.queries)
    (sample,) = agree([search_of(embedded)], [search_of(other)])
    assert sample.figure() == 0


def test_a_document_that_is_right_for_the_query_of_its_id_is_no_copy() -> None:
    """Queries and documents that are both numbered from 0."""
    data = arguana_like().data
    assert isinstance(data, TextRetrievalData)
    grades = (*data.grades, (1, 1, 1), (2, 2, 0))
    assert own_documents(dataclasses.replace(data, grades=grades)).tolist()[:4] == [-1, -1, 2, 3]
    assert own_documents(data).tolist()[:5] == [-1, 1, 2, 3, -1]
