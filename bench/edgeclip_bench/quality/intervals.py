"""How sure a mean over queries is: percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13).

The interval is over the queries: how far the figure would move had other queries of the same kind been asked,
against the same corpus. It says nothing of another corpus or another training run. What belongs together is
drawn together (`groups`: the five captions of one image are not five independent queries), and two models
are compared on the same draws (`bootstrap_difference`), which is what makes a small change visible.

A sample in which every value is the same, 1000 hits of 1000, has nothing to resample: the percentile interval
would be a point, as if the model could not fail. There the interval allows for the share of other queries
that a sample of this size misses with 2.5 % probability, 1 - 0.025^(1/n), about 3.7 / n: the exact bound of
Clopper and Pearson 1934, which the "rule of three" rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeclip.errors import InputError

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2

BLOCK_BYTES = 64 * 2**20
# Draws per resample: a statistic that is undefined on more than half of them has no interval worth the name.
_MOST_DRAWS = 2
# Group means that differ by less are the same figure, summed over groups of other sizes.
_SAME = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where the true figure lies with 95 % confidence."""

    low: float
    high: float


def bootstrap_mean(
    values: ArrayLike, groups: ArrayLike | None = None, *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The interval of the mean of `values` (N,), each from 0 to 1: hits, recall, nDCG of one query each.

    `groups` (N,), any labels: values of one label are drawn together, and the mean is still over the values.
    Memory does not grow with N times `resamples`. Raises InputError for NaN, which the caller leaves out.
    """
    return _interval_of_mean(_checked(values), groups, 0.0, resamples, seed)


def bootstrap_difference(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None, *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The interval of mean(a) - mean(b), paired: a and b (N,) are of the same queries, drawn together.

    Values from 0 to 1 and `groups` as in `bootstrap_mean`. An interval without 0 is a difference.
    """
    first, second = _checked(a), _checked(b)
    if first.shape != second.shape:
        raise InputError(f"a paired difference of {len(first)} and {len(second)} values, wanted the same queries")
    return _interval_of_mean(first - second, groups, -1.0, resamples, seed)


def bootstrap_statistic(
    statistic: Callable[..., float],
    *columns: ArrayLike,
    groups: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The interval of statistic(*columns), whose rows are drawn together: `bootstrap_statistic(spearman, x, y)`.

    Rows of one label in `groups` (N,) are drawn together too. A resample on which the statistic raises
    InputError (all its scores are the same) is drawn again. A statistic that comes out the same on every
    resample, as a perfect correlation does, has an interval without width; here no bound mends it.
    """
    arrays = [np.asarray(column) for column in columns]
    sizes = {len(array) for array in arrays}
    if len(sizes) != 1:
        raise InputError(f"columns of {sorted(sizes)} rows, wanted columns of one length")
    statistic(*arrays)  # what is wrong with the whole sample is said, not drawn again
    rows_of = _rows_by_group(groups, sizes.pop())
    draw = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(_MOST_DRAWS * _check_resamples(resamples)):
        if len(found) == resamples:
            break
        rows = np.concatenate([rows_of[group] for group in draw.integers(len(rows_of), size=len(rows_of))])
        try:
            found.append(statistic(*(array[rows] for array in arrays)))
        except InputError:
            continue
    if len(found) < resamples:
        raise InputError(f"{sum(map(len, rows_of))} rows are too few or too alike for an interval by resampling")
    return _percentiles(np.array(found))


def _interval_of_mean(
    values: NDArray[np.float64], groups: ArrayLike | None, lowest: float, resamples: int, seed: int
) -> Interval:
    """Of values from `lowest` to 1. The mean of a draw is the ratio of its groups' sums to their sizes."""
    totals = _totals(values, groups)  # (G, 2): sum and size
    means = totals[:, 0] / totals[:, 1]
    if np.ptp(means) < _SAME:
        mean, unseen = float(means[0]), 1 - _TAIL ** (1 / len(means))
        return Interval(low=mean - unseen * (mean - lowest), high=mean + unseen * (1 - mean))
    # Groups with the same total are interchangeable, so how often each total is drawn is multinomial. Of hits
    # there are a handful of totals, whatever N.
    kinds, counts = np.unique(totals, axis=0, return_counts=True)  # (K, 2), (K,)
    draw = np.random.default_rng(seed)
    found = np.empty(_check_resamples(resamples))
    step = max(1, BLOCK_BYTES // (2 * 8 * len(kinds)))
    for start in range(0, resamples, step):
        block = found[start : start + step]
        drawn = draw.multinomial(len(totals), counts / len(totals), size=len(block)).astype(np.float64) @ kinds
        block[:] = drawn[:, 0] / drawn[:, 1]
    return _percentiles(found)


def _totals(values: NDArray[np.float64], groups: ArrayLike | None) -> NDArray[np.float64]:
    """The sum and the size of each group, (G, 2); without groups each value is its own."""
    if groups is None:
        return np.column_stack((values, np.ones(len(values))))
    of_value = _group_index(groups, len(values))
    return np.column_stack((np.bincount(of_value, weights=values), np.bincount(of_value)))


def _rows_by_group(groups: ArrayLike | None, rows: int) -> list[NDArray[Any]]:
    if groups is None:
        return list(np.arange(rows)[:, None])
    of_row = _group_index(groups, rows)
    return np.split(np.argsort(of_row, kind="stable"), np.bincount(of_row).cumsum()[:-1])


def _group_index(groups: ArrayLike, rows: int) -> NDArray[np.intp]:
    labels = np.asarray(groups)
    if labels.shape != (rows,):
        raise InputError(f"groups {labels.shape}, wanted one label for each of {rows} values")
    return np.unique(labels, return_inverse=True)[1]


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InputError(f"values {array.shape}, wanted one or more in a row")
    if not (is_right := (array >= 0) & (array <= 1)).all():  # not so of NaN
        place = int(is_right.argmin())
        raise InputError(f"value {place} is {array[place]:g}, wanted 0 to 1; leave out what has no value")
    return array


def _check_resamples(resamples: int) -> int:
    if resamples < 1:
        raise InputError(f"resamples is {resamples}, wanted 1 or more")
    return resamples


def _percentiles(found: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(found, [_TAIL, 1 - _TAIL])
    return Interval(low=float(low), high=float(high))
