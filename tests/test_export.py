"""An export gives a whole bundle or nothing that opens, whatever goes wrong on the way."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeclip import BuildError, Encoder, Manifest
from edgeclip.manifest import TARGETS, Target
from edgeclip_export import bundle as bundle_module
from edgeclip_export import export_checkpoint
from tests.conftest import CHECKPOINT


def test_a_bundle_holds_what_the_design_says_and_nothing_else(bundle: Path) -> None:
    names = {path.name for path in bundle.iterdir()}
    graphs = {f"{tower}_model.onnx{suffix}" for tower in ("text", "vision") for suffix in ("", "_data")}
    assert names == graphs | {"tokenizer.json", "selftest.npz", "manifest.json"}


def test_the_manifest_says_where_the_bundle_came_from_and_what_was_measured(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert (manifest.family, manifest.source.name, manifest.source.revision) == ("jina-clip", "model", None)
    assert manifest.text.precision == manifest.vision.precision == "fp32"
    assert {measured.tower for measured in manifest.measured} == {"text", "vision"}
    for measured in manifest.measured:
        assert measured.p1_cosine >= measured.worst_cosine > 0.999999
        assert (measured.against, measured.data) == ("fp32 checkpoint", "self-test")
        assert measured.sqnr_db is None or measured.sqnr_db > 100
        graph = manifest.tower(measured.tower).file
        files = [file.size_bytes for file in manifest.files if file.name.startswith(graph)]
        assert len(files) == 2 and measured.weight_bytes == sum(files)
        assert measured.size_ratio is measured.latency_ratio is measured.retrieval is None
        assert measured.largest_difference <= bundle_module.PARITY
    assert str(CHECKPOINT.parent) not in manifest.to_json()


def test_two_exports_of_one_checkpoint_are_the_same(bundle: Path, tmp_path: Path) -> None:
    """Graphs and tokenizer to the byte; weights and answers are torch's sums, whose last bit may move."""
    export_checkpoint(CHECKPOINT, tmp_path / "again")
    once, again = (
        {file.name: (file.size_bytes, file.sha256) for file in Manifest.read(folder).files}
        for folder in (bundle, tmp_path / "again")
    )
    assert once.keys() == again.keys()
    for name in ("text_model.onnx", "vision_model.onnx", "tokenizer.json"):
        assert once[name] == again[name]
    for name in ("text_model.onnx_data", "vision_model.onnx_data"):
        first, second = (np.fromfile(folder / name, np.float32) for folder in (bundle, tmp_path / "again"))
        assert np.abs(first - second).max() <= bundle_module.PARITY


def test_the_licence_of_a_model_card_is_carried_over(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-nc-4.0\n---\n# model\n")
    manifest = export_checkpoint(tmp_path / "model", tmp_path / "bundle")
    assert manifest.source.license == "cc-by-nc-4.0"


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gives_the_same_vectors(bundles: dict[Target, Path], encoder: Encoder, target: Target) -> None:
    texts = ["the blue cat", "<pad> in text", "海滩上美丽 的"]
    with Encoder.open(bundles[target], device="cpu") as other:
        assert np.abs(other.encode_text(texts) - encoder.encode_text(texts)).max() <= bundle_module.PARITY


def test_an_export_never_overwrites(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(BuildError, match="exists already"):
        export_checkpoint(CHECKPOINT, out)
    assert (out / "precious").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: truncate(folder / "model.safetensors"), "not a whole safetensors file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "not a tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff"), "tokenizer.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("[]"), "wanted a JSON object"),
    ],
)
def test_a_bad_checkpoint_leaves_nothing(tmp_path: Path, change, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    change(folder)
    with pytest.raises(BuildError, match=message) as caught:
        export_checkpoint(folder, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_module.ir, "save", full)
    with pytest.raises(BuildError, match="cannot be written .No space left on device"):
        export_checkpoint(CHECKPOINT, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_seen_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(BuildError, match=r"the bundle needs .* GB, the disk has"):
        export_checkpoint(CHECKPOINT, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_differs_from_its_tower_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bundle_module.answer
    monkeypatch.setattr(bundle_module, "answer", lambda tower, selftest: honest(tower, selftest) + 1e-3)
    with pytest.raises(BuildError, match="the text graph differs from the torch tower by 1.0e-03"):
        export_checkpoint(CHECKPOINT, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"bundle.{ended.pid}.tmp", "bundle.tmp", f"bundle.{os.getppid()}.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text_model.onnx").touch()
    export_checkpoint(CHECKPOINT, tmp_path / "bundle")
    kept = {"bundle", "bundle.tmp", f"bundle.{os.getppid()}.tmp"}  # not an export's, and a running one's
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("arguments", [{"target": "tpu"}, {"revision": "main"}])
def test_options_that_do_not_apply_are_refused(tmp_path: Path, arguments: dict[str, str]) -> None:
    with pytest.raises(BuildError, match="unknown target 'tpu'|--revision main is for a Hub id"):
        export_checkpoint(CHECKPOINT, tmp_path / "bundle", **arguments)


@pytest.mark.parametrize("what", ["reading the text", "tracing the text", "writing the vision", "hashing"])
def test_ctrl_c_leaves_nothing_and_says_so(tmp_path: Path, what: str) -> None:
    """Interrupted from the progress callback and, for the tracer's sake, from a thread a moment later."""
    script = f"""
import _thread, sys, threading
import edgeclip_export
from edgeclip.cli import main
honest = edgeclip_export.export_checkpoint
def export(*arguments, progress, **options):
    once = []
    def interrupting(label, done, total):
        if label.startswith({what!r}) and not once:
            once.append(label)
            threading.Timer(0.05 if "tracing" in label else 0.0, _thread.interrupt_main).start()
    return honest(*arguments, progress=interrupting, **options)
edgeclip_export.export_checkpoint = export
sys.exit(main(["export", {str(CHECKPOINT)!r}, {str(tmp_path / "bundle")!r}]))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.stderr.splitlines()[-1] == "edgeclip: interrupted"
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 130
    assert list(tmp_path.iterdir()) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])
