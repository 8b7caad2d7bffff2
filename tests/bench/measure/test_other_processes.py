"""What others take of the processors is told from what this process takes."""

import os
import subprocess
import sys
import time

import pytest

from edgeclip_bench.measure.other_processes import Spent, others_share, read_spent


def spent(clock_s: float, busy_s: float, own_s: float) -> Spent:
    return Spent(clock_s=clock_s, busy_s=busy_s, own_s=own_s)


@pytest.mark.parametrize(
    ("after", "share"),
    [
        (spent(12, 104, 9), 0.0),  # all of it was this process
        (spent(12, 104, 7), 0.5),
        (spent(12, 104, 5), 1.0),
        (spent(12, 101, 7), 0.0),  # clocks that are read one after another
        (spent(10, 100, 5), 0.0),
    ],
)
def test_the_share_is_of_all_processors(after: Spent, share: float) -> None:
    assert others_share(spent(10, 100, 5), after, 2) == share


def test_a_neighbour_is_seen_and_own_work_is_not() -> None:
    """Another process that spins for half a second, while this one sleeps."""
    before = read_spent()
    ends = time.perf_counter() + 0.5
    while time.perf_counter() < ends:
        pass
    between = read_spent()
    assert between.own_s - before.own_s > 0
    spin = "import time; e = time.process_time() + 0.5\nwhile time.process_time() < e: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    after = read_spent()
    count = os.cpu_count() or 1
    others_s = others_share(between, after, count) * count * (after.clock_s - between.clock_s)
    assert others_s > 0.4
