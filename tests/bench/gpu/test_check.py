"""The GPU check on a CPU with tiny towers: every stage leaves its JSON, also one that fails or is stopped."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeclip.manifest import Target
from edgeclip_bench.gpu import check as gpu_check
from edgeclip_bench.gpu.stages import STAGES, timed
from tests.conftest import CHECKPOINT

SCRIPT = Path(__file__).parents[3] / "bench" / "gpu_check.sh"


def check(out: Path, bundle: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """On what is there already, as quick as can be; the status, and what every stage left."""
    given = ["--checkpoint", str(CHECKPOINT), "--bundle", str(bundle), "--fp16", str(bundle)]
    quick = ["--device", "cpu", "--tiny", "--case-seconds", "0.01", "--soak-seconds", "0.5"]
    status = gpu_check.main([str(out), *given, *quick, *more])
    return status, {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def test_every_stage_leaves_what_it_found(
    bundles: dict[Target, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = check(tmp_path / "out", bundles["cuda"])
    assert status == 0, found
    assert set(found) == {"machine", *STAGES} - {"checkpoint", "export", "narrow"}  # those were given
    assert found["check"]["device"] == "cpu" and len(found["check"]["selftest"]) == 2
    assert {case["way"] for case in found["latency"]["cases"]} == {"plain"}
    assert {case["way"] for case in found["rivals"]["cases"]} == {"torch eager"}
    assert all(case["samples"] >= 10 for stage in ("latency", "rivals") for case in found[stage]["cases"])
    for tower in ("text", "vision"):
        parity = found["parity"][tower]["plain"]
        assert parity["is_finite"] and parity["largest_difference"] <= 5e-6
        assert parity["largest_difference_alone_and_in_a_batch"] <= 5e-6
    assert found["soak"]["texts"] > 0 and found["soak"]["resident_bytes_most"] > 0
    printed = capsys.readouterr().out
    assert "text 1 x 16" in printed and "parity vision" in printed and "soak resident_bytes" in printed


def test_a_stage_that_is_stopped_or_fails_does_not_stop_the_others(
    bundles: dict[Target, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in a process of its own; here the bundle's vision graph is damaged, and the rivals get no time."""
    broken = shutil.copytree(bundles["cuda"], tmp_path / "broken")
    graph = broken / "vision_model.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    short = {name: (stage, 0.05 if name == "rivals" else most) for name, (stage, most) in STAGES.items()}
    monkeypatch.setattr("edgeclip_bench.gpu.stages.STAGES", {n: short[n] for n in ("latency", "rivals")})
    status, found = check(tmp_path / "out", broken)
    assert status == 1
    vision = [case for case in found["latency"]["cases"] if case["tower"] == "vision"]
    assert vision and all("cannot load the vision graph" in case["error"] for case in vision)
    assert [case for case in found["latency"]["cases"] if case["tower"] == "text" and "p50_ms" in case]
    assert found["rivals"]["error"].startswith("stopped after")
    assert "stopped after" in capsys.readouterr().out


def test_without_what_it_makes_the_rest_is_not_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "_call", lambda command, seconds: "ended with 1")
    status = gpu_check.main([str(tmp_path / "out"), "--device", "cpu", "--tiny", "--work", str(tmp_path / "work")])
    assert status == 1
    assert [path.stem for path in sorted((tmp_path / "out").glob("*.json"))] == ["checkpoint", "machine"]
    assert "without checkpoint nothing else can be done" in capsys.readouterr().err


def test_what_is_missing_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "_NEEDED", ("numpy", "no_such_module"))
    assert gpu_check.main([str(tmp_path), "--device", "cpu"]) == 2
    assert "not installed: no_such_module" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("spent", "expected"), [(0, 60), (550, 20), (600, 0)])
def test_a_stage_gets_its_time_or_what_is_left(spent: float, expected: float) -> None:
    assert gpu_check.time_left(570, spent, 60) == expected


def test_timing_counts_inputs() -> None:
    calls: list[int] = []

    def run() -> Any:
        calls.append(1)

    found = timed(run, 4, 0.0)
    assert found["samples"] == 10 and len(calls) == 15
    assert found["inputs_per_s"] == pytest.approx(4000 / found["p50_ms"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_finds_the_packages_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", SCRIPT, "--help"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "--soak-seconds" in done.stdout
