"""Outputs are kept by key, the least recently used are given up, and what is kept is a copy."""

import os
import signal
import warnings

import numpy as np
import pytest

from edgeclip.engine.kept_outputs import KeptOutputs


def test_the_least_recently_used_are_given_up() -> None:
    kept = KeptOutputs(most_bytes=800)
    arrays = {name: {"features": np.full(100, index, np.float32)} for index, name in enumerate((b"a", b"b", b"c"))}
    for name in (b"a", b"b"):
        kept.keep(name, arrays[name])
    assert kept.get(b"a") is not None
    kept.keep(b"c", arrays[b"c"])
    assert kept.get(b"b") is None
    for name in (b"a", b"c"):
        found = kept.get(name)
        assert found is not None
        np.testing.assert_array_equal(found["features"], arrays[name]["features"])
    assert kept.get(None) is None


def test_what_is_kept_is_a_copy() -> None:
    """Outputs of one image are rows of a batch's, and a lane writes its buffers again."""
    kept = KeptOutputs()
    batch = np.zeros((4, 3), np.float32)
    copy = kept.keep(b"a", {"features": batch[1]})
    batch[...] = 7
    found = kept.get(b"a")
    assert found is not None and not found["features"].any() and not copy["features"].any()


def test_what_is_larger_than_all_room_is_not_kept() -> None:
    kept = KeptOutputs(most_bytes=100)
    kept.keep(b"small", {"features": np.zeros(10, np.float32)})
    large = kept.keep(b"large", {"features": np.ones(26, np.float32)})
    assert large["features"].all() and kept.get(b"large") is None and kept.get(b"small") is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_waits_for_no_lock() -> None:
    """A thread of the parent may hold the lock while another forks; the child has only that one."""
    kept = KeptOutputs()
    kept.keep(b"a", {"features": np.zeros(3, np.float32)})
    with kept._lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that others started
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if kept.get(b"a") is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert kept.get(b"a") is not None
