"""A fixture for tests whose times nobody reads; a module imports it, and it is used by all tests there."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_pauses(bundle: Path) -> Iterator[None]:
    """Nobody reads the times that are measured here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeclip.engine.paired_timing.PAUSE_S", 0.0)
        gc.freeze()  # each candidate is cleared away, and what the tests have loaded need not be looked through
        yield
        gc.unfreeze()
