"""Percentiles, and how many samples each needs.

A percentile is given when at least ten samples lie beyond it, so p90 from 100 samples and p99.9 from 10,000; from
fewer one outlier would decide it. The median is always given, with its 95 % interval from order statistics, which
assumes nothing about the distribution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BEYOND = 10
# As (name, share of the samples at or below it, in thousandths so that counts are exact).
LEVELS = (("p90", 900), ("p95", 950), ("p99", 990), ("p99.9", 999))
RULE = "a percentile wants 10 samples beyond it: p90 100, p95 200, p99 1,000, p99.9 10,000; else null"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Samples in milliseconds; a percentile is None where the samples are too few for it."""

    samples: int
    mean_ms: float
    min_ms: float
    max_ms: float
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None

    def level(self, name: str) -> float | None:
        """The percentile called "p50", "p90", "p95", "p99" or "p99.9"."""
        found: float | None = getattr(self, _field(name))
        return found


def _field(name: str) -> str:
    return f"{name.replace('.', '')}_ms"


def samples_wanted(name: str) -> int:
    """The number of samples that the percentile of that name needs: 1 for the median."""
    return 1 if name == "p50" else next(math.ceil(BEYOND * 1000 / (1000 - share)) for n, share in LEVELS if n == name)


def summarize(samples_ms: Sequence[float] | NDArray[np.float64]) -> Distribution:
    """The distribution of at least one sample; percentiles are by nearest rank, as in MLPerf."""
    ordered = np.sort(np.asarray(samples_ms, dtype=np.float64))
    count = len(ordered)
    assert count, "nothing was measured"
    low, high = _median_interval(count)
    levels = {
        _field(name): float(ordered[-(-count * share // 1000) - 1]) if count >= samples_wanted(name) else None
        for name, share in LEVELS
    }
    return Distribution(
        samples=count,
        mean_ms=float(ordered.mean()),
        min_ms=float(ordered[0]),
        max_ms=float(ordered[-1]),
        p50_ms=float(np.median(ordered)),
        p50_low_ms=float(ordered[low]),
        p50_high_ms=float(ordered[high]),
        **levels,
    )


def _median_interval(count: int) -> tuple[int, int]:
    """The places of the order statistics round the median: a binomial(count, 1/2), by its normal approximation."""
    half = 1.96 * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - half) - 1)
    return low, count - 1 - low
