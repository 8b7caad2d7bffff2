"""jina-clip-v1 is narrowed, proved and served as jina-clip-v2 is; its attention stays in slices and in fp32."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx_ir as ir
import pytest

from edgeclip import Encoder, Manifest
from edgeclip.bundle.selftest import repeat_proof, run_selftest
from edgeclip.manifest import Precision, Target
from edgeclip_export import export_checkpoint
from edgeclip_quant import quantize_bundle
from edgeclip_quant.budget import Budget
from tests.scenes.serving import serving, until_ready
from tests.scenes.v1_goldens import CHECKPOINT, E2E, IMAGES, SENTENCES

# Worst cosine of a vector to the reference's or to the fp32 bundle's, by target and precision. Measured 0.996, 0.87,
# 0.999994 and 0.98: with 72 dimensions, a tenth of the model's, few errors cancel out.
WORST_COSINE: dict[tuple[Target, Precision], float] = {
    ("cpu", "int8"): 0.99,
    ("cpu", "int4"): 0.85,
    ("cuda", "fp16"): 0.9999,
    ("tensorrt", "int8"): 0.97,
}


@pytest.fixture(scope="module", autouse=True)
def _no_pauses() -> Iterator[None]:
    """What a timing waits for before each run is nothing to wait for here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeclip.engine.paired_timing.PAUSE_S", 0)
        yield


@pytest.fixture(scope="module", params=WORST_COSINE, ids="-".join)
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    target, precision = request.param
    folder = tmp_path_factory.mktemp("v1")
    export_checkpoint(CHECKPOINT, folder / "fp32", target=target)
    worst = WORST_COSINE[request.param]
    budget = Budget(cosine=worst, recall_points=None, size_mb=None)
    quantize_bundle(folder / "fp32", folder / "narrow", to=precision, budget=budget)
    return folder / "narrow", worst


def test_its_vectors_are_near_the_references(narrow: tuple[Path, float]) -> None:
    bundle, worst = narrow
    with Encoder.open(bundle, device="cpu") as encoder:
        texts, images = encoder.encode_text(SENTENCES), encoder.encode_image(IMAGES)
        for found, wanted in ((texts, E2E["text.max_length_1024"]), (images, E2E["image.default"])):
            assert (found.astype(np.float64) * wanted).sum(axis=1).min() >= worst
            assert (found != wanted).any()
        run_selftest(encoder.manifest, encoder.ask, bundle, device="cpu")
        for proved in repeat_proof(encoder.manifest, encoder.run_graph, bundle, device="cpu"):
            assert proved.worst_cosine >= worst


def test_on_a_cpu_every_layer_is_narrow_and_attention_is_in_slices(tmp_path: Path) -> None:
    export_checkpoint(CHECKPOINT, tmp_path / "fp32")
    quantize_bundle(tmp_path / "fp32", tmp_path / "int8")
    graph = ir.load(tmp_path / "int8" / "text.onnx").graph
    layers = 3
    loops = [node for node in graph.all_nodes() if node.op_type == "Loop"]
    assert len(loops) == layers
    assert all(
        "MultiHeadAttention" in {node.op_type for node in loop.attributes["body"].as_graph()} for loop in loops
    )
    kernels = Manifest.read(tmp_path / "int8").graphs["text"].kernels
    assert sum(kernels.values()) == 4 * layers and not kernels.get("fp32")


def test_the_service_takes_the_tasks_of_jinas_api_and_changes_nothing(tmp_path: Path) -> None:
    export_checkpoint(CHECKPOINT, tmp_path / "fp32")
    with Encoder.open(tmp_path / "fp32", device="cpu") as encoder, serving(encoder.folder, encoder) as url:
        until_ready(url)
        body = {"input": ["a red cat"], "dimensions": 40}
        answers = [
            httpx.post(f"{url}/v1/embeddings", json=body | task)
            for task in ({}, {"task": "retrieval.query"}, {"task": "nl2code.query"})
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 400]
        one, same = (answer.json()["data"][0]["embedding"] for answer in answers[:2])
        assert one == same and len(one) == 40
