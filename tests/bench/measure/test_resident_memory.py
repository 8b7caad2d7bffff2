"""Resident memory: the peak remembers what is no longer held, until it is set back."""

import sys

import numpy as np
import pytest

from edgeclip_bench.measure.resident_memory import gpu_bytes, peak_bytes, reset_peak, resident_bytes

HELD = 100_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not let the peak be set back")
def test_the_peak_is_remembered_until_it_is_set_back() -> None:
    reset_peak()
    before = peak_bytes()
    held = np.ones(HELD, np.uint8)
    del held
    assert peak_bytes() - before > 0.8 * HELD
    assert resident_bytes() < before + 0.5 * HELD
    reset_peak()
    assert peak_bytes() < before + 0.5 * HELD


def test_a_gpu_that_is_not_there_holds_nothing() -> None:
    assert gpu_bytes(63) is None
