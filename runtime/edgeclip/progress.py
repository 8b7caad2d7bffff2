"""A progress bar on stderr for work that takes a while, and none where nobody looks.

Nothing is drawn before the work has taken half a second, nor when stderr is no terminal.
"""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

_DELAY_S = 0.5
_INTERVAL_S = 0.1
_BAR_WIDTH = 24


def is_wanted(progress: bool | None, stream: TextIO | None = None) -> bool:
    """What was asked for; None means when stderr is a terminal."""
    stream = sys.stderr if stream is None else stream
    return bool(stream and stream.isatty()) if progress is None else progress


class ProgressBar:
    """`with ProgressBar("images", total) as bar: bar.advance(1)`."""

    def __init__(self, label: str, total: int, *, is_shown: bool, stream: TextIO | None = None) -> None:
        self._label, self._total, self._done = label, total, 0
        self._is_shown = is_shown
        self._stream = sys.stderr if stream is None else stream
        self._started = time.monotonic()
        self._drawn_at = self._started + _DELAY_S - _INTERVAL_S
        self._drawn_width = 0

    def advance(self, steps: int = 1) -> None:
        """Count steps as done."""
        self.show(self._label, self._done + steps, self._total)

    def show(self, label: str, done: int, total: int) -> None:
        """Say what is being done and how much of it is done."""
        self._label, self._done, self._total = label, done, total
        now = time.monotonic()
        if self._is_shown and now - self._drawn_at >= _INTERVAL_S:
            self._drawn_at = now
            self._draw(render(label, done, total, now - self._started))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn_width:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()

    def _draw(self, line: str) -> None:
        self._stream.write("\r" + line.ljust(self._drawn_width))
        self._stream.flush()
        self._drawn_width = len(line)


def render(label: str, done: int, total: int, elapsed_s: float) -> str:
    """One line: label, bar, share, count, time so far."""
    share = min(1.0, done / total) if total else 1.0
    filled = int(share * _BAR_WIDTH)
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    return f"{label} [{bar}] {share:4.0%} {done}/{total} {elapsed_s:.0f} s"
