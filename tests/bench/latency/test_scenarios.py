"""MLPerf's scenarios on a clock that nobody waits for, held against queueing theory, and on the real one."""

import time

import numpy as np
import pytest

from edgeclip_bench.latency.scenarios import (
    SERVER_TOLERANCE,
    WARM_UP_QUERIES,
    VirtualClock,
    WallClock,
    allowed_over,
    find_server_rate,
    highest_rate,
    poisson_arrivals,
    serve,
    simulated_rate,
    stream,
)
from edgeclip_bench.measure.stability import Effort

SERVICE_S = 0.010
# The mean wait of 200,000 queries of an M/D/1 queue at 80 % load differed by 1.4 % from theory's.
QUEUE_WITHIN = 0.05


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_waits_are_those_of_a_queue_with_fixed_service(load: float) -> None:
    """M/D/1 by Pollaczek and Khinchine: a mean wait of load / (2 (1 - load)) services."""
    clock = VirtualClock()
    found = serve(lambda: clock.spend(SERVICE_S), load / SERVICE_S, 1e9, 200_000, clock, seed=3)
    wanted_ms = load / (2 * (1 - load)) * SERVICE_S * 1000
    assert found.waits_ms.mean() == pytest.approx(wanted_ms, rel=QUEUE_WITHIN)
    np.testing.assert_allclose(found.latencies_ms, found.waits_ms + SERVICE_S * 1000, rtol=0, atol=1e-4)


def test_latency_counts_from_the_scheduled_moment() -> None:
    """One query of a second makes those behind it wait, though each is answered in a millisecond."""
    clock = VirtualClock()
    times = iter([1.0, *[0.001] * 99])
    found = serve(lambda: clock.spend(next(times)), 100.0, 1e9, 100, clock)
    arrivals = poisson_arrivals(100.0, 100, 0)
    assert found.latencies_ms[1] == pytest.approx((arrivals[0] + 1.001 - arrivals[1]) * 1000)
    assert (found.latencies_ms[1:40] > 500).all()


def test_arrivals_are_poisson() -> None:
    """Gaps with the mean of the rate and as much spread as mean; the same for the same seed."""
    gaps = np.diff(poisson_arrivals(50.0, 100_000, seed=1))
    assert gaps.mean() == pytest.approx(0.02, rel=0.02)
    assert gaps.std() == pytest.approx(0.02, rel=0.02)
    np.testing.assert_array_equal(poisson_arrivals(50.0, 10, seed=1), poisson_arrivals(50.0, 10, seed=1))


def test_a_probe_ends_when_the_bound_is_out_of_reach() -> None:
    """Of 1,000 queries 10 may be over; with the eleventh it is said."""
    assert allowed_over(1000) == 10
    clock = VirtualClock()
    found = serve(lambda: clock.spend(0.02), 1.0, 10.0, 1000, clock)
    assert not found.is_kept
    assert len(found.latencies_ms) == 11


@pytest.mark.parametrize("share", [0.95, 0.6, 0.2, 0.03])
@pytest.mark.parametrize("guess", [0.99, 0.5, 0.04])
def test_bisection_finds_the_edge(share: float, guess: float) -> None:
    """Of a server that keeps the bound below an edge and nowhere above, wherever it begins."""
    edge, capacity, tried = share * 100, 100.0, []

    def probe(rate: float) -> bool:
        tried.append(rate)
        return rate <= edge

    low, high = highest_rate(probe, guess * capacity, capacity)
    assert low <= edge < high
    assert high - low <= SERVER_TOLERANCE * high
    assert len(tried) <= 25 and max(tried) < capacity


def test_a_server_that_never_keeps_the_bound_has_no_rate() -> None:
    assert highest_rate(lambda rate: False, 50.0, 100.0)[0] == 0.0


def test_the_rate_is_found_and_is_the_simulated_one() -> None:
    """Fixed service of 10 ms, p99 within 40 ms; what is measured on the same clock is what was foretold."""
    clock = VirtualClock()
    run = find_server_rate(lambda: clock.spend(SERVICE_S), [SERVICE_S] * 5, 40.0, clock)
    assert run.best is not None and run.best.is_kept
    assert np.sort(run.best.latencies_ms)[989] <= 40.0
    assert run.rate_per_s == pytest.approx(simulated_rate([SERVICE_S], 40.0, count=1000), rel=2 * SERVER_TOLERANCE)
    assert any(not probe.is_kept for probe in run.probes)
    assert 0.5 / SERVICE_S < run.rate_per_s < run.broken_per_s <= 1 / SERVICE_S


def test_a_bound_below_the_service_time_keeps_no_rate() -> None:
    clock = VirtualClock()
    run = find_server_rate(lambda: clock.spend(SERVICE_S), [SERVICE_S], 9.0, clock)
    assert (run.rate_per_s, run.best) == (0.0, None)
    assert simulated_rate([SERVICE_S], 9.0, count=1000) == 0.0


def test_a_stream_is_windows_of_queries_without_the_warm_up() -> None:
    clock = VirtualClock()
    asked = []

    def query() -> None:
        asked.append(clock.now())
        clock.spend(0.5 if len(asked) <= WARM_UP_QUERIES else SERVICE_S)

    found = stream(query, Effort(window_s=0.2, least=4, most=8), clock, per_query=8)
    assert found.warm_up == WARM_UP_QUERIES
    np.testing.assert_allclose(found.latencies_ms, SERVICE_S * 1000)
    assert len(found.windows) == 4 and found.is_steady
    assert len(found.latencies_ms) * 8 == sum(window.samples for window in found.windows)
    assert found.per_second == pytest.approx(8 / SERVICE_S)


def test_a_slow_query_still_fills_its_windows() -> None:
    clock = VirtualClock()
    found = stream(lambda: clock.spend(5.0), Effort(window_s=0.1, least=4, most=8, queries=3), clock)
    assert [window.queries for window in found.windows] == [3, 3, 3, 3]


def test_what_does_not_settle_is_told() -> None:
    clock = VirtualClock()
    times = iter([0.01 * 1.3**turn for turn in range(1000)])
    found = stream(lambda: clock.spend(next(times)), Effort(window_s=0, least=4, most=6, queries=2), clock)
    assert len(found.windows) == 6
    assert not found.is_steady


def test_the_wall_clock_waits_until_the_moment() -> None:
    clock = WallClock()
    moment = clock.now() + 0.02
    clock.sleep_until(moment)
    assert clock.now() >= moment
    clock.sleep_until(moment - 1)
    assert abs(clock.now() - time.perf_counter()) < 1
