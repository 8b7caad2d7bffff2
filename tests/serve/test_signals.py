"""Ctrl-C and SIGTERM, once or several times, early or late: none is lost, and none prints a traceback."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeclip.serve.run import _Signals
from tests.scenes.serving import until_ready

ENDS_WITHIN_S = 30
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def started(
    bundle: Path, program: tuple[str, ...] = ("-m", "edgeclip")
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service in a process of its own, from the line on that it serves, and its address."""
    command = [sys.executable, *program, "serve", str(bundle), "--port", "0", "--shutdown-timeout-s", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "serving on http://127.0.0.1:" in line
            yield process, line.partition("serving on ")[2].partition(",")[0]
        finally:
            process.kill()


def ending(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    rest = process.stderr.read()
    process.wait(ENDS_WITHIN_S)
    return rest


def test_a_second_ctrl_c_waits_for_no_client_and_prints_no_traceback(bundle: Path) -> None:
    """The first waits for what was accepted: here a body that does not come."""
    with started(bundle) as (process, url):
        until_ready(url)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            time.sleep(1)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            rest = ending(process)
    assert process.returncode == 0
    assert "Traceback" not in rest and "Error" not in rest and rest.rstrip().endswith("INFO ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_as_soon_as_it_serves_is_not_lost(bundle: Path, number: signal.Signals) -> None:
    """Between the line and the server's own handlers there is a while."""
    with started(bundle) as (process, _):
        process.send_signal(number)
        rest = ending(process)
    assert process.returncode in (0, 130) and "Traceback" not in rest


def test_a_signal_ends_the_start_and_handlers_are_as_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), _Signals():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught, _Signals():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 0
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_without_what_only_unix_has_it_serves_and_ends(bundle: Path) -> None:
    """No uvloop, no limit of open files, no niceness, no /proc."""
    program = "import tests.scenes.other_system, sys; from edgeclip.__main__ import main; sys.exit(main())"
    with started(bundle, ("-c", program)) as (process, url):
        until_ready(url)
        process.send_signal(signal.SIGTERM)
        rest = ending(process)
    assert process.returncode == 0 and "Traceback" not in rest and rest.rstrip().endswith("INFO ended")


def test_ctrl_break_ends_a_service_on_windows() -> None:
    """There SIGTERM ends a process at once, and Ctrl-Break is what a parent can send."""
    program = (
        "import tests.scenes.other_system, signal; from edgeclip.serve.run import _Signals\n"
        "with _Signals(): signal.raise_signal(signal.SIGBREAK); print('not reached')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
