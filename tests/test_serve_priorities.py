"""A thread is lowered alone, and what it starts is lowered with it."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgeclip.serve.priorities import lower_this_thread

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's own on Linux only")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform == "linux" and niceness() >= 19, reason="there is nothing lower")
def test_a_thread_and_its_own_are_lowered_and_no_other() -> None:
    before = niceness()

    def lowered() -> tuple[bool, int, int]:
        is_lowered = lower_this_thread(3)
        with ThreadPoolExecutor(1) as own:
            return is_lowered, niceness(), own.submit(niceness).result()

    with ThreadPoolExecutor(1) as pool:
        is_lowered, itself, its_own = pool.submit(lowered).result()
    assert is_lowered
    assert itself == its_own == min(19, before + 3)
    assert niceness() == before


def test_zero_does_nothing() -> None:
    before = niceness()
    assert not lower_this_thread(0)
    assert niceness() == before
