"""An export gives a whole bundle or nothing that opens, whatever goes wrong on the way."""

import errno
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import edgeclip_export
from edgeclip import BuildError, Encoder, Manifest
from edgeclip.bundle.staging import stage_name
from edgeclip.manifest import TARGETS, Target
from edgeclip_export import bundle as bundle_module
from edgeclip_export import export_checkpoint
from edgeclip_export.families.family import Arrays, GraphPlan, Progress
from tests.conftest import CHECKPOINT
from tests.scenes.command import Captured, run


def test_a_bundle_holds_what_the_design_says_and_nothing_else(bundle: Path) -> None:
    names = {path.name for path in bundle.iterdir()}
    graphs = {f"{tower}.onnx{suffix}" for tower in ("text", "vision") for suffix in ("", "_data")}
    portable = {f"{tower}.portable.onnx" for tower in ("text", "vision")}
    assert names == graphs | portable | {"tokenizer.json", "selftest.npz", "manifest.json"}


def test_the_manifest_says_where_the_bundle_came_from_and_what_was_measured(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert (manifest.family, manifest.source.name, manifest.source.revision) == ("jina_clip", "model", None)
    assert [graph.precision for graph in manifest.graphs.values()] == ["fp32", "fp32"]
    assert [(one.modality, one.space) for one in manifest.measured] == [("text", "single"), ("image", "single")]
    for measured in manifest.measured:
        assert measured.p1_cosine >= measured.worst_cosine > 0.999999
        assert (measured.against, measured.data) == ("fp32 checkpoint", "self-test")
        assert measured.sqnr_db is None or measured.sqnr_db > 100
        graph = manifest.first_graph(measured.modality).file
        files = [file.size_bytes for file in manifest.files if file.name.startswith(graph)]
        assert len(files) == 2 and measured.weight_bytes == sum(files)
        assert measured.size_ratio is measured.latency_ratio is measured.retrieval is None
        assert measured.largest_difference <= bundle_module.PARITY
    assert str(CHECKPOINT.parent) not in manifest.to_json()


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second export, of the checkpoint with a model card, into a folder where others were killed or still run."""
    folder = tmp_path_factory.mktemp("again")
    shutil.copytree(CHECKPOINT, folder / "model")
    (folder / "model" / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-nc-4.0\n---\n# model\n")
    for name in (stage_name("bundle"), "bundle.tmp", "bundle.0badcafe-01234567.tmp"):
        (folder / name).mkdir()
        (folder / name / "text.onnx").touch()
    export_checkpoint(folder / "model", folder / "bundle")
    return folder / "bundle"


def test_two_exports_of_one_checkpoint_are_the_same(bundle: Path, again: Path) -> None:
    """Graphs and tokenizer to the byte; weights and answers are torch's sums, whose last bit may move."""
    once, twice = (
        {file.name: (file.size_bytes, file.sha256) for file in Manifest.read(folder).files}
        for folder in (bundle, again)
    )
    assert once.keys() == twice.keys()
    for name in ("text.onnx", "vision.onnx", "tokenizer.json"):
        assert once[name] == twice[name]
    for name in ("text.onnx_data", "vision.onnx_data"):
        first, second = (np.fromfile(folder / name, np.float32) for folder in (bundle, again))
        assert np.abs(first - second).max() <= bundle_module.PARITY


def test_the_licence_of_a_model_card_is_carried_over(again: Path) -> None:
    assert Manifest.read(again).source.license == "cc-by-nc-4.0"


def test_what_a_killed_export_left_is_cleared_by_the_next(again: Path) -> None:
    kept = {"model", "bundle", "bundle.tmp", "bundle.0badcafe-01234567.tmp"}  # no export's, and another machine's
    assert {path.name for path in again.parent.iterdir()} == kept


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

    def wrong(plan: GraphPlan, feeds: Sequence[Arrays], progress: Progress) -> list[dict[str, np.ndarray]]:
        found = honest(plan, feeds, progress)
        return [{name: array + np.float32(1e-3) for name, array in outputs.items()} for outputs in found]

    monkeypatch.setattr(bundle_module, "answer", wrong)
    with pytest.raises(BuildError, match="the text graph differs from the torch tower by 1.0e-03"):
        export_checkpoint(CHECKPOINT, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"target": "tpu"}, "unknown target 'tpu'"), ({"revision": "main"}, "--revision main is for a Hub id")],
)
def test_options_that_do_not_apply_are_refused(tmp_path: Path, arguments: dict[str, str], said: str) -> None:
    with pytest.raises(BuildError, match=said):
        export_checkpoint(CHECKPOINT, tmp_path / "bundle", **arguments)


@pytest.mark.parametrize("what", ["hashing the checkpoint", "reading the text", "writing the vision"])
def test_ctrl_c_leaves_nothing_and_says_so(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Pressed while the progress is told."""
    honest = edgeclip_export.export_checkpoint

    def export(*arguments: object, progress: object, **options: object) -> object:
        def interrupting(label: str, done: int, total: int) -> None:
            if label.startswith(what):
                signal.raise_signal(signal.SIGINT)

        return honest(*arguments, progress=interrupting, **options)

    monkeypatch.setattr(edgeclip_export, "export_checkpoint", export)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("export", CHECKPOINT, tmp_path / "bundle", capsys=capsys) == (130, "", "edgeclip: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_inside_the_tracer_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    """In a process of its own: nobody knows in what state torch is afterwards."""
    script = f"""
import _thread, signal, sys, threading
import edgeclip_export
from edgeclip.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
honest = edgeclip_export.export_checkpoint
def export(*arguments, progress, **options):
    once = []
    def interrupting(label, done, total):
        if label.startswith("tracing the text") and not once:
            once.append(label)
            threading.Timer(0.05, _thread.interrupt_main).start()
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
