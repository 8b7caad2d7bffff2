"""What is no source is refused before anything is written; interrupted it leaves nothing, and the source stays."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeclip.manifest import MODALITIES, Precision, Target
from edgeclip_quant import quantize_bundle
from tests.scenes.damage import replace_graph, reseal
from tests.scenes.graph_feeds import GRAPHS
from tests.scenes.refusal import refusal


@pytest.fixture(scope="module", autouse=True)
def _no_pauses() -> Iterator[None]:
    """What a timing waits for before each run is nothing to wait for here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeclip.engine.paired_timing.PAUSE_S", 0)
        yield


@pytest.mark.parametrize(
    ("target", "to", "targets"),
    [
        ("cpu", "fp16", "cuda"),
        ("cuda", "int8", "cpu or tensorrt"),
        ("cuda", "int4", "cpu"),
        ("tensorrt", "int4", "cpu"),
        ("tensorrt", "fp16", "cuda"),
    ],
)
def test_what_a_target_has_no_kernels_for_is_refused(
    bundles: dict[Target, Path], target: Target, to: Precision, targets: str, tmp_path: Path
) -> None:
    told = refusal(bundles[target], tmp_path / "out", to)
    assert told == (f"{bundles[target]}: is fp32/fp32 for {target}; {to} is made of an fp32 bundle for {targets}")


@pytest.mark.parametrize("name", ["vision.onnx_data", "text.onnx", "tokenizer.json", "selftest.npz"])
def test_a_damaged_source_is_refused(copied_bundle: Path, tmp_path: Path, name: str) -> None:
    """Else it would be signed anew, and agree with itself in every proof."""
    content = bytearray((copied_bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied_bundle / name).write_bytes(content)
    told = "not a tokenizer (" if name == "tokenizer.json" else "is not what was exported"
    assert f"{name} is not what was exported" in refusal(copied_bundle, tmp_path / "out")
    (copied_bundle / name).unlink()
    assert re.search(f"{name}:? {re.escape(told)}", refusal(copied_bundle, tmp_path / "out"))


def test_a_graph_that_no_export_wrote_is_refused_in_a_line(copied_bundle: Path, tmp_path: Path) -> None:
    shutil.copyfile(copied_bundle / "text.onnx", copied_bundle / "text.portable.onnx")
    reseal(copied_bundle)
    told = refusal(copied_bundle, tmp_path / "out")
    assert told == f"{copied_bundle}: the text graph cannot be quantised (text.portable.onnx is no portable graph)"


def test_a_graph_that_is_not_what_its_portable_form_gives_fails_the_proof(
    copied_bundle: Path, tmp_path: Path
) -> None:
    replace_graph(copied_bundle, "text", scale=np.ones(64), offset=np.arange(64))
    assert "as int8 text vectors have a worst cosine of " in refusal(copied_bundle, tmp_path / "out")


@pytest.mark.parametrize("stage", ["hashing", "calibrating, vision", "trying the text graph", "hashing again"])
def test_interrupted_it_leaves_nothing(bundle: Path, tmp_path: Path, stage: str) -> None:
    said: Counter[str] = Counter()

    def interrupt(what: str, done: int, total: int) -> None:
        said[what] += 1
        is_again = what == "hashing" and "proving image vectors" in said
        if (f"{what} again" if is_again else what) == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(bundle, tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_not_touched_and_progress_is_told(bundle: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    said: list[tuple[str, int, int]] = []
    quantize_bundle(bundle, tmp_path / "deeper" / "out", progress=lambda *one: said.append(one))
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["out"]
    assert all(0 <= done < total for _, done, total in said)
    stages = list(dict.fromkeys(what for what, _, _ in said))
    assert stages == [
        "hashing",
        *(what.format(graph) for graph in GRAPHS for what in ("calibrating, {}", "planning the {} graph")),
        *(f"asking the source for {modality} vectors" for modality in MODALITIES),
        *(what.format(graph) for graph in GRAPHS for what in ("writing the {} graph", "trying the {} graph")),
        *(f"proving {modality} vectors" for modality in MODALITIES),
        *(f"timing {modality} vectors" for modality in MODALITIES),
    ]
