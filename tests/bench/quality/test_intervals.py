"""95 % intervals cover 95 % of the time, agree with scipy's, and are honest about groups, pairs and perfection."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from edgeclip.errors import InputError
from edgeclip_bench.quality.intervals import Interval, bootstrap_difference, bootstrap_mean, bootstrap_statistic
from edgeclip_bench.quality.metrics import spearman

SIMULATIONS = 300
# 300 draws of a 95 % event: 2 standard deviations below; above, the interval is on the safe side by design.
COVERAGE = (0.925, 0.995)
# The ends scatter with the draw: of 20 seeds the worst was 5 % of the width from scipy's, 4000 resamples each.
SCIPY_SHARE_OF_WIDTH = 0.08
# Where only the unseen group counts: between two points of a grid of 1000. Measured: 6e-6.
GRID = 2e-5


def width(interval: Interval) -> float:
    return interval.high - interval.low


def hits(n: int, p: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < p


def grouped_hits(groups: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each group has a chance of its own, 0.5 on average: as captions of one image that is easy or hard."""
    draw = np.random.default_rng(seed)
    chance = np.repeat(draw.beta(0.5, 0.5, groups), size)
    return draw.random(groups * size) < chance, np.repeat(np.arange(groups), size)


def coverage(covers) -> float:
    return np.mean([covers(seed) for seed in range(SIMULATIONS)])


# --- bootstrap_mean ---


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_the_interval_of_hits_covers_the_truth(p: float) -> None:
    def covers(seed: int) -> bool:
        interval = bootstrap_mean(hits(200, p, seed), resamples=400, seed=seed)
        return interval.low <= p <= interval.high

    assert COVERAGE[0] <= coverage(covers) <= COVERAGE[1]


def test_the_interval_of_graded_values_covers_the_truth() -> None:
    def covers(seed: int) -> bool:
        interval = bootstrap_mean(np.random.default_rng(seed).beta(2, 1, 80), resamples=400, seed=seed)
        return interval.low <= 2 / 3 <= interval.high

    assert COVERAGE[0] <= coverage(covers) <= COVERAGE[1]


@pytest.mark.parametrize("misses", [3.8, 5.7])
def test_the_interval_of_few_misses_covers_the_truth(misses: float) -> None:
    """The percentile interval covers 88 and 90 % of these. 1500 draws: 2 standard deviations."""
    p = 1 - misses / 200

    def covers(seed: int) -> bool:
        interval = bootstrap_mean(hits(200, p, seed), resamples=400, seed=seed)
        return interval.low <= p <= interval.high

    assert np.mean([covers(seed) for seed in range(1500)]) > 0.939


@pytest.mark.parametrize("misses", [1, 2, 5, 30, 100])
def test_the_interval_of_hits_is_that_of_clopper_and_pearson(misses: int) -> None:
    wanted = stats.binomtest(200 - misses, 200).proportion_ci(confidence_level=0.95, method="exact")
    found = bootstrap_mean(np.arange(200) >= misses, resamples=20_000)
    scatter = 0.02 * (wanted.high - wanted.low)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=scatter)


@pytest.mark.parametrize(("size", "is_nested"), [(1, False), (5, True)], ids=["any hits", "one by one, in groups"])
def test_no_end_rises_when_a_hit_is_lost(size: int, is_nested: bool) -> None:
    """Not the first either: a model that equals another is not less sure to be no worse than one that is worse."""
    whole, groups = np.ones(500), np.arange(500) // size
    ends = []
    for lost in range(120):
        values = whole.copy()
        values[np.random.default_rng(0 if is_nested else lost).permutation(500)[:lost]] = 0
        ends.append((bootstrap_difference(values, whole, groups), bootstrap_mean(values, groups)))
    for kind in zip(*ends, strict=True):
        assert (np.diff([[interval.low, interval.high] for interval in kind], axis=0) <= 0).all()
    same, one = ends[0][0], ends[1][0]
    assert one.low < same.low < 0 < one.high < same.high


def test_the_interval_of_groups_covers_the_truth_and_one_without_does_not() -> None:
    def covers(seed: int, is_grouped: bool) -> bool:
        values, groups = grouped_hits(100, 5, seed)
        interval = bootstrap_mean(values, groups if is_grouped else None, resamples=400, seed=seed)
        return interval.low <= 0.5 <= interval.high

    assert COVERAGE[0] <= coverage(lambda seed: covers(seed, True)) <= COVERAGE[1]
    assert coverage(lambda seed: covers(seed, False)) < 0.8


@pytest.mark.parametrize("values", [hits(150, 0.8), np.random.default_rng(1).beta(2, 1, 150)], ids=["hits", "graded"])
def test_the_interval_of_a_mean_is_that_of_scipy(values: np.ndarray) -> None:
    wanted = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0)
    ).confidence_interval
    found = bootstrap_mean(values, resamples=4000)
    assert found.low == pytest.approx(wanted.low, abs=SCIPY_SHARE_OF_WIDTH * width(found))
    assert found.high == pytest.approx(wanted.high, abs=SCIPY_SHARE_OF_WIDTH * width(found))


def test_the_mean_of_groups_is_over_the_values() -> None:
    """Groups of unequal size: scipy's bootstrap of the ratio of two columns."""
    draw = np.random.default_rng(2)
    groups = np.repeat(np.arange(120), draw.integers(1, 8, 120))
    values = draw.random(len(groups)) < np.repeat(draw.random(120), np.bincount(groups))
    wanted = stats.bootstrap(
        (np.bincount(groups, weights=values), np.bincount(groups)),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        method="percentile",
        paired=True,
        n_resamples=4000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = bootstrap_mean(values, groups, resamples=4000)
    assert found.low == pytest.approx(wanted.low, abs=SCIPY_SHARE_OF_WIDTH * width(found))
    assert found.high == pytest.approx(wanted.high, abs=SCIPY_SHARE_OF_WIDTH * width(found))


def test_groups_are_labels_of_any_kind_in_any_order() -> None:
    values, groups = grouped_hits(60, 5, seed=0)
    wanted = bootstrap_mean(values, groups)
    order = np.random.default_rng(0).permutation(len(values))
    assert bootstrap_mean(values[order], groups[order]) == wanted
    assert bootstrap_mean(values, [f"image {group:03}" for group in groups]) == wanted
    assert width(wanted) > 1.5 * width(bootstrap_mean(values))


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_memory_does_not_grow_with_the_resamples() -> None:
    """All draws at once would be 1000 x 200,000 weights, 1.6 GB."""
    values = np.random.default_rng(0).random(200_000)
    tracemalloc.start()
    bootstrap_mean(values, resamples=42)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_blocks_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws come in one stream, so cutting them into blocks changes no draw; the last one is shorter."""
    values = np.random.default_rng(0).random(50)
    wanted = bootstrap_mean(values, resamples=100)
    monkeypatch.setattr("edgeclip_bench.quality.intervals.BLOCK_BYTES", 7 * 50 * 16)
    found = bootstrap_mean(values, resamples=100)
    # A GEMM of other rows may add in another order: 7e-16 on one AMD EPYC, and no difference on others.
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(wanted), rel=1e-13)


# --- where nothing differs ---


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_all_hits_leave_room_for_misses_that_were_not_drawn(n: int) -> None:
    """Clopper and Pearson's bound, by scipy."""
    wanted = stats.binomtest(n, n).proportion_ci(confidence_level=0.95, method="exact")
    found = bootstrap_mean(np.ones(n))
    assert (found.low, found.high) == (pytest.approx(wanted.low, rel=GRID), 1.0)
    none = bootstrap_mean(np.zeros(n))
    assert (none.low, none.high) == (0.0, pytest.approx(1 - wanted.low, rel=GRID))


def test_all_hits_of_groups_count_the_groups() -> None:
    assert bootstrap_mean(np.ones(50), np.repeat(np.arange(10), 5)) == bootstrap_mean(np.ones(10))


def test_models_that_never_differed_may_still_differ() -> None:
    values = hits(200, 0.7)
    found = bootstrap_difference(values, values)
    unseen = 1 - 0.025 ** (1 / 200)
    assert (found.low, found.high) == pytest.approx((-unseen, unseen), rel=GRID)


def test_one_value_that_is_no_proportion_may_still_be_another() -> None:
    """Groups of one mean, though their sums are rounded differently."""
    found = bootstrap_mean(np.full(12, 0.7), [0] * 3 + [1] * 9)
    unseen = 1 - 0.025 ** (1 / 2)
    assert (found.low, found.high) == pytest.approx((0.7 * (1 - unseen), 0.7 + 0.3 * unseen), rel=GRID)


# --- bootstrap_difference ---


def paired_hits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models that agree on most queries: the second loses one hit in twenty, 0.04 of all."""
    draw = np.random.default_rng(seed)
    first = draw.random(n) < 0.8
    return first, first & (draw.random(n) < 0.95)


def test_the_interval_of_a_difference_covers_the_truth() -> None:
    def covers(seed: int) -> bool:
        interval = bootstrap_difference(*paired_hits(300, seed), resamples=400, seed=seed)
        return interval.low <= 0.8 * 0.05 <= interval.high

    assert COVERAGE[0] <= coverage(covers) <= COVERAGE[1]


def test_a_paired_difference_is_seen_where_an_unpaired_one_is_not() -> None:
    first, second = paired_hits(300, seed=0)
    paired = bootstrap_difference(first, second)
    unpaired = bootstrap_difference(first, np.random.default_rng(1).permutation(second))
    assert width(paired) < 0.6 * width(unpaired)
    assert paired.low > 0 > unpaired.low


def test_a_difference_is_the_first_less_the_second() -> None:
    first, second = paired_hits(300, seed=0)
    there, back = bootstrap_difference(first, second), bootstrap_difference(second, first)
    assert there.low < (first.mean() - second.mean()) < there.high
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.01)


def test_a_difference_in_groups_is_wider() -> None:
    first, groups = grouped_hits(80, 5, seed=0)
    second = np.zeros(len(first))
    assert width(bootstrap_difference(first, second, groups)) > 1.5 * width(bootstrap_difference(first, second))


# --- bootstrap_statistic ---


def correlated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    first = draw.standard_normal(n)
    return first, first + draw.standard_normal(n)


def test_the_interval_of_spearman_is_that_of_scipy() -> None:
    first, second = correlated(60, seed=0)
    wanted = stats.bootstrap(
        (first, second),
        lambda x, y: stats.spearmanr(x, y).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = bootstrap_statistic(spearman, first, second, resamples=2000)
    assert found.low == pytest.approx(wanted.low, abs=SCIPY_SHARE_OF_WIDTH * width(found))
    assert found.high == pytest.approx(wanted.high, abs=SCIPY_SHARE_OF_WIDTH * width(found))


def test_a_resample_on_which_a_statistic_is_undefined_does_not_count() -> None:
    """Of four pairs one resample in 64 holds one pair four times."""
    found = bootstrap_statistic(spearman, [0.1, 0.4, 0.2, 0.3], [1, 2, 3, 4])
    assert -1 <= found.low < found.high <= 1


def test_a_statistic_that_is_mostly_undefined_has_no_interval() -> None:
    with pytest.raises(InputError, match="3 rows are too few or too alike"):
        bootstrap_statistic(_refuse_repeats, [1, 2, 3])


def test_what_is_wrong_with_the_whole_sample_is_said() -> None:
    with pytest.raises(InputError, match="every pair has the score 3"):
        bootstrap_statistic(spearman, [0.1, 0.2], [3, 3])


def _refuse_repeats(column: np.ndarray) -> float:
    if len(set(column.tolist())) < len(column):
        raise InputError("repeated")
    return 0.0


# --- what cannot be ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "wanted one or more"),
        ([[0.5]], r"values \(1, 1\)"),
        ([0.5, np.nan], "value 1 is nan, wanted 0 to 1; leave out"),
        ([1, 0, 1.5], "value 2 is 1.5"),
        ([-0.1], "value 0 is -0.1"),
    ],
)
def test_values_are_shares(values, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bootstrap_mean(values)


def test_lengths_agree() -> None:
    with pytest.raises(InputError, match="difference of 3 and 2 values"):
        bootstrap_difference([1, 0, 1], [1, 0])
    with pytest.raises(InputError, match=r"groups \(2,\), wanted one label for each of 3"):
        bootstrap_mean([1, 0, 1], [0, 1])
    with pytest.raises(InputError, match=r"columns of \[1, 2\] rows"):
        bootstrap_statistic(spearman, [0.1, 0.2], [1])
    with pytest.raises(InputError, match="resamples is 0"):
        bootstrap_mean([1, 0], resamples=0)
    with pytest.raises(InputError, match="resamples is 0"):
        bootstrap_statistic(spearman, [0.1, 0.2], [1, 2], resamples=0)
