"""Running the command line: in this process, to be quick, or in one of its own, to be sure."""

import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from edgeclip.cli import main

Captured = pytest.CaptureFixture[str]

NEEDS_SHELL = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")


def run(*arguments: object, capsys: Captured) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `edgeclip ARGUMENTS`."""
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def bench(case: str, *arguments: object) -> int:
    """The exit status of `edgeclip bench CASE ARGUMENTS`."""
    return main(["bench", case, *map(str, arguments)])


def refusal(*arguments: object, capsys: Captured) -> str:
    """The one line that a run fails with: status 1, nothing on stdout, no traceback."""
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, out) == (1, "")
    assert err.startswith("edgeclip: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    return err.removeprefix("edgeclip: ").rstrip("\n")


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m edgeclip ARGUMENTS`."""
    command = [sys.executable, "-m", "edgeclip", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, **options)


def run_shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A line of shell in which "$1" is python, buffering as it does by default, and "$2" and on the arguments."""
    command = ["sh", "-c", line, "sh", sys.executable, *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, env=env)
