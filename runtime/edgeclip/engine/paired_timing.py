"""Time several functions in turns, so that other work of the machine meets all of them alike.

The threads of a session spin for a while after its run and take the processor from the next one: without a pause a
text of 16 tokens took 73 ms beside another session on two cores, with it 45 ms. So before each measured call there is
a pause, and a call that does not count.
"""

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

PAUSE_S = 0.02

Work = Callable[[], object]


def time_alone(work: Work) -> float:
    """The seconds of one call, after a pause and a call that does not count."""
    time.sleep(PAUSE_S)
    work()
    return _seconds(work)


def take_turns(
    works: Mapping[str, Work],
    rounds: int,
    *,
    seconds: float = math.inf,
    least: int = 1,
    warm_up: int = 0,
    is_alone: bool = True,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[np.float64]]:
    """The seconds of each function by name, one value for each round; values of one place belong together.

    The functions take turns in going first. After `least` rounds no new one begins when `seconds` have passed. The
    first `warm_up` rounds do not count. `is_alone` times by `time_alone`; without it a function is called once, which
    is for work of seconds that no pause changes. `on_round` is called after every round.
    """
    names = list(works)
    measure = time_alone if is_alone else _seconds
    found: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    done = 0
    while done < rounds + warm_up and (done < least + warm_up or time.perf_counter() < end):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(measure(works[name]))
        done += 1
        on_round()
    return {name: np.array(times[warm_up:]) for name, times in found.items()}


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
