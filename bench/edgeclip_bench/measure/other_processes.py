"""Measure how much of the processors other processes took during a measurement.

Cases are measured one after another, so another process that starts in between makes one look slower than the next.
On a quiet machine the full-size int8 tower on two cores encoded 0.777 images a second one by one and 0.770 offline
(bench/results/bench_int8.json). With another process on one core both fell below 0.3, and the one scenario that met
it looked half as fast. So each case's result holds what others took.
"""

import time
from dataclasses import dataclass

import psutil

# Above this share, a figure says as much about the other processes as about the case.
MUCH = 0.1
RULE = "others: the share of all processors that other processes took while the case was measured"
# psutil counts a guest's time as its host's user time already.
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal", "interrupt", "dpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds since some fixed moment: of the clock, of all processors at work, and of this process on them."""

    clock_s: float
    busy_s: float
    own_s: float


def read_spent() -> Spent:
    """The present values."""
    system, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return Spent(
        clock_s=time.perf_counter(),
        busy_s=sum(getattr(system, name, 0.0) for name in _BUSY),
        own_s=own.user + own.system,
    )


def others_share(before: Spent, after: Spent, processors: int) -> float:
    """The share of `processors` that worked for other processes between two moments: 0 to 1."""
    others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    whole = (after.clock_s - before.clock_s) * processors
    return min(1.0, max(0.0, others / whole)) if whole > 0 else 0.0
