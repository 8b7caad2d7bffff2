"""Ctrl-C ends a command with one line at any moment, also where a KeyboardInterrupt would be swallowed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

INTERRUPTED = (130, "edgeclip: interrupted\n")

# Runs the command line, and interrupts it when the module named first is looked for.
COMMAND = """if True:
    import importlib.abc, os, runpy, signal, sys

    class Interrupting(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == wanted:
                sys.meta_path.remove(self)
                os.kill(os.getpid(), signal.SIGINT)

    wanted = sys.argv.pop(1)
    sys.meta_path.insert(0, Interrupting())
    runpy.run_module("edgeclip", run_name="__main__", alter_sys=True)
"""


def run(program: str, *arguments: object, wait: bool = False) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a program; with `wait` its stdin stays open."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        if not wait:
            process.stdin.close()
        try:
            status = process.wait(60)
        finally:
            process.kill()
        return status, process.stdout.read(), process.stderr.read()


@pytest.mark.parametrize(
    "module",
    ["edgeclip.cli", "argparse", "edgeclip.cli.embed", "numpy", "numpy._core.multiarray", "edgeclip.encoder"],
)
def test_while_a_module_is_imported(bundle: Path, module: str) -> None:
    """numpy's extension turns it into an ImportError, and prints a traceback."""
    status, out, err = run(COMMAND, module, "embed", bundle, "--texts", "-", wait=True)
    assert (status, err, out) == (*INTERRUPTED, "")


def guarded(line: str) -> tuple[int, str, str]:
    return run(
        f"""if True:
        import os, signal, sys, time
        from edgeclip.host.interrupts import guard_interrupts

        class Dying:
            def __del__(self):
                signal.raise_signal(signal.SIGINT)

        guard_interrupts()
        try:
            {line}
            time.sleep(30)
            print("slept")
        except KeyboardInterrupt:
            print("interrupted")
        """
    )


def test_where_python_drops_exceptions() -> None:
    assert guarded("Dying()") == (0, "interrupted\n", "")


def test_an_exception_that_is_dropped_for_another_reason_is_still_told() -> None:
    status, out, err = guarded("Dying.__del__ = lambda self: 1 / 0; Dying(); raise KeyboardInterrupt")
    assert (status, out) == (0, "interrupted\n")
    assert "ZeroDivisionError" in err


def test_elsewhere_at_once() -> None:
    assert guarded("signal.raise_signal(signal.SIGINT); time.sleep(30); os._exit(1)") == (0, "interrupted\n", "")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As in the background of a shell script."""
    program = """if True:
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from edgeclip.__main__ import main
        status = main()
        signal.raise_signal(signal.SIGINT)
        print(status)
    """
    status, out, err = run(program, "inspect", "nowhere")
    assert (status, out) == (0, "1\n") and "no such bundle" in err
