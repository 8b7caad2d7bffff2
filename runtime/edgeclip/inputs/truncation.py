"""What several calls of an encoder cut, as one number instead of a warning each."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgeclip.errors import TruncationWarning


@dataclass(slots=True)
class CutTexts:
    """How many texts were cut."""

    count: int = 0


@contextmanager
def counting_cut_texts() -> Iterator[CutTexts]:
    """Counts instead of TruncationWarnings, whole after the block; other warnings are given on, also if it fails."""
    cut, caught = CutTexts(), list[warnings.WarningMessage]()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TruncationWarning)
            yield cut
    finally:
        for warning in caught:
            if isinstance(warning.message, TruncationWarning):
                cut.count += warning.message.cut
            else:
                warnings.warn(warning.message, stacklevel=3)
