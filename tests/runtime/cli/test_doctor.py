"""`edgeclip doctor` says what runs here, in words and in JSON, and fails only where nothing does."""

import dataclasses
import json

import pytest

from edgeclip.cli import doctor
from edgeclip.cli.doctor import format_report
from edgeclip.doctor.diagnosis import Provider, diagnose
from edgeclip.doctor.environment import read_facts
from edgeclip.engine.advice import Advice, advise_here
from edgeclip.host.installation import install_command
from tests.runtime.doctor.test_diagnosis import SOUND
from tests.scenes.command import Captured, run


def test_here(capsys: Captured) -> None:
    status, out, err = run("doctor", "--json", capsys=capsys)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert {"name": "CPUExecutionProvider", "error": None} in found["providers"]
    assert 1 <= found["processor"]["usable"] <= found["processor"]["cores"]
    assert found["onnxruntime"] in found["wheels"].values()
    assert found["advice"] == dataclasses.asdict(advise_here())


def test_where_nothing_runs(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """The report is there, and the way out in the one line."""
    broken = Provider(name="CPUExecutionProvider", error="it crashed with signal 4")
    facts = dataclasses.replace(SOUND, providers=(broken,))
    monkeypatch.setattr(doctor, "read_facts", lambda: facts)
    status, out, err = run("doctor", capsys=capsys)
    assert status == 1
    assert "CPUExecutionProvider  it crashed with signal 4" in out
    assert err.startswith("edgeclip: nothing runs here: onnxruntime does not run on the CPU")
    assert f"`{install_command('cpu', '--force-reinstall')}`" in err and err.count("\n") == 1


def test_words() -> None:
    sound = format_report(SOUND, diagnose(SOUND))
    assert sound.endswith("nothing to mend")
    ill = dataclasses.replace(SOUND, pillow=None, memory_bytes=8 * 10**9, memory_limit_bytes=2 * 10**9)
    told = format_report(ill, diagnose(ill))
    assert "8 GB, limited to 2 GB" in told
    assert told.endswith(f"can be decoded\n    {install_command('images')}")
    advice = Advice(bundle="int8", options="--to int8", why="it has wings", int4="no int4")
    lines = format_report(dataclasses.replace(SOUND, advice=advice), ()).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("bundle to run "))
    assert lines[first].endswith(" int8 (edgeclip quantize BUNDLE OUT --to int8)")
    assert [line.strip() for line in lines[first + 1 : first + 3]] == ["it has wings", "no int4"]


def test_facts_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    facts = read_facts()
    assert facts.onnxruntime is None and facts.providers == () and facts.import_error
    assert facts.advice is None
