"""Metrics agree with double loops, pytrec_eval and scikit-learn, whatever the blocks; ties and NaN never score."""

import tracemalloc

import numpy as np
import pytest
import pytrec_eval
import torch
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from edgeclip.errors import InputError
from edgeclip_bench.quality.metrics import (
    NEVER,
    NOTHING,
    Positives,
    class_vectors,
    first_hit_ranks,
    ndcg_at,
    recall_of_relevant_at,
    spearman,
    top_k,
    top_k_agreement,
    truncate,
)

# One similarity at a time, odd shapes in both directions, all at once.
BLOCKS = [1, 2_000, 9_999, 64 * 2**20]
# Both sum the same few float64 terms, in another order.
FLOAT64 = 1e-12


def unit(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def coarse(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors of few values, so that many similarities are equal."""
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32) / 2


def score(first: NDArray[np.float32], second: NDArray[np.float32]) -> np.float32:
    return np.float32(sum(float(a) * float(b) for a, b in zip(first, second, strict=True)))


def ranks_by_loops(
    queries: NDArray[np.float32], items: NDArray[np.float32], right: list[set[int]]
) -> NDArray[np.int64]:
    ranks = []
    for query, positives in zip(queries, right, strict=True):
        scores = [score(query, item) for item in items]
        best = max(scores[item] for item in positives)
        ranks.append(sum(scores[item] >= best for item in range(len(items)) if item not in positives))
    return np.array(ranks)


def positives_of(right: list[set[int]]) -> Positives:
    pairs = [(query, item) for query, items in enumerate(right) for item in items]
    np.random.default_rng(0).shuffle(pairs)
    return Positives.from_pairs([query for query, _ in pairs], [item for _, item in pairs], len(right))


# --- truncate ---


def test_truncate_cuts_and_normalises_as_torch_does() -> None:
    vectors = unit(5, 32)
    vectors[3] = 0
    wanted = torch.nn.functional.normalize(torch.from_numpy(vectors[:, :7]), dim=1).numpy()
    found = truncate(vectors, 7)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-7)
    assert not found[3].any()


@pytest.mark.parametrize("dim", [0, 33, -1])
def test_truncate_refuses_a_dimension_that_is_not_there(dim: int) -> None:
    with pytest.raises(InputError, match=f"dim is {dim}, wanted 1 to 32"):
        truncate(unit(5, 32), dim)


def recall_at(ranks: np.ndarray, k: int) -> float:
    return float((ranks < k).mean())


# --- first_hit_ranks ---


def test_positives_are_the_same_from_pairs_in_any_order() -> None:
    positives = Positives.from_pairs([2, 0, 2, 1], [7, 3, 5, 3], 3)
    assert positives.items.tolist() == [3, 3, 7, 5]
    assert positives.starts.tolist() == [0, 1, 2, 4]


def test_positives_refuse_what_has_no_answer() -> None:
    with pytest.raises(InputError, match="query 1 has no positive item; leave it out"):
        Positives.from_pairs([0, 2], [0, 0], 3)
    with pytest.raises(InputError, match="below 0, or a query's is not below 1"):
        Positives.from_pairs([0, 1], [0, 0], 1)
    with pytest.raises(InputError, match="below 0"):
        Positives.from_pairs([0], [-1], 1)
    with pytest.raises(InputError, match=r"found \(2,\) queries and \(1,\) items"):
        Positives.from_pairs([0, 1], [0], 2)
    with pytest.raises(InputError, match="positive is item 9 of 4"):
        first_hit_ranks(unit(1, 8), unit(4, 8), Positives.from_pairs([0], [9], 1))
    with pytest.raises(InputError, match="2 queries, but positives for 1"):
        first_hit_ranks(unit(2, 8), unit(4, 8), Positives.from_pairs([0], [0], 1))
    with pytest.raises(InputError, match=r"queries \(1, 8\) and items \(4, 9\)"):
        top_k(unit(1, 8), unit(4, 9), 1)


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("make", [unit, coarse])
def test_ranks_are_those_of_a_double_loop(make, block_bytes: int) -> None:
    queries, items = make(37, 12, seed=1), make(53, 12, seed=2)
    draw = np.random.default_rng(3)
    right = [set(draw.choice(53, size=draw.integers(1, 6), replace=False).tolist()) for _ in queries]
    found = first_hit_ranks(queries, items, positives_of(right), block_bytes=block_bytes)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, ranks_by_loops(queries, items, right))


def test_a_pair_that_is_named_twice_counts_once() -> None:
    queries, items = unit(4, 8), unit(9, 8, seed=1)
    once = Positives.from_pairs(range(4), range(4), 4)
    twice = Positives.from_pairs([*range(4), *range(4)], [*range(4), *range(4)], 4)
    np.testing.assert_array_equal(first_hit_ranks(queries, items, once), first_hit_ranks(queries, items, twice))


@pytest.mark.parametrize("block_bytes", BLOCKS)
def test_constant_vectors_find_nothing(block_bytes: int) -> None:
    """Summed in float32 some of the 199 equal items would score less than the positive, by where they stand."""
    queries, items = np.repeat(unit(1, 100), 61, axis=0), np.repeat(unit(1, 100, seed=4), 199, axis=0)
    ranks = first_hit_ranks(queries, items, Positives.from_pairs(range(61), range(61), 61), block_bytes=block_bytes)
    np.testing.assert_array_equal(ranks, 198)
    assert recall_at(ranks, 100) == 0


def test_nan_never_hits() -> None:
    queries, items = unit(4, 8), unit(6, 8, seed=1)
    queries[1] = np.nan
    items[2] = np.nan
    positives = positives_of([{0}, {1}, {2}, {2, 3}])
    ranks = first_hit_ranks(queries, items, positives)
    assert ranks[1] == ranks[2] == NEVER
    assert recall_at(ranks[1:3], 1000) == 0
    # A broken item stands before every other: it may have been the better one.
    others = np.delete(items, 2, axis=0)
    assert ranks[0] == ranks_by_loops(queries[:1], others, [{0}])[0] + 1
    assert ranks[3] == ranks_by_loops(queries[3:], others, [{2}])[0]  # its NaN item is a positive


def test_infinity_is_no_crash() -> None:
    queries, items = unit(2, 8), unit(3, 8, seed=1)
    queries[0] = np.inf
    items[0] = 0
    first_hit_ranks(queries, items, positives_of([{0}, {1}]))
    top_k(queries, items, 2)


def test_one_item_is_found_first() -> None:
    ranks = first_hit_ranks(unit(3, 8), unit(1, 8, seed=1), Positives.from_pairs(range(3), [0, 0, 0], 3))
    assert ranks.tolist() == [0, 0, 0]
    assert recall_at(ranks, 1) == 1


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_is_whether_the_first_k_hold_a_positive(k: int) -> None:
    """Image to text as in CLIP_benchmark: five captions an image, a hit if one of them is among the first k."""
    images = unit(30, 6)
    captions = truncate(np.repeat(images, 5, axis=0) / 2 + unit(150, 6, seed=1), 6)
    right = [set(range(5 * image, 5 * image + 5)) for image in range(30)]
    found, _ = top_k(images, captions, k)
    hits = [bool(set(row.tolist()) & positives) for row, positives in zip(found, right, strict=True)]
    assert 0 < np.mean(hits) < 1
    assert recall_at(first_hit_ranks(images, captions, positives_of(right)), k) == np.mean(hits)


def test_memory_does_not_grow_with_the_data_set() -> None:
    """The full matrix of 3000 x 3000 would be 36 MB; the ranks, the results and the pairs are below 1."""
    queries, items = unit(3000, 16), unit(3000, 16, seed=1)
    positives = Positives.from_pairs(np.repeat(range(3000), 5), range(15_000) % np.int64(3000), 3000)
    tracemalloc.start()
    first_hit_ranks(queries, items, positives, block_bytes=2**20)
    top_k(queries, items, 10, block_bytes=2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 + 1_000_000


# --- top_k ---


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("k", [1, 4, 53])
@pytest.mark.parametrize("make", [unit, coarse])
def test_top_k_is_the_head_of_a_stable_sort(make, k: int, block_bytes: int) -> None:
    queries, items = make(23, 12, seed=1), make(53, 12, seed=2)
    scores = np.array([[score(query, item) for item in items] for query in queries])
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found, found_scores = top_k(queries, items, k, block_bytes=block_bytes)
    assert (found.dtype, found_scores.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(found_scores, np.take_along_axis(scores, wanted, axis=1))


def test_top_k_of_constants_is_the_first_items() -> None:
    found, _ = top_k(np.repeat(unit(1, 100), 3, axis=0), np.repeat(unit(1, 100, seed=4), 199, axis=0), 5)
    assert found.tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("block_bytes", BLOCKS)
def test_top_k_fills_up_where_there_are_fewer(block_bytes: int) -> None:
    queries, items = unit(3, 8), unit(4, 8, seed=1)
    items[1] = np.nan
    found, scores = top_k(queries, items, 6, block_bytes=block_bytes)
    assert found.shape == scores.shape == (3, 6)
    for row in found:
        assert set(row[:3].tolist()) == {0, 2, 3} and row[3:].tolist() == [NOTHING] * 3
    assert np.isneginf(scores[:, 3:]).all() and np.isfinite(scores[:, :3]).all()
    with pytest.raises(InputError, match="k is 0"):
        top_k(queries, items, 0)


@pytest.mark.parametrize("block_bytes", BLOCKS)
def test_what_a_query_goes_without_is_as_if_it_were_not_there(block_bytes: int) -> None:
    """In each query's own search alone, also where it ties with the best positive; -1 leaves nothing out."""
    queries, items = coarse(9, 8), coarse(21, 8, seed=1)
    without = np.array([3, 20, 0, -1, 7, 7, 20, -1, 11])
    right = [{(query + 12) % 21} - {out} or {1} for query, out in enumerate(without)]
    ranks = first_hit_ranks(queries, items, positives_of(right), without=without, block_bytes=block_bytes)
    found, scores = top_k(queries, items, 20, without=without, block_bytes=block_bytes)
    for row, out in enumerate(without):
        kept = [item for item in range(len(items)) if item != out]
        places = [{kept.index(item) for item in right[row]}]
        assert ranks[row] == ranks_by_loops(queries[row : row + 1], items[kept], places)[0]
        alone, alone_scores = top_k(queries[row : row + 1], items[kept], 20)
        np.testing.assert_array_equal(found[row], np.array(kept)[alone[0]])
        np.testing.assert_array_equal(scores[row], alone_scores[0])


# --- ndcg_at, recall_of_relevant_at ---


def judged_run(seed: int) -> tuple[NDArray[np.float32], list[dict[int, int]]]:
    """Scores of 40 queries and 60 documents, without ties, and grades from -1 to 3 of some of them."""
    draw = np.random.default_rng(seed)
    scores = draw.permuted(np.linspace(-1, 1, 40 * 60)).reshape(40, 60).astype(np.float32)
    grades = [
        {int(item): int(draw.integers(-1, 4)) for item in draw.choice(60, size=draw.integers(1, 25), replace=False)}
        for _ in range(40)
    ]
    grades[7] = {3: 0, 4: -1}
    return scores, grades


@pytest.mark.parametrize("k", [1, 3, 10])
def test_graded_metrics_are_those_of_trec_eval(k: int) -> None:
    scores, grades = judged_run(seed=k)
    grades[9] = {}
    names = {f"ndcg_cut.{k}", f"recall.{k}"}
    qrels = {f"q{q}": {f"d{d}": grade for d, grade in judged.items()} for q, judged in enumerate(grades) if judged}
    run = {f"q{q}": {f"d{d}": float(value) for d, value in enumerate(row)} for q, row in enumerate(scores)}
    wanted = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
    top = np.argsort(-scores, axis=1)[:, :k]
    for name, found in (
        (f"ndcg_cut_{k}", ndcg_at(top, grades, k)),
        (f"recall_{k}", recall_of_relevant_at(top, grades, k)),
    ):
        assert found.shape == (40,)
        assert np.isnan(found).nonzero()[0].tolist() == [9]  # no query for trec_eval either
        assert "q9" not in wanted
        for query in (q for q in range(40) if q != 9):
            assert found[query] == pytest.approx(wanted[f"q{query}"][name], abs=FLOAT64), (name, query)
        assert found[7] == 0  # judged, and nothing is relevant: it counts


def test_ndcg_is_that_of_scikit_learn() -> None:
    scores, grades = judged_run(seed=5)
    table = np.zeros((40, 60))
    for row, judged in zip(table, grades, strict=True):
        for item, grade in judged.items():
            row[item] = max(grade, 0)
    top = np.argsort(-scores, axis=1)[:, :10]
    assert ndcg_at(top, grades).mean() == pytest.approx(ndcg_score(table, scores, k=10), abs=FLOAT64)


def test_ndcg_of_the_ideal_order_is_one() -> None:
    assert ndcg_at(np.array([[4, 2, 0]]), [{4: 3, 2: 1, 1: -1}], 3).tolist() == [1.0]


def test_what_was_not_found_has_no_grade() -> None:
    top = np.array([[5, NOTHING, NOTHING]])
    assert recall_of_relevant_at(top, [{5: 1, 6: 1}], 3).tolist() == [0.5]


def test_graded_metrics_refuse_too_short_a_result() -> None:
    """nDCG@10 of the first 5 would be a number, and another one."""
    with pytest.raises(InputError, match=r"found \(2, 5\), wanted \(2 queries, at least 10 items\)"):
        ndcg_at(np.zeros((2, 5), dtype=np.int64), [{1: 1}, {1: 1}], 10)
    with pytest.raises(InputError, match="wanted \\(3 queries"):
        recall_of_relevant_at(np.zeros((2, 5), dtype=np.int64), [{1: 1}] * 3, 5)


# --- spearman ---


def test_spearman_is_the_textbook_formula() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.permutation(50), draw.permutation(50)
    wanted = 1 - 6 * ((first - second) ** 2).sum() / (50 * (50**2 - 1))
    assert spearman(first / 50, second * 5) == pytest.approx(wanted, abs=FLOAT64)


def test_spearman_gives_ties_their_average_rank() -> None:
    draw = np.random.default_rng(1)
    first, second = draw.integers(0, 6, 80), draw.integers(0, 6, 80)
    ranks = [[sum(b < a for b in of) + sum(b == a for b in of) / 2 for a in of] for of in (first, second)]
    assert spearman(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=FLOAT64)


def test_spearman_of_constant_similarities_is_worth_nothing() -> None:
    assert spearman([0.3, 0.3, 0.3], [1, 2, 3]) == 0.0


@pytest.mark.parametrize(
    ("similarities", "scores", "message"),
    [
        ([0.1, 0.2], [4, 4], "every pair has the score 4"),
        ([0.1, np.nan], [1, 2], "NaN"),
        ([0.1], [1], "wanted two or more"),
        ([0.1, 0.2], [1, 2, 3], r"\(2,\) similarities and \(3,\) scores"),
    ],
)
def test_spearman_refuses_what_has_no_correlation(similarities, scores, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spearman(similarities, scores)


# --- classes ---


@pytest.mark.parametrize("k", [1, 5])
def test_zero_shot_accuracy_is_that_of_scikit_learn(k: int) -> None:
    images, classes = unit(200, 6), unit(17, 6, seed=1)
    labels = np.random.default_rng(2).integers(0, 17, 200)
    wanted = top_k_accuracy_score(labels, images @ classes.T, k=k, labels=np.arange(17))
    positives = Positives.from_pairs(np.arange(len(images)), labels, len(images))
    assert recall_at(first_hit_ranks(images, classes, positives), k) == pytest.approx(wanted, abs=FLOAT64)


def test_a_class_is_the_mean_of_its_prompts() -> None:
    prompts = unit(4, 3, 8)
    found = class_vectors(prompts)
    assert (found.shape, found.dtype) == ((4, 8), np.float32)
    for row, of_class in zip(found, prompts, strict=True):
        mean = sum(of_class.astype(float)) / 3
        np.testing.assert_allclose(row, mean / np.sqrt((mean**2).sum()), atol=1e-7)
    np.testing.assert_allclose(class_vectors(prompts[:, :1]), prompts[:, 0], atol=1e-7)


# --- top_k_agreement ---


def test_agreement_is_the_share_that_both_found() -> None:
    first = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [4, NOTHING, NOTHING], [NOTHING] * 3, [1, 2, NOTHING]])
    second = np.array([[3, 1, 2], [9, 1, 8], [7, 8, 9], [4, NOTHING, NOTHING], [NOTHING] * 3, [1, NOTHING, NOTHING]])
    assert top_k_agreement(first, second).tolist() == pytest.approx([1, 1 / 3, 0, 1, 0, 1 / 2])
    with pytest.raises(InputError, match="one shape"):
        top_k_agreement(first, second[:, :2])
