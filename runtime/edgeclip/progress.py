"""A progress bar on stderr, shown only on a terminal.

Nothing is drawn before the work has taken half a second. A line is never wider than the terminal, because a wrapped
line cannot be overwritten.
"""

import os
import sys
import time
from types import TracebackType
from typing import Self, TextIO

_DELAY_S = 0.5
_INTERVAL_S = 0.1
_BAR_WIDTH, _LEAST_BAR_WIDTH = 24, 4


def is_wanted(progress: bool | None, stream: TextIO | None = None) -> bool:
    """Whether to show a bar: the caller's choice; for None, whether stderr is a terminal."""
    stream = sys.stderr if stream is None else stream
    return bool(stream and stream.isatty()) if progress is None else progress


class ProgressBar:
    """A bar that counts steps: `with ProgressBar("images", total) as bar: bar.advance(1)`."""

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
        """Show what is being done and how much of it is done; a new label is drawn at once."""
        now = time.monotonic()
        is_new = label != self._label and now - self._started >= _DELAY_S
        self._label, self._done, self._total = label, done, total
        if self._is_shown and (is_new or now - self._drawn_at >= _INTERVAL_S):
            self._drawn_at = now
            self._draw(render(label, done, total, now - self._started, _columns(self._stream)))

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


def render(label: str, done: int, total: int, elapsed_s: float, columns: int | None = None) -> str:
    """One line of label, bar, share, count and time; a shorter bar, no bar or a cut keep it within `columns`."""
    share = min(1.0, done / total) if total else 1.0
    figures = f"{share:4.0%} {done}/{total} {elapsed_s:.0f} s"
    room = _BAR_WIDTH if columns is None else min(_BAR_WIDTH, columns - 1 - len(f"{label} [] {figures}"))
    if room < _LEAST_BAR_WIDTH:
        return f"{label} {figures}"[: None if columns is None else columns - 1]
    filled = int(share * room)
    return f"{label} [{'#' * filled}{'.' * (room - filled)}] {figures}"


def _columns(stream: TextIO) -> int | None:
    """The width of the terminal; None if stderr is none, or does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None
