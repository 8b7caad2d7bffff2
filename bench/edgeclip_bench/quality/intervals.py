"""Compute 95 % intervals of means over queries by resampling, with allowance for values that no sample showed.

The interval is over the queries: how far the figure would move had other queries of the same kind been asked, against
the same corpus. What belongs together is drawn together (`groups`: the five captions of one image are not five
independent queries), and two models are compared on the same draws, which is what makes a small change visible.

A percentile bootstrap (Efron and Tibshirani 1993, chapter 13) only redraws what was seen: 1000 hits of 1000 would be
sure for ever, and one miss would give a narrower interval than none. The interval of a mean is therefore Gaffke's
2005 (Learned-Miller and Thomas 2020, "A new confidence interval for the mean of a bounded random variable"): the
groups get random weights (the Bayesian bootstrap, Rubin 1981), and one group more, that was not seen, is taken to be
as bad as can be for the low end and as good as can be for the high end. Of n hits and misses this is the exact
interval of Clopper and Pearson 1934; where all n are one value it leaves the share 1 - 0.025^(1/n), about 3.7 / n, to
others; of many queries it is the bootstrap's.

Simulated, 500 queries of which 3.8 are missed on average: the percentile interval covers the truth in 88 % of 2000
samples, this one in 96 %, and 95 % or more wherever tried. It is on the safe side: 3 % wider where half of 500 are
hits, 26 % where two models differ on 10 of 500. Weights are drawn in order of the groups' means, so with groups of
one size neither end rises when a hit is lost.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeclip.errors import InputError

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2

BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The range in which the true figure lies with 95 % confidence."""

    low: float
    high: float


def bootstrap_mean(
    values: ArrayLike, groups: ArrayLike | None = None, *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The interval of the mean of `values` (N,), each from 0 to 1: hits, recall, nDCG of one query each.

    `groups` (N,), any labels: values of one label are drawn together, and the mean is still over the values. Memory
    does not grow with N times `resamples`. InputError for NaN.
    """
    return _interval_of_mean(_checked(values), groups, 0.0, resamples, seed)


def bootstrap_difference(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None, *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The interval of mean(a) - mean(b), paired: a and b (N,) are of the same queries, drawn together."""
    first, second = _checked(a), _checked(b)
    if first.shape != second.shape:
        raise InputError(f"a paired difference of {len(first)} and {len(second)} values, wanted the same queries")
    return _interval_of_mean(first - second, groups, -1.0, resamples, seed)


def bootstrap_statistic(
    statistic: Callable[..., float], *columns: ArrayLike, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The interval of statistic(*columns), whose rows are drawn together, by `scipy.stats.bootstrap`'s percentiles.

    A resample on which the statistic raises InputError (all its scores are the same) does not count; where more than
    half are such, there is no interval. A statistic that comes out the same on every resample has one without width.
    """
    from scipy.stats import bootstrap

    def defined(*drawn: NDArray[Any]) -> float:
        try:
            return statistic(*drawn)
        except InputError:
            return math.nan

    arrays = [np.asarray(column) for column in columns]
    sizes = {len(array) for array in arrays}
    if len(sizes) != 1:
        raise InputError(f"columns of {sorted(sizes)} rows, wanted columns of one length")
    statistic(*arrays)  # what is wrong with the whole sample is said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of resamples without a value
        drawn = bootstrap(
            arrays,
            defined,
            paired=True,
            vectorized=False,
            n_resamples=_check_resamples(resamples),
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    found = drawn[np.isfinite(drawn)]
    if 2 * len(found) < resamples:
        raise InputError(f"{sizes.pop()} rows are too few or too alike for an interval by resampling")
    low, high = np.quantile(found, [_TAIL, 1 - _TAIL])
    return Interval(low=float(low), high=float(high))


def _interval_of_mean(
    values: NDArray[np.float64], groups: ArrayLike | None, lowest: float, resamples: int, seed: int
) -> Interval:
    """The weighted mean of the groups, with an unseen one of `lowest` or 1 that has a share in it.

    That share is 1 - U^(1/G) for G groups, independent of the mean of the rest; U runs over a grid, so
    the share's own part is exact to 1e-5 of it with 1000 resamples.
    """
    labels = np.arange(len(values)) if groups is None else np.asarray(groups)  # without groups each is its own
    if labels.shape != values.shape:
        raise InputError(f"groups {labels.shape}, wanted one label for each of {len(values)} values")
    of_value = np.unique(labels, return_inverse=True)[1]
    totals = np.column_stack((np.bincount(of_value, weights=values), np.bincount(of_value)))  # (G, 2): sum and size
    means = totals[:, 0] / totals[:, 1]
    totals = totals[np.lexsort((totals[:, 1], means))]
    draw = np.random.default_rng(seed)
    found = np.empty(_check_resamples(resamples))
    step = max(1, BLOCK_BYTES // (8 * len(totals)))
    for start in range(0, resamples, step):
        block = found[start : start + step]
        drawn = draw.standard_exponential((len(block), len(totals))) @ totals
        block[:] = drawn[:, 0] / drawn[:, 1]
    found.clip(means.min(), means.max(), out=found)  # rounding aside, it is between them
    share = 1 - np.linspace(1, 0, resamples) ** (1 / len(totals))
    low, high = found - share * (found - lowest), found + share * (1 - found)
    return Interval(low=float(np.quantile(low, _TAIL)), high=float(np.quantile(high, 1 - _TAIL)))


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
