"""MLPerf Inference's scenarios, for any function that answers a query.

    single-stream   the next query when the last is done; p90 latency counts
    multi-stream    queries of eight samples, the next when the last is done; p99 latency counts
    server          Poisson arrivals; the highest rate whose p99 latency keeps a bound counts
    offline         every sample at once; samples a second count

In the server scenario a query's latency begins at its scheduled moment, not when the worker is free, so the wait
behind other queries is included. Queries are answered in order by one worker, which has all threads: an M/G/1 queue.
The same code runs on a virtual clock: that finds the first rate to try from measured service times, and lets tests
compare the accounting with queueing theory.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip_bench.measure.stability import Effort, Window, is_steady, needs_more

Scenario = Literal["single-stream", "multi-stream", "server", "offline"]
SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "server", "offline")
MULTI_STREAM_SAMPLES = 8
# The percentile that counts in a scenario; in the others it is a rate.
COUNTS: dict[Scenario, str] = {"single-stream": "p90", "multi-stream": "p99"}
# The queries that p99 of a claimed rate needs (edgeclip_bench.measure.percentiles).
SERVER_QUERIES = 1000
SERVER_TOLERANCE = 0.05
# What is not counted before a case: queries until both are reached.
WARM_UP_QUERIES, WARM_UP_S = 2, 0.3
WARM_UP_RULE = f"before each case at least {WARM_UP_QUERIES} queries and {WARM_UP_S} s that do not count"

# With one query more or less a second than this share of what one worker can do, a queue has no bound or no load.
_IDLE_SHARE = 0.02
_STEP = 1.25

Query = Callable[[], object]


class WallClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, at once where it is past; spin through the last millisecond, where sleep is late."""
        while (left := moment - time.perf_counter()) > 0:
            if left > 0.001:
                time.sleep(left - 0.001)


class VirtualClock(WallClock):
    """A clock that stands until it is moved, so that a simulated hour takes no time."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Seconds since it was made."""
        return self._now

    def sleep_until(self, moment: float) -> None:
        """Jump ahead."""
        self._now = max(self._now, moment)

    def spend(self, seconds: float) -> None:
        """Move the clock on, as a simulated query does."""
        self._now += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Queries one after another: each one's latency, in order, and the windows they fell into."""

    latencies_ms: NDArray[np.float64]
    windows: tuple[Window, ...]
    is_steady: bool
    warm_up: int

    @property
    def per_second(self) -> float:
        """Samples a second over all windows."""
        return sum(window.samples for window in self.windows) / sum(window.seconds for window in self.windows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One rate that was tried: latencies from the scheduled moment, and waits; fewer than planned if broken off."""

    rate_per_s: float
    planned: int
    latencies_ms: NDArray[np.float64]
    waits_ms: NDArray[np.float64]
    is_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRun:
    """The highest rate that kept the bound (0 where none did), the lowest that did not, and every probe in order."""

    rate_per_s: float
    broken_per_s: float
    bound_ms: float
    probes: tuple[Probe, ...]
    warm_up: int

    @property
    def best(self) -> Probe | None:
        """The probe of the highest rate that kept the bound."""
        return next((probe for probe in self.probes if probe.is_kept and probe.rate_per_s == self.rate_per_s), None)


def warm_up(query: Query, clock: WallClock) -> int:
    """Run queries that do not count; return how many there were."""
    started, done = clock.now(), 0
    while done < WARM_UP_QUERIES or clock.now() - started < WARM_UP_S:
        query()
        done += 1
    return done


def stream(
    query: Query, effort: Effort, clock: WallClock, *, per_query: int = 1, warm: Query | None = None
) -> Stream:
    """Send the next query when the last is done, in windows until they agree.

    `per_query` is the number of its samples. `warm` is asked before the measurement, where it is another query.
    """
    warmed = warm_up(warm or query, clock)
    latencies: list[float] = []
    windows: list[Window] = []
    while needs_more(windows, effort):
        began, first = clock.now(), len(latencies)
        moment = began
        while len(latencies) - first < effort.queries or moment - began < effort.window_s:
            query()
            now = clock.now()
            latencies.append((now - moment) * 1000)
            moment = now
        done = latencies[first:]
        windows.append(
            Window(
                queries=len(done),
                samples=len(done) * per_query,
                seconds=moment - began,
                median_ms=float(np.median(done)),
            )
        )
    return Stream(
        latencies_ms=np.array(latencies), windows=tuple(windows), is_steady=is_steady(windows), warm_up=warmed
    )


def poisson_arrivals(rate_per_s: float, count: int, seed: int) -> NDArray[np.float64]:
    """The scheduled moments of `count` queries, in seconds from the start."""
    moments: NDArray[np.float64] = np.random.default_rng(seed).exponential(1 / rate_per_s, count).cumsum()
    return moments


def allowed_over(count: int) -> int:
    """The number of `count` latencies that may be over a bound that p99 keeps."""
    return count // 100


def serve(query: Query, rate_per_s: float, bound_ms: float, count: int, clock: WallClock, seed: int = 0) -> Probe:
    """Answer `count` queries that arrive at Poisson moments, one after another, until the bound is out of reach."""
    latencies: list[float] = []
    waits: list[float] = []
    over = 0
    start = clock.now()
    for moment in poisson_arrivals(rate_per_s, count, seed):
        scheduled = start + float(moment)
        clock.sleep_until(scheduled)
        waits.append((clock.now() - scheduled) * 1000)
        query()
        latencies.append((clock.now() - scheduled) * 1000)
        over += latencies[-1] > bound_ms
        if over > allowed_over(count):
            break
    return Probe(
        rate_per_s=rate_per_s,
        planned=count,
        latencies_ms=np.array(latencies),
        waits_ms=np.array(waits),
        is_kept=over <= allowed_over(count),
    )


def highest_rate(
    probe: Callable[[float], bool], guess: float, capacity: float, tolerance: float = SERVER_TOLERANCE
) -> tuple[float, float]:
    """The highest rate for which `probe` is true, within `tolerance`, and the lowest for which it is false.

    Goes from `guess` in steps until one rate of either kind is found, then halves the distance. `capacity`, the rate
    at which a queue has no end, counts as false. The highest is 0 when even nearly idle is false.
    """
    low, high = 0.0, capacity
    rate = min(guess, capacity * (1 - tolerance))
    while high - low > tolerance * high:
        if probe(rate):
            low = rate
            rate = min(rate * _STEP, (low + high) / 2) if high == capacity else (low + high) / 2
        else:
            high = rate
            rate = (low + high) / 2 if low else rate / _STEP
            if rate < _IDLE_SHARE * capacity:
                return 0.0, high
    return low, high


def find_server_rate(
    query: Query,
    service_s: Sequence[float],
    bound_ms: float,
    clock: WallClock,
    *,
    count: int = SERVER_QUERIES,
    seed: int = 0,
) -> ServerRun:
    """The highest Poisson rate whose p99 keeps the bound; `service_s` are measured times of lone queries."""
    capacity = 1 / float(np.mean(service_s))
    guess = simulated_rate(service_s, bound_ms, count=count, seed=seed) or capacity / 2
    probes: list[Probe] = []
    warmed = warm_up(query, clock)

    def kept(rate: float) -> bool:
        probes.append(serve(query, rate, bound_ms, count, clock, seed))
        return probes[-1].is_kept

    low, high = highest_rate(kept, guess, capacity)
    return ServerRun(rate_per_s=low, broken_per_s=high, bound_ms=bound_ms, probes=tuple(probes), warm_up=warmed)


def simulated_rate(service_s: Sequence[float], bound_ms: float, *, count: int, seed: int = 0) -> float:
    """What `find_server_rate` would find if queries took `service_s` in turn; 0 where no rate keeps the bound."""
    capacity = 1 / float(np.mean(service_s))

    def kept(rate: float) -> bool:
        clock = VirtualClock()
        turn = iter(range(count))
        times = len(service_s)
        return serve(lambda: clock.spend(service_s[next(turn) % times]), rate, bound_ms, count, clock, seed).is_kept

    return highest_rate(kept, capacity / 2, capacity, SERVER_TOLERANCE / 5)[0]
