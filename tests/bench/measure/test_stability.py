"""Steady is: the last three windows within 10 % of their mean, in latency and in throughput."""

from dataclasses import replace

import pytest

from edgeclip_bench.measure.stability import Effort, Window, effort_for, is_steady, needs_more


def windows(*medians: float, queries: int = 100) -> list[Window]:
    return [Window(queries=queries, samples=queries, seconds=1.0, median_ms=median) for median in medians]


@pytest.mark.parametrize(
    ("found", "steady"),
    [
        (windows(10, 10), False),
        (windows(10, 10, 10), True),
        (windows(50, 10, 10.5, 9.5), True),
        (windows(10, 10, 10, 50), False),
        (windows(9.1, 10, 10.9), True),
        (windows(8.9, 10, 11.1), False),
    ],
)
def test_the_last_three_agree(found: list[Window], steady: bool) -> None:
    assert is_steady(found) is steady


def test_throughput_has_to_agree_too() -> None:
    """A pause between queries is in no latency."""
    found = [*windows(10, 10), *windows(10, queries=70)]
    assert not is_steady(found)


def test_windows_follow_until_they_agree_or_are_enough() -> None:
    effort = Effort(window_s=1, least=4, most=6)
    assert needs_more(windows(10, 10, 10), effort)
    assert not needs_more(windows(10, 10, 10, 10), effort)
    assert needs_more(windows(10, 20, 10, 20), effort)
    assert not needs_more(windows(10, 20, 10, 20, 10, 20), effort)


def test_more_windows_follow_for_the_percentile_that_counts_if_the_time_allows() -> None:
    """100 queries a second: for 1,000 of them ten windows, but not in 8 seconds."""
    effort = Effort(window_s=1, least=4, most=6, wanted=1000, limit_s=12)
    assert needs_more(windows(*[10] * 9), effort)
    assert not needs_more(windows(*[10] * 10), effort)
    assert not needs_more(windows(*[10] * 6), replace(effort, limit_s=8))


def test_nothing_begins_after_the_limit() -> None:
    assert not needs_more(windows(10, 20), Effort(window_s=1, limit_s=2))


def test_the_least_windows_take_the_seconds_that_were_asked_for() -> None:
    effort = effort_for(6.0)
    assert effort.window_s * effort.least == 6.0
