"""Decide when a measurement has settled, by perf_analyzer's rule of the last three windows.

A case is measured in windows of time. It is steady when the median latency and the throughput of each of the last
three lie within 10 % of their mean. Until then, and until there are enough samples for the scenario's percentile,
more windows follow, up to a limit; a case that did not settle is reported as not steady.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LAST = 3
WITHIN = 0.10
RULE = "steady: median latency and throughput of the last 3 windows within 10 % of their mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A span of time: the numbers of queries and samples in it, and the median latency of a query."""

    queries: int
    samples: int
    seconds: float
    median_ms: float

    @property
    def per_second(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long a case is measured: from `least` to `most` windows, each of `window_s` and `queries` or more.

    There are more than `most` for `wanted` queries, if they are done within `limit_s`; no window begins after that.
    """

    window_s: float
    least: int = 4
    most: int = 8
    queries: int = 3
    wanted: int = 1
    limit_s: float = math.inf


def effort_for(seconds: float, wanted: int = 1) -> Effort:
    """The windows of a case that should take `seconds`, and at most five times that but for one slow window."""
    return Effort(window_s=seconds / 4, wanted=wanted, limit_s=5 * seconds)


def is_steady(windows: Sequence[Window]) -> bool:
    """Whether the last three windows agree; fewer never do."""
    last = windows[-LAST:]
    if len(last) < LAST:
        return False
    return _agree([window.median_ms for window in last]) and _agree([window.per_second for window in last])


def needs_more(windows: Sequence[Window], effort: Effort) -> bool:
    """Whether another window is to be measured."""
    elapsed, queries = sum(window.seconds for window in windows), sum(window.queries for window in windows)
    if elapsed >= effort.limit_s:
        return False
    if len(windows) < effort.least:
        return True
    if queries < effort.wanted and elapsed * effort.wanted / queries <= effort.limit_s:
        return True
    return len(windows) < effort.most and not is_steady(windows)


def _agree(values: Sequence[float]) -> bool:
    mean = sum(values) / len(values)
    return all(abs(value - mean) <= WITHIN * mean for value in values)
