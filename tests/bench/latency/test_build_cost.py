"""The cost of an export or a quantisation is measured from outside, in a process of its own."""

import json
from pathlib import Path

import pytest

from edgeclip import Manifest
from edgeclip.errors import BuildError
from edgeclip_bench.families.jina_clip import tiny_config
from edgeclip_bench.families.random_checkpoint import write_checkpoint
from edgeclip_bench.latency.build_cost import BENCHMARK, measure_build
from tests.scenes.command import Captured, bench, run

# Python, torch and onnxruntime alone hold more than this, the tiny weights next to nothing.
LEAST_BYTES = 100_000_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cost") / "checkpoint"
    write_checkpoint(folder, tiny_config())
    return folder


def test_an_export_and_what_is_quantised_from_it(checkpoint: Path, tmp_path: Path, capsys: Captured) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "cost.json"
    assert bench("build-cost", "--out", out, "export", checkpoint, bundle, "--target", "cpu") == 0
    document = json.loads(out.read_text(encoding="utf-8"))
    assert (document["benchmark"], document["source"]) == (BENCHMARK, "checkpoint")
    assert document["command"] == "edgeclip export --target cpu"
    assert document["seconds"] > 0 and document["cpu_seconds"] > 0
    assert LEAST_BYTES < document["peak_anonymous_bytes"] <= document["peak_resident_bytes"]
    manifest = Manifest.read(bundle)
    assert document["written_bytes"] == manifest.weight_bytes
    assert [one["modality"] for one in document["measured"]] == ["text", "image"]
    assert capsys.readouterr().out.startswith("edgeclip export --target cpu: ")
    smaller = measure_build("quantize", bundle, tmp_path / "int8", "--to", "int8", "--budget", "cosine=0.5")
    assert smaller.written_bytes < manifest.weight_bytes
    assert smaller.measured == Manifest.read(tmp_path / "int8").measured


def test_the_peak_is_that_of_the_process_which_writes(checkpoint: Path, tmp_path: Path) -> None:
    """Memory that this process held before is not counted, as the kernel's figure of a forked child counts it."""
    held = bytearray(b"1" * 2_000_000_000)
    cost = measure_build("export", checkpoint, tmp_path / "bundle")
    assert len(held) == 2_000_000_000 > cost.peak_resident_bytes


def test_what_fails_is_said_and_not_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BuildError, match="^edgeclip quantize ended with status 1, so nothing was measured$"):
        measure_build("quantize", tmp_path / "nothing", tmp_path / "out", "--to", "int8")
    assert "nothing: no such bundle" in capfd.readouterr().err
    status, out, err = run("bench", "build-cost", "export", tmp_path / "nothing", tmp_path / "out", capsys=capfd)
    assert (status, out) == (1, "") and err.endswith("ended with status 1, so nothing was measured\n")
