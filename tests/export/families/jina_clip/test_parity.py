"""The whole way, checkpoint to vector, equals the reference implementation's answers.

`e2e` holds what the reference gave for sentences and image files, `text` and `vision` for ids and
pixels; the checkpoint is tiny and random, in the official layout. Every target runs on the CPU here.
"""

import base64
import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeclip import Encoder, TruncationWarning
from edgeclip.manifest import TARGETS, Target
from tests.conftest import DATA, GOLDEN

# Largest difference of unit vectors that the issue allows. Measured: 7e-7 uncut, 1.4e-6 cut to 16 of 64
# dimensions; the reference's own fp32 noise is 2e-6 on features eight times as long.
PARITY = 5e-6

E2E = np.load(GOLDEN / "e2e.npz")
TEXT = np.load(GOLDEN / "text.npz")
VISION = np.load(GOLDEN / "vision.npz")
INDEX = json.loads((GOLDEN / "e2e.json").read_text())
SENTENCES: list[str] = INDEX["sentences"]
IMAGES: list[Path] = [DATA / "images" / name for name in INDEX["image_files"]]
ID_BATCHES = ("mixed", "nopad", "single", "interior_pad", "long")
DIMS = (8, 16, 32, 48, 64)

TEXT_CASES = {
    "full": {"max_length": 512},
    "query": {"max_length": 512, "task": "retrieval.query"},
    "query_trunc": {"max_length": 512, "task": "retrieval.query", "truncate_dim": INDEX["truncate_dim_query"]},
    "max_length_20": {"max_length": 20},
    "max_length_8192": {"max_length": 8192},
}


@pytest.mark.parametrize("case", TEXT_CASES)
def test_sentences_give_the_references_vectors(encoder: Encoder, case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        found = encoder.encode_text(SENTENCES, **TEXT_CASES[case])
    assert largest_difference(found, E2E[f"text.{case}"]) <= PARITY


def test_no_max_length_is_the_models_8192(encoder: Encoder) -> None:
    assert largest_difference(encoder.encode_text(SENTENCES), E2E["text.max_length_8192"]) <= PARITY


def test_image_files_of_every_mode_give_the_references_vectors(encoder: Encoder) -> None:
    assert largest_difference(encoder.encode_image(IMAGES), E2E["image.full"]) <= PARITY


def test_images_cut_to_a_dimension_give_the_references_vectors(encoder: Encoder) -> None:
    found = encoder.encode_image(IMAGES, truncate_dim=INDEX["truncate_dim_image"])
    assert largest_difference(found, E2E["image.trunc"]) <= PARITY


def test_a_data_uri_gives_the_references_vector(encoder: Encoder) -> None:
    data = (GOLDEN.parent / INDEX["single_datauri"]).read_bytes()
    found = encoder.encode_image("data:image/png;base64," + base64.b64encode(data).decode())
    assert largest_difference(found, E2E["image.datauri_rgb_odd"]) <= PARITY


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", ID_BATCHES)
def test_every_targets_text_graph_equals_the_reference(
    bundles: dict[Target, Path], target: Target, batch: str
) -> None:
    """Padding, one token, padding inside a text, more than 512 tokens: the graph masks by itself."""
    found = run_graph(bundles[target] / "text.onnx", TEXT[f"{batch}.input_ids"])
    for dim in DIMS:
        assert largest_difference(cut(found, dim), TEXT[f"{batch}.norm.{dim}"]) <= PARITY


@pytest.mark.parametrize("target", TARGETS)
def test_every_targets_vision_graph_equals_the_reference(bundles: dict[Target, Path], target: Target) -> None:
    with Encoder.open(bundles[target], device="cpu") as encoder:
        assert largest_difference(encoder.encode_image(IMAGES), E2E["image.full"]) <= PARITY


@pytest.mark.parametrize("target", TARGETS)
def test_a_batch_and_its_rows_one_by_one_agree(bundles: dict[Target, Path], target: Target) -> None:
    graph = bundles[target] / "text.onnx"
    ids = TEXT["nopad.input_ids"]
    rows = np.concatenate([run_graph(graph, ids[index : index + 1]) for index in range(len(ids))])
    assert largest_difference(run_graph(graph, ids), rows) <= PARITY
    assert largest_difference(run_graph(graph, ids[::-1]), rows[::-1]) <= PARITY


def test_the_negative_control_is_seen(encoder: Encoder, bundle: Path) -> None:
    """What the reference answers without its adapters must not pass for the answer."""
    found = run_graph(bundle / "text.onnx", TEXT["mixed.input_ids"])
    without_lora = cut(TEXT["nolora.mixed.features"], found.shape[1])
    assert largest_difference(found, without_lora) > 100 * PARITY


def run_graph(path: Path, batch: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(batch)})[0]


def cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    short = vectors[:, :dim]
    return short / np.linalg.norm(short, axis=1, keepdims=True)


def largest_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())
