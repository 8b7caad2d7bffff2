"""Count the texts that several calls of an encoder cut, instead of a warning for each call."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgeclip.errors import TruncationWarning


@dataclass(slots=True)
class CutTexts:
    """The number of texts that were cut."""

    count: int = 0


@contextmanager
def counting_cut_texts() -> Iterator[CutTexts]:
    """Count cut texts instead of giving TruncationWarnings; the count is complete after the block.

    Other warnings are passed on, also if the block fails.
    """
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
