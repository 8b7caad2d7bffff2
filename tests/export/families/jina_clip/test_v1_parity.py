"""jina-clip-v1, checkpoint to vector, equals the reference's answers on every target; each is run on the CPU here."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgeclip import Encoder, InputError, TruncationWarning
from edgeclip.engine.ort import start_session
from edgeclip.manifest import TARGETS, Target
from edgeclip_export import export_checkpoint
from edgeclip_graph.passes import alibi, lower_portable
from tests.scenes.v1_goldens import BATCHES, CHECKPOINT, CONTROLS, E2E, IMAGES, PARITY, SENTENCES, TEXT

DIMS = (16, 40, 72)
# The same graph but for the floor: what is summed differs by less than a last bit.
SAME = 3e-7
LAYERS = 3
TEXT_CASES = {
    "default": {"max_length": 512},
    "max_length_20": {"max_length": 20},
    "max_length_1024": {"max_length": 1024},
    "trunc40": {"max_length": 512, "truncate_dim": 40},
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Target, Path]:
    folder = tmp_path_factory.mktemp("v1")
    for target in TARGETS:
        export_checkpoint(CHECKPOINT, folder / target, target=target)
    return {target: folder / target for target in TARGETS}


@pytest.fixture
def bundle(bundles: dict[Target, Path]) -> Path:
    return bundles["cpu"]


@pytest.fixture(scope="module", params=TARGETS)
def encoder(request: pytest.FixtureRequest, bundles: dict[Target, Path]) -> Iterator[Encoder]:
    with Encoder.open(bundles[request.param], device="cpu", selftest=True) as opened:
        yield opened


@pytest.mark.parametrize("case", TEXT_CASES)
def test_sentences_give_the_references_vectors(encoder: Encoder, case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        found = encoder.encode_text(SENTENCES, **TEXT_CASES[case])
    assert difference(found, E2E[f"text.{case}"]) <= PARITY


def test_image_files_give_the_references_vectors(encoder: Encoder) -> None:
    assert difference(encoder.encode_image(IMAGES), E2E["image.default"]) <= PARITY
    assert difference(encoder.encode_image(IMAGES, truncate_dim=40), E2E["image.trunc40"]) <= PARITY


@pytest.mark.parametrize("batch", BATCHES)
def test_padded_batches_and_long_texts_give_the_references_vectors(encoder: Encoder, batch: str) -> None:
    found = run(encoder, TEXT[f"{batch}.input_ids"])
    for dim in DIMS:
        assert difference(cut(found, dim), TEXT[f"{batch}.norm.{dim}"]) <= PARITY


def test_a_padded_batch_equals_its_texts_one_by_one(encoder: Encoder) -> None:
    for batch in ("mixed", "long"):
        ids = TEXT[f"{batch}.input_ids"]
        alone = np.concatenate([run(encoder, row[None, : np.flatnonzero(row)[-1] + 1]) for row in ids])
        assert difference(run(encoder, ids), alone) <= PARITY


@pytest.mark.parametrize("mistake", [name for name in CONTROLS.files if name.startswith("mixed.text.")])
def test_a_mistake_in_the_text_tower_does_not_pass(encoder: Encoder, mistake: str) -> None:
    found, wrong = run(encoder, TEXT["mixed.input_ids"]), CONTROLS[mistake]
    assert difference(found, cut(wrong, wrong.shape[1])) > 10 * PARITY


def test_it_has_no_task_and_is_cut_to_any_dimension(encoder: Encoder) -> None:
    """The model was not trained to be cut, so the manifest lists the full dimension alone."""
    assert (encoder.tasks, encoder.manifest.spaces.single.matryoshka_dims) == ((), (72,))
    with pytest.raises(InputError, match="task is 'retrieval.query'"):
        encoder.encode_text("a", task="retrieval.query")
    with pytest.raises(InputError, match="task is 'retrieval.query'"):
        encoder.encode_image(IMAGES[0], task="retrieval.query")
    assert encoder.encode_text("a", truncate_dim=5).shape == (5,)


def test_texts_of_8192_tokens_are_taken(encoder: Encoder) -> None:
    facts = encoder.manifest.need_text()
    assert (facts.max_length, facts.pad_id, facts.bos_id, facts.eos_id) == (8192, 0, 2, 3)


@pytest.mark.parametrize("layers", ["fastest", "plain"])
@pytest.mark.parametrize("most", [1, 6 * 31 * 4, 6 * 700 * 90])
def test_queries_in_slices_give_the_references_vectors(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: Literal["fastest", "plain"], most: int
) -> None:
    """One query at a time, and more of which the last run has fewer; both forms of the graph for a CPU."""
    monkeypatch.setattr(alibi, "MOST_SCORES", most)
    session = lowered(bundle, tmp_path, layers)
    for batch in BATCHES:
        if most > 1 or batch != "long":
            (found,) = session.run(None, {"input_ids": TEXT[f"{batch}.input_ids"]})
            assert difference(found, TEXT[f"{batch}.norm.72"]) <= PARITY


def test_a_key_far_away_with_a_large_score_is_seen_as_without_the_floor(bundle: Path, tmp_path: Path) -> None:
    """The floor under what is added, which keeps a processor from denormal numbers, changes no vector."""
    ids = np.random.default_rng(0).integers(5, 430, (1, 3000))
    found = []
    for floor in (alibi.MOST_TAKEN, 1e9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(alibi, "MOST_TAKEN", floor)
            found.append(lowered(bundle, tmp_path).run(None, {"input_ids": ids})[0])
    assert difference(*found) <= SAME


def test_a_gate_is_not_turned_back(bundle: Path) -> None:
    """For few rows, q, k, v and what the projection and the MLP give are; its first half is not, gate and all."""
    model = ir.load(bundle / "text.onnx")
    (choice,) = (node for node in model.graph if node.op_type == "If")
    few = choice.attributes["then_branch"].as_graph()
    turns = [node for node in few if node.op_type == "Transpose" and node.attributes["perm"].as_ints() == (0, 2, 1)]
    assert len(turns) == 5 * LAYERS


def lowered(
    bundle: Path, folder: Path, layers: Literal["fastest", "plain"] = "fastest"
) -> onnxruntime.InferenceSession:
    """The text graph, lowered anew for a CPU."""
    model = lower_portable("text", bundle / "text.onnx", "cpu", layers=layers)
    shutil.copyfile(bundle / "text.onnx_data", folder / "text.onnx_data")
    ir.save(model, folder / "text.onnx")
    return start_session(folder / "text.onnx")


def run(encoder: Encoder, ids: np.ndarray) -> np.ndarray:
    return encoder.run_graph("text", {"input_ids": ids})["text_embeds"]


def cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    short = vectors[:, :dim]
    return short / np.linalg.norm(short, axis=1, keepdims=True)


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())
