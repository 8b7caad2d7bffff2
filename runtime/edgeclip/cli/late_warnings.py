"""Warnings that wait until a verb has written what it was asked for.

With `python -W error` a warning is an exception. One about a text that was cut must not end an evaluation before its
report is written, so a verb that works for long raises its warnings last.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def late_warnings() -> Iterator[None]:
    """Hold warnings back until the block ends, then give them as the filters say: shown, ignored, or raised.

    Of several that are errors the first is raised and the others are shown, as all are where the block fails.
    """
    first: Warning | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except BaseException as error:
            failure: BaseException | None = error
        else:
            failure = None
    for one in caught:
        try:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        except Warning as warning:
            if failure is None and first is None:
                first = warning
            else:
                warnings.showwarning(warning, one.category, one.filename, one.lineno)
    if failure is not None:
        raise failure
    if first is not None:
        raise first
