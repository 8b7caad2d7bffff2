"""`edgeclip bench CASE`: every case has help, refuses wrong usage in one line, and is listed by `edgeclip bench`."""

import re
import subprocess
import sys

import pytest

from edgeclip_bench.cases import CASES
from tests.scenes.command import Captured, bench, run_process


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_help(case: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        bench(case, "--help")
    assert caught.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith(f"usage: edgeclip bench {case} ") and CASES[case].help in words


@pytest.mark.parametrize("case", CASES)
def test_wrong_usage_is_status_2(case: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        bench(case)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"edgeclip bench {case}: .+; `edgeclip bench {case} --help` shows the usage\n", err)


def test_the_help_of_bench_lists_them() -> None:
    """As its end, a line for each; in a process of its own, which loads none of their modules."""
    shown = run_process("bench", "--help").stdout
    for name, case in CASES.items():
        assert re.search(rf"^  {name} +{re.escape(case.help)}$", shown, re.MULTILINE)


def test_help_loads_no_module_of_a_verb() -> None:
    program = """if True:
        import contextlib, sys
        from edgeclip.cli import VERBS, main
        with contextlib.suppress(SystemExit):
            main(["--help"])
        verbs = {f"edgeclip.cli.{name.replace('-', '_')}" for name in VERBS}
        print(*verbs & set(sys.modules), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "quantize" in done.stdout and done.stderr.split() == []
