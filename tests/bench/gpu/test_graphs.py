"""The GPU's checks on a CPU with tiny towers: every figure is left as it comes, an error where one fails."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeclip.manifest import Target
from edgeclip_bench.gpu.graphs import CASES, timed
from tests.conftest import CHECKPOINT
from tests.scenes.command import Captured, bench
from tests.scenes.damage import flip_byte

SCRIPT = Path(__file__).parents[3] / "bench" / "gpu_check.sh"
# The same arithmetic on the same processor. Measured: 2e-7.
SAME = 5e-6


def measured(out: Path, bundle: Path) -> tuple[int, dict[str, Any]]:
    """The status, and the document, of a bundle beside itself, as quick as can be."""
    quick = ("--device", "cpu", "--seconds", 0.01, "--no-compile")
    status = bench("gpu-graphs", CHECKPOINT, bundle, bundle, *quick, "--out", out)
    return status, json.loads(out.read_text(encoding="utf-8"))


def test_every_case_and_way_is_measured(bundles: dict[Target, Path], tmp_path: Path, capsys: Captured) -> None:
    status, found = measured(tmp_path / "graphs.json", bundles["cuda"])
    assert status == 0, found
    for way in ("plain", "torch eager"):
        shapes = [(one["graph"], one["batch"], one["tokens"] or 0) for one in found["cases"] if one["way"] == way]
        assert sorted(shapes) == sorted(CASES)
    assert all(case["samples"] >= 10 for case in found["cases"])
    for graph in ("text", "vision"):
        parity = found["parity"][graph]["plain"]
        assert parity["is_finite"] and parity["largest_difference"] <= SAME
        assert parity["largest_difference_alone_and_in_a_batch"] <= SAME
    printed = capsys.readouterr().out
    assert "text 1 x 16" in printed and "parity vision" in printed


def test_an_error_stands_where_its_figure_would(bundles: dict[Target, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(bundles["cuda"], tmp_path / "broken")
    graph = broken / "vision.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    quick = ("--device", "cpu", "--seconds", 0.01, "--no-compile", "--out", tmp_path / "graphs.json")
    assert bench("gpu-graphs", CHECKPOINT, bundles["cuda"], broken, *quick) == 1
    found = json.loads((tmp_path / "graphs.json").read_text(encoding="utf-8"))
    vision = [case for case in found["cases"] if (case["graph"], case["way"]) == ("vision", "plain")]
    assert vision and all("cannot load the vision graph" in case["error"] for case in vision)
    assert "cannot load the vision graph" in found["parity"]["vision"]["plain"]["error"]
    assert all("p50_ms" in case for case in found["cases"] if case["graph"] == "text")


def test_timing_counts_inputs() -> None:
    calls: list[int] = []
    found = timed(lambda: calls.append(1), 4, 0.0)
    assert found["samples"] == 10 and len(calls) == 15
    assert found["inputs_per_s"] == pytest.approx(4000 / found["p50_ms"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_runs_every_step_from_anywhere(bundles: dict[Target, Path], tmp_path: Path) -> None:
    """What is there is not made again; a step that fails does not stop the others, and is the script's status."""
    work = tmp_path / "work"
    shutil.copytree(CHECKPOINT, work / "checkpoint")
    for name in ("bundle", "fp16"):
        shutil.copytree(bundles["cuda"], work / name)
    flip_byte(work / "fp16" / "selftest.npz", 200)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "WORK": str(work), "DEVICE": "cpu", "TINY": "1"}
    done = subprocess.run(
        ["bash", SCRIPT, "out"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    steps = {line.split()[0]: line.split(" s  ")[1] for line in done.stdout.splitlines() if " s  " in line}
    assert steps["check"] == "ended with 1" and steps["graphs"] == "done", done.stdout + done.stderr
    assert list(steps)[:3] == ["check", "graphs", "soak"] and done.returncode == 1
    assert json.loads((tmp_path / "out" / "graphs.json").read_text())["cases"]
    assert json.loads((tmp_path / "out" / "soak.json").read_text())["counts"]["texts"] > 0
