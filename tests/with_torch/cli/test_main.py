"""The verbs that need torch or onnx end in one line when something is wrong: a package, a folder, a full disk."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeclip import Manifest
from edgeclip.cli import main
from edgeclip.host.installation import install_command
from tests.conftest import CHECKPOINT
from tests.runtime.bundle.test_links import annex, hard_links, hub
from tests.runtime.cli.test_main import test_wrong_usage_is_status_2 as is_status_2
from tests.scenes.command import NEEDS_SHELL, Captured, refusal, run, run_shell


@pytest.mark.parametrize(
    "arguments", [["bench", "compare"], ["bench", "compare", "a.json", "b.json", "c.json"]], ids=" ".join
)
def test_wrong_usage_of_a_case_is_status_2(arguments: list[str], capsys: Captured) -> None:
    is_status_2(arguments, capsys)


def test_a_checkpoint_becomes_a_bundle(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "bundle"
    status, data, words = run("export", CHECKPOINT, out, "--target", "cuda", capsys=capsys)
    assert (status, data) == (0, "")
    needed, written = words.splitlines()
    assert needed.startswith(f"{out}: needs ") and needed.endswith(" GB on disk")
    assert written.startswith(f"{out}: found the official layout; 2.") and "MB for cuda, within" in written
    assert Manifest.read(out).target == "cuda"
    assert "exists already" in refusal("export", CHECKPOINT, out, capsys=capsys)


def test_a_folder_that_is_no_checkpoint_is_one_line(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    message = refusal("export", bundle, tmp_path / "out", capsys=capsys)
    assert "is a bundle already" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "PIL"])
def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, package: str
) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("edgeclip_export", "edgeclip_graph", f"{package}."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal("export", CHECKPOINT, tmp_path / "out", capsys=capsys)
    extra = "cpu" if package == "onnxruntime" else "export"
    assert message == f"{package} is not installed: `{install_command(extra)}`"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", [hub, annex, hard_links])
def test_quantising_a_linked_bundle_says_what_to_do(
    bundle: Path, tmp_path: Path, layout: Callable[[Path, Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """onnx reads no such weights: one line, and nothing is written."""
    linked = layout(bundle, tmp_path)
    assert main(["quantize", str(linked), str(tmp_path / "out"), "--to", "int8"]) == 1
    told = capsys.readouterr().err
    assert "is a link, and onnx reads no linked weights; copy the bundle without links (cp -rL" in told
    assert "Traceback" not in told and not (tmp_path / "out").exists()


@NEEDS_SHELL
def test_quantising_onto_a_full_disk_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    done = run_shell('ulimit -f 60; "$1" -m edgeclip quantize "$2" "$3" --to int8', bundle, tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
