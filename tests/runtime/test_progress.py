"""A bar is drawn where somebody looks, when the work takes a while, and it leaves no trace."""

import io
import os
import struct
import sys

import pytest

from edgeclip.progress import ProgressBar, is_wanted, render


class Clock:
    """A clock that a test sets; time.monotonic is read through it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("edgeclip.progress.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def shown(stream: io.StringIO) -> str:
    """What a terminal would show in the end: a carriage return goes back, and later text covers earlier."""
    line: list[str] = []
    for part in stream.getvalue().split("\r"):
        line[: len(part)] = part
    return "".join(line).rstrip()


def test_nothing_is_drawn_when_nobody_looks(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressBar("texts", 10, is_shown=False, stream=stream) as bar:
        for _ in range(10):
            clock.now += 1
            bar.advance()
    assert stream.getvalue() == ""


def test_nothing_is_drawn_in_the_first_half_second(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressBar("texts", 10, is_shown=True, stream=stream) as bar:
        for _ in range(4):
            clock.now += 0.12
            bar.advance()
        assert stream.getvalue() == ""
        clock.now += 0.12
        bar.advance()
        assert shown(stream) == "texts [############............]  50% 5/10 1 s"


def test_it_is_drawn_ten_times_a_second_and_no_oftener(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressBar("texts", 1000, is_shown=True, stream=stream) as bar:
        clock.now += 10
        for _ in range(500):
            clock.now += 0.01
            bar.advance()
        assert 40 <= stream.getvalue().count("\r") <= 51


def test_a_shorter_line_covers_the_longer_one_before(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressBar("export", 1, is_shown=True, stream=stream) as bar:
        clock.now += 1
        bar.show("reading the vision graph", 10, 100)
        clock.now += 1
        bar.show("hashing", 1, 2)
        assert shown(stream) == "hashing [############............]  50% 1/2 2 s"


def test_something_else_is_said_at_once(clock: Clock) -> None:
    """What comes last before a long silence is what it is about."""
    stream = io.StringIO()
    with ProgressBar("proving", 1, is_shown=True, stream=stream) as bar:
        clock.now += 1
        bar.show("proving", 499, 500)
        clock.now += 0.001
        bar.show("timing", 0, 1)
        assert shown(stream) == "timing [........................]   0% 0/1 1 s"


@pytest.mark.parametrize("is_failing", [False, True])
def test_it_leaves_an_empty_line(clock: Clock, is_failing: bool) -> None:
    """Also after an error, whose message then stands at the beginning of the line."""
    stream = io.StringIO()
    try:
        with ProgressBar("texts", 10, is_shown=True, stream=stream) as bar:
            clock.now += 1
            bar.advance(3)
            assert shown(stream) != ""
            if is_failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert is_failing
    assert stream.getvalue().endswith("\r")
    stream.write("done")
    assert shown(stream) == "done"


def test_nothing_is_cleaned_up_that_was_not_drawn(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressBar("texts", 10, is_shown=True, stream=stream) as bar:
        bar.advance(10)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("done", "total", "elapsed_s", "line"),
    [
        (0, 7, 0.0, "images [........................]   0% 0/7 0 s"),
        (1, 3, 1.6, "images [########................]  33% 1/3 2 s"),
        (3, 3, 75.0, "images [########################] 100% 3/3 75 s"),
        (4, 3, 1.0, "images [########################] 100% 4/3 1 s"),
        (0, 0, 1.0, "images [########################] 100% 0/0 1 s"),
    ],
)
def test_a_line_has_label_bar_share_count_and_time(done: int, total: int, elapsed_s: float, line: str) -> None:
    assert render("images", done, total, elapsed_s) == line


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (47, "images [########................]  33% 1/3 2 s"),
        (46, "images [#######................]  33% 1/3 2 s"),
        (27, "images [#...]  33% 1/3 2 s"),
        (26, "images  33% 1/3 2 s"),
        (10, "images  3"),
    ],
)
def test_a_line_is_narrower_than_the_terminal(columns: int, line: str) -> None:
    assert render("images", 1, 3, 1.6, columns) == line
    assert len(line) < columns


def test_a_narrow_terminal_is_asked_for_its_width(clock: Clock) -> None:
    pty, fcntl = pytest.importorskip("pty"), pytest.importorskip("fcntl")
    termios = pytest.importorskip("termios")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    with (
        os.fdopen(master, "rb"),
        os.fdopen(slave, "w") as terminal,
        ProgressBar("images", 3, is_shown=True, stream=terminal) as bar,
    ):
        clock.now += 1
        bar.advance()
        assert os.read(master, 99) == b"\rimages [##.....]  33% 1/3 1 s"


def test_without_a_wish_a_terminal_decides() -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    with os.fdopen(master, "rb"), os.fdopen(slave, "w") as terminal:
        assert is_wanted(None, terminal)
        assert not is_wanted(False, terminal)
    assert not is_wanted(None, io.StringIO())
    assert is_wanted(True, io.StringIO())


def test_a_process_without_a_stderr_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not is_wanted(None)
    with ProgressBar("texts", 1, is_shown=is_wanted(None)) as bar:
        bar.advance()
