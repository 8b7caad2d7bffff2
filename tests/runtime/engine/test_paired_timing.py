"""Functions take turns in going first, the first call of each turn and the warm-up do not count, and time ends it."""

import time
from collections.abc import Callable

import pytest

from edgeclip.engine import paired_timing
from edgeclip.engine.paired_timing import take_turns


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_timing, "PAUSE_S", 0.0)


def noting(calls: list[str], name: str) -> Callable[[], object]:
    return lambda: calls.append(name)


def test_another_one_begins_each_round() -> None:
    calls: list[str] = []
    found = take_turns({name: noting(calls, name) for name in "abc"}, 2, warm_up=1)
    assert "".join(calls) == "aabbcc" + "bbccaa" + "ccaabb"
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2, "c": 2}


def test_work_of_seconds_is_called_once() -> None:
    calls: list[str] = []
    rounds: list[int] = []
    works = {name: noting(calls, name) for name in "ab"}
    take_turns(works, 2, is_alone=False, on_round=lambda: rounds.append(len(calls)))
    assert "".join(calls) == "ab" + "ba"
    assert rounds == [2, 4]


def test_no_round_begins_when_the_time_is_over() -> None:
    found = take_turns({"a": lambda: time.sleep(0.002)}, 9, seconds=0, least=3, warm_up=1)
    assert len(found["a"]) == 3 and (found["a"] >= 0.002).all()
