"""Retrieval, similarity and zero-shot metrics on embeddings that fit in memory; the similarities do not.

Similarities are computed block by block, and beside the embeddings a call holds no more than `block_bytes`. A product
is summed in float64 and rounded once to float32, so that equal vectors score equally wherever in a block they stand:
BLAS sums a row at the edge of a block in another order than one inside it, which in float32 would break ties by
chance, and a model that gives every text the same vector would seem to find something.

Where the field has two metrics of one name, both are here: R@k of Flickr30k and COCO, a hit if any of an image's
captions is found (a rank of `first_hit_ranks` below k: Karpathy and Fei-Fei 2015), and BEIR's Recall@k, the share of
the relevant documents found (`recall_of_relevant_at`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeclip.errors import InputError

Vectors = NDArray[np.float32]
Indices = NDArray[np.int64]
Grades = Sequence[Mapping[int, int]]

BLOCK_BYTES = 64 * 2**20
# More queries than this in a block save no time: 512 rows already use each item 512 times.
_MOST_ROWS = 512
# A similarity in float64 and float32, a sorted copy, two masks and a running count of them.
_BYTES_PER_SIMILARITY = 24

# The rank of a query whose positives all scored NaN: behind every k.
NEVER = np.iinfo(np.int64).max
# Fills `top_k` where there is no item left.
NOTHING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Positives:
    """The items that are right for each query: query q has items[starts[q] : starts[q + 1]]."""

    items: Indices
    starts: Indices

    @classmethod
    def from_pairs(cls, query_index: ArrayLike, item_index: ArrayLike, queries: int) -> Self:
        """Group pairs (query, item), in any order, by their query; InputError for a query without an item."""
        of_query = np.asarray(query_index, dtype=np.int64)
        items = np.asarray(item_index, dtype=np.int64)
        if of_query.ndim != 1 or of_query.shape != items.shape:
            raise InputError(f"pairs of a query and an item: found {of_query.shape} queries and {items.shape} items")
        if of_query.size and (of_query.min() < 0 or of_query.max() >= queries or items.min() < 0):
            raise InputError(f"an index in the pairs is below 0, or a query's is not below {queries}")
        counts = np.bincount(of_query, minlength=queries)
        if not counts.all():
            raise InputError(f"query {int(counts.argmin())} has no positive item; leave it out")
        starts = np.concatenate(([0], counts.cumsum()))
        return cls(items=items[np.argsort(of_query, kind="stable")], starts=starts)


def truncate(vectors: Vectors, dim: int) -> Vectors:
    """The first `dim` columns of (N, D), each row divided by its length: cut first, then normalise.

    As torch.nn.functional.normalize: a length counts as at least 1e-12, so zeros stay zeros.
    """
    if not 1 <= dim <= vectors.shape[-1]:
        raise InputError(f"dim is {dim}, wanted 1 to {vectors.shape[-1]}")
    return _normalize(vectors[..., :dim])


def first_hit_ranks(
    queries: Vectors,
    items: Vectors,
    positives: Positives,
    *,
    without: Indices | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Indices:
    """The rank from 0 of each query's best positive: (Q,) from queries (Q, D) and items (N, D).

    It is the number of items that are not positive and score at least as much. A tie counts against, and so does an
    item whose score is NaN: a model that gives constants finds nothing. A query whose positives all score NaN has the
    rank NEVER. `without` (Q,) is an item that the query does not search, which is none of its positives; -1 for none.
    """
    best = _best_positive_scores(queries, items, positives, block_bytes)  # (Q,)
    ranks = np.zeros(len(queries), dtype=np.int64)
    for rows, columns, scores in _similarity_blocks(queries, items, without, block_bytes):
        first, last = positives.starts[rows.start], positives.starts[rows.stop]
        counts = np.diff(positives.starts[rows.start : rows.stop + 1])
        row, column = np.repeat(np.arange(len(counts)), counts), positives.items[first:last] - columns.start
        is_here = (column >= 0) & (column < columns.stop - columns.start)
        scores[row[is_here], column[is_here]] = -np.inf
        ranks[rows] += (~(scores < best[rows, None])).sum(axis=1)
    ranks[np.isnan(best)] = NEVER
    return ranks


def top_k(
    queries: Vectors, items: Vectors, k: int, *, without: Indices | None = None, block_bytes: int = BLOCK_BYTES
) -> tuple[Indices, NDArray[np.float32]]:
    """The k best items of each query and their scores, both (Q, k), best first, ties by the lower index.

    Where fewer than k items have a score (N < k, or NaN), the rest is NOTHING with the score -inf.
    """
    _check_k(k)
    found = np.full((len(queries), k), NOTHING, dtype=np.int64)
    found_scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for rows, columns, scores in _similarity_blocks(queries, items, without, block_bytes):
        scores[np.isnan(scores)] = -np.inf
        here = best_columns(scores, min(k, scores.shape[1]))
        here_scores = np.take_along_axis(scores, here, axis=1)
        # What was found before has lower indices and stands first, so a stable sort keeps the order of ties, and
        # k times NOTHING keeps out what has no score.
        both = np.concatenate((found[rows], here + columns.start), axis=1)
        both_scores = np.concatenate((found_scores[rows], here_scores), axis=1)
        order = np.argsort(-both_scores, axis=1, kind="stable")[:, :k]
        found[rows] = np.take_along_axis(both, order, axis=1)
        found_scores[rows] = np.take_along_axis(both_scores, order, axis=1)
    return found, found_scores


def ndcg_at(top: Indices, grades: Grades, k: int = 10) -> NDArray[np.float64]:
    """nDCG@k of each query, (Q,), from `top_k` (Q, at least k) and each query's {item: grade}.

        nDCG = DCG / ideal DCG,   DCG = sum of max(grade, 0) / log2(rank + 2),  rank from 0

    trec_eval's ndcg_cut, which BEIR and MTEB report (Järvelin and Kekäläinen 2002, with linear gain): the ideal ranks
    all judged items, an unjudged one is worth 0. A query that was never judged has the value NaN. On equal scores
    they put the higher document id first, `top_k` the lower index.
    """
    gains = _gains(top, grades, k)  # (Q, k)
    ideal = np.zeros_like(gains)
    for row, judged in enumerate(grades):
        best = sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:k]
        ideal[row, : len(best)] = best
    discounts = np.log2(np.arange(2, k + 2))
    return _share_of_judged((gains / discounts).sum(axis=1), (ideal / discounts).sum(axis=1), grades)


def recall_of_relevant_at(top: Indices, grades: Grades, k: int) -> NDArray[np.float64]:
    """BEIR's Recall@k: the share of the items graded above 0 among the first k, (Q,), with NaN as in `ndcg_at`."""
    relevant = np.array([sum(grade > 0 for grade in judged.values()) for judged in grades], dtype=np.float64)
    return _share_of_judged((_gains(top, grades, k) > 0).sum(axis=1), relevant, grades)


def spearman(similarities: ArrayLike, scores: ArrayLike) -> float:
    """Spearman's rank correlation (average ranks for ties), by which STS is judged: -1 to 1, or 0.0 of constants.

    InputError for fewer than two pairs, for NaN, and for scores that are all the same.
    """
    from scipy.stats import spearmanr

    found, wanted = np.asarray(similarities, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if found.ndim != 1 or found.shape != wanted.shape or found.size < 2:
        raise InputError(f"Spearman of {found.shape} similarities and {wanted.shape} scores, wanted two or more")
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        raise InputError("Spearman of NaN or infinity; the embeddings or the scores are broken")
    if np.ptp(wanted) == 0:
        raise InputError(f"every pair has the score {wanted[0]:g}; Spearman needs scores that differ")
    return 0.0 if np.ptp(found) == 0 else float(spearmanr(found, wanted).statistic)


def class_vectors(prompts: Vectors) -> Vectors:
    """One unit vector per class, (C, D), from unit vectors of its prompts (C, T, D): their mean, normalised.

    Prompt ensembling in the embedding space: Radford et al. 2021, section 3.1.4.
    """
    return _normalize(prompts.mean(axis=1, dtype=np.float64).astype(np.float32))


def top_k_agreement(first: Indices, second: Indices) -> NDArray[np.float64]:
    """The share of the first k that both found, whatever their order: (Q,) from two `top_k` (Q, k)."""
    if first.shape != second.shape:
        raise InputError(f"found {first.shape} and {second.shape}, wanted two results of one shape")
    both = np.sort(np.concatenate((first, second), axis=1), axis=1)
    shared = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] != NOTHING)).sum(axis=1)  # none is twice in one result
    most = np.maximum((first != NOTHING).sum(axis=1), (second != NOTHING).sum(axis=1))
    share: NDArray[np.float64] = shared / np.maximum(most, 1)
    return share


def _similarity_blocks(
    queries: Vectors, items: Vectors, without: Indices | None, block_bytes: int
) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
    """Rows, columns and similarities of block after block, -inf for what a query goes `without`."""
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise InputError(f"queries {queries.shape} and items {items.shape}, wanted (Q, D) and (N, D)")
    row_bytes = 8 * queries.shape[1]  # its float64 copy
    height = max(1, min(_MOST_ROWS, block_bytes // (4 * (row_bytes + _BYTES_PER_SIMILARITY))))
    width = max(1, (block_bytes - height * row_bytes) // (height * _BYTES_PER_SIMILARITY + row_bytes))
    for top in range(0, len(queries), height):
        rows = slice(top, min(top + height, len(queries)))
        block = queries[rows].astype(np.float64)
        for left in range(0, len(items), width):
            columns = slice(left, min(left + width, len(items)))
            with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are the callers' to judge
                scores = (block @ items[columns].astype(np.float64).T).astype(np.float32)
            if without is not None:
                row = np.flatnonzero((without[rows] >= columns.start) & (without[rows] < columns.stop))
                scores[row, without[rows][row] - columns.start] = -np.inf
            yield rows, columns, scores


def _best_positive_scores(
    queries: Vectors, items: Vectors, positives: Positives, block_bytes: int
) -> NDArray[np.float32]:
    """The highest score of each query's positives, (Q,); NaN where they have no other."""
    if len(positives.starts) != len(queries) + 1:
        raise InputError(f"{len(queries)} queries, but positives for {len(positives.starts) - 1}")
    if not len(queries):
        return np.empty(0, dtype=np.float32)
    if positives.items.max() >= len(items):
        raise InputError(f"a query's positive is item {int(positives.items.max())} of {len(items)}")
    of_query = np.repeat(np.arange(len(queries)), np.diff(positives.starts))
    scores = np.empty(len(of_query), dtype=np.float32)
    step = max(1, block_bytes // (2 * 12 * queries.shape[1]))  # float32 and float64, both of a pair
    for start in range(0, len(of_query), step):
        part = slice(start, start + step)
        scores[part] = np.einsum(
            "pd,pd->p",
            queries[of_query[part]].astype(np.float64),
            items[positives.items[part]].astype(np.float64),
        )
    best: NDArray[np.float32] = np.fmax.reduceat(scores, positives.starts[:-1])
    return best


def best_columns(scores: NDArray[np.float32], k: int) -> Indices:
    """The columns of each row's k highest scores (R, k), best first, the lower column first on a tie."""
    worst = np.partition(scores, -k, axis=1)[:, -k, None]  # (R, 1): the k-th best score
    is_tie = scores == worst
    is_best = scores > worst
    # Of those that tie with the k-th best, the first so many that k are taken.
    wanted = k - is_best.sum(axis=1, keepdims=True)
    is_best |= is_tie & (np.cumsum(is_tie, axis=1, dtype=np.int32) <= wanted)
    columns = np.nonzero(is_best)[1].reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _gains(top: Indices, grades: Grades, k: int) -> NDArray[np.float64]:
    """The grade of what was found, (Q, k): 0 where it is below or was not judged."""
    _check_k(k)
    if len(top) != len(grades) or top.shape[1] < k:
        raise InputError(f"found {top.shape}, wanted ({len(grades)} queries, at least {k} items)")
    rows = zip(top[:, :k].tolist(), grades, strict=True)
    found = [[max(judged.get(item, 0), 0) for item in row] for row, judged in rows]
    return np.array(found, dtype=np.float64).reshape(len(grades), k)


def _share_of_judged(part: NDArray[Any], whole: NDArray[np.float64], grades: Grades) -> NDArray[np.float64]:
    """part / whole: 0 where the whole is, NaN where nothing was judged."""
    share: NDArray[np.float64] = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    share[[not judged for judged in grades]] = np.nan
    return share


def _normalize(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / lengths.clip(min=1e-12).astype(np.float32)
    return unit


def _check_k(k: int) -> None:
    if k < 1:
        raise InputError(f"k is {k}, wanted 1 or more")
