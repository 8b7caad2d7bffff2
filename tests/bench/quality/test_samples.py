"""A figure over languages of unequal size is the mean over them, and so are its interval and its difference."""

from typing import Any

import numpy as np
import pytest

from edgeclip_bench.quality.intervals import bootstrap_mean, bootstrap_statistic
from edgeclip_bench.quality.metrics import spearman
from edgeclip_bench.quality.samples import Sample

# Two bootstraps of 1000 resamples of 600 values, whose mean has a standard error of 0.02. Measured: 0.004.
NEAR = 0.01


def sample(values: np.ndarray, **options: Any) -> Sample:
    facts: dict[str, Any] = {"metric": "recall@1", "direction": None, "language": None, "is_overall": True}
    return Sample(**{**facts, "values": values, "groups": np.arange(len(values)), **options})


@pytest.fixture(scope="module")
def hits() -> np.ndarray:
    return (np.random.default_rng(0).random(600) < np.repeat([0.9, 0.3], [500, 100])).astype(np.float64)


@pytest.fixture(scope="module")
def weighted(hits: np.ndarray) -> Sample:
    """Two languages, 500 and 100 values."""
    return sample(hits, weight=np.repeat([600 / (2 * 500), 600 / (2 * 100)], [500, 100]))


def test_the_mean_over_languages(hits: np.ndarray, weighted: Sample) -> None:
    assert weighted.figure() == pytest.approx((hits[:500].mean() + hits[500:].mean()) / 2)
    assert abs(weighted.figure() - hits.mean()) > 0.1


def test_its_interval_is_round_it(hits: np.ndarray, weighted: Sample) -> None:
    """Against resampling the languages' means themselves."""
    draw = np.random.default_rng(1)
    means = [(draw.choice(hits[:500], 500).mean() + draw.choice(hits[500:], 100).mean()) / 2 for _ in range(1000)]
    found = weighted.interval()
    # Rows are drawn over both languages, so their sizes vary too: a little wider.
    low, high = np.quantile(means, [0.025, 0.975])
    assert low - 0.05 < found.low < low + NEAR and high - NEAR < found.high < high + 0.05


def test_equal_weights_are_none(hits: np.ndarray) -> None:
    assert sample(hits, weight=np.ones(600)).interval() == sample(hits).interval()


def test_an_interval_ends_at_one() -> None:
    whole = sample(np.ones(30), weight=np.repeat([1.5, 0.75], [10, 20]))
    assert whole.figure() == pytest.approx(1)
    assert 0.8 < whole.interval().low <= 1 and whole.interval().high == 1


def test_what_is_drawn_together_is_less_sure(hits: np.ndarray) -> None:
    """Five equal captions of an image are one draw, not five."""
    groups = np.arange(600).repeat(5)
    five = sample(hits.repeat(5), groups=groups).interval()
    assert five == bootstrap_mean(hits.repeat(5), groups)
    alone = sample(hits.repeat(5), groups=np.arange(3000)).interval()
    assert five.high - five.low > 1.8 * (alone.high - alone.low)


def test_a_paired_difference_sees_what_two_intervals_do_not(hits: np.ndarray, weighted: Sample) -> None:
    worse = hits.copy()
    worse[np.flatnonzero(hits)[:24]] = 0  # 12 would not do: an unseen query may be of the small language, weighing 3
    found = weighted.difference(sample(worse, weight=weighted.weight))
    assert 0 < found.low < weighted.figure() - sample(worse, weight=weighted.weight).figure() < found.high
    assert weighted.interval().low < sample(worse, weight=weighted.weight).interval().high


def test_a_correlation_is_resampled_by_pairs() -> None:
    draw = np.random.default_rng(0)
    targets = draw.random(30)
    one, other = (sample(targets + draw.random(30) * noise, targets=targets) for noise in (0.2, 2.0))
    assert one.figure() == spearman(one.values, targets)
    assert one.interval() == bootstrap_statistic(spearman, one.values, targets)
    found = one.difference(other)
    assert 0 < found.low < one.figure() - other.figure() < found.high
    same = one.difference(one)
    assert (same.low, same.high) == (0, 0)
