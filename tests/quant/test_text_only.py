"""A bundle of texts alone is narrowed and proved by searches of texts among texts; its adapters stay as they are."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeclip import Encoder, Manifest
from edgeclip.bundle.selftest import repeat_proof, run_selftest
from edgeclip_bench.families.jina_embeddings_v3 import tiny_config
from edgeclip_bench.families.random_checkpoint import write_checkpoint
from edgeclip_export import export_checkpoint
from edgeclip_quant import quantize_automatically, quantize_bundle
from edgeclip_quant.budget import Budget, judge
from edgeclip_quant.passes.integer_layers import plain_graph
from edgeclip_quant.proof.retrieval import DOCUMENTS
from edgeclip_quant.recipes import INT4, INT8
from tests.scenes.graph_feeds import feeds, made_up, open_feeder

# Worst cosine of any task's vectors to the source's; measured 0.997 (int8).
WORST_COSINE = 0.99


@pytest.fixture(scope="module", autouse=True)
def _no_pauses() -> Iterator[None]:
    """What a timing waits for before each run is nothing to wait for here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeclip.engine.paired_timing.PAUSE_S", 0)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v3") / "checkpoint"
    write_checkpoint(folder, tiny_config())
    return folder


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> Path:
    export_checkpoint(checkpoint, checkpoint.with_name("cpu"))
    return checkpoint.with_name("cpu")


@pytest.fixture(scope="module")
def narrow(source: Path) -> Path:
    quantize_bundle(source, source.with_name("int8"))
    return source.with_name("int8")


def test_every_adapter_is_proved_and_texts_search_texts(source: Path, narrow: Path) -> None:
    before, manifest = Manifest.read(source), Manifest.read(narrow)
    assert [(one.modality, one.space, one.data) for one in manifest.measured] == [
        ("text", "single", "self-test"),
        ("text", "single", "made-up inputs"),
    ]
    found = manifest.measured[1].retrieval
    assert found is not None and (found.truth, found.queries) == (DOCUMENTS, 32)
    with np.load(narrow / "proof.npz") as arrays:
        adapters = arrays["text_adapters"].tolist()
        assert set(adapters) == {"", *before.adapters} and len(adapters) == len(arrays["text_embeds"]) == 64
        assert adapters[:32] == adapters[32:]  # a query has its document's
        assert not any("image" in name or "pixel" in name for name in arrays.files)
    with Encoder.open(narrow, device="cpu") as encoder:
        run_selftest(manifest, encoder.ask, narrow, device="cpu")
        (proved,) = repeat_proof(manifest, encoder.run_graph, narrow, device="cpu")
        assert proved.worst_cosine == pytest.approx(manifest.measured[1].worst_cosine, abs=1e-5)


def test_each_task_answers_nearly_as_it_did(source: Path, narrow: Path) -> None:
    texts = ["a red bicycle", "ein rotes Fahrrad", "<pad> three", " ".join(["seven"] * 60)]
    with Encoder.open(source, device="cpu") as before, Encoder.open(narrow, device="cpu") as after:
        assert before.tasks == after.tasks and before.tasks
        for task in (None, *before.tasks):
            wanted, found = (one.encode_text(texts, task=task).astype(np.float64) for one in (before, after))
            assert (wanted * found).sum(axis=1).min() >= WORST_COSINE, task
            assert (wanted != found).any()


def test_adapters_are_copied_and_their_products_stay(source: Path, narrow: Path) -> None:
    before, manifest = Manifest.read(source), Manifest.read(narrow)
    assert manifest.adapters == before.adapters and manifest.tasks == before.tasks
    for adapter in before.adapters.values():
        assert (narrow / adapter.file).read_bytes() == (source / adapter.file).read_bytes()
    plain, found = plain_graph("text", source / "text.onnx").graph, ir.load(narrow / "text.onnx").graph
    inputs, same = ({(value.name, value.dtype, str(value.shape)) for value in one.inputs} for one in (plain, found))
    assert inputs == same and len(inputs) > 1
    assert readers_of_adapters(found) == readers_of_adapters(plain)
    assert manifest.graphs["text"].kernels.get("fp32", 0) == 0


def readers_of_adapters(graph: ir.Graph) -> Counter[str]:
    """The operators that read what is fed besides ids: the table's Gather, and each layer's two products."""
    values = [value for value in graph.inputs if value.name != "input_ids"]
    found = Counter(user.op_type for value in values for user, _ in value.uses())
    assert found.keys() == {"Gather", "FusedMatMul", "Gemm"}
    return found


def test_a_feed_holds_an_adapters_arrays_or_zeros(source: Path) -> None:
    feeder = open_feeder(source)
    names = {value.name for value in ir.load(source / "text.onnx").graph.inputs}
    samples = made_up(source, texts=12, images=4)
    assert samples.image == ()
    assert {item.adapter for item in samples.text} == {None, *feeder.manifest.adapters}
    for item, feed in zip(samples.text, feeds(source, "text", samples), strict=True):
        assert feed.keys() == names
        arrays = {name: array for name, array in feed.items() if name != "input_ids"}
        assert any(array.any() for array in arrays.values()) == (item.adapter is not None)


def test_recipes_are_compared_and_one_is_picked(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip_quant.recipes.COMPARED", (INT8, INT4))
    manifest = quantize_automatically(source, source.with_name("auto"))
    assert manifest.graphs["text"].precision in ("int8", "int4") and list(manifest.graphs) == ["text"]
    told = judge(Budget(cosine=1.0, recall_points=None, size_mb=None), manifest.measured[1:], 0)
    assert len(told) == 1 and told[0].startswith("text vectors have a worst cosine of ")


def test_half_precision_leaves_adapters_in_fp32(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "cuda", target="cuda")
    manifest = quantize_bundle(tmp_path / "cuda", tmp_path / "fp16", to="fp16")
    graph = ir.load(tmp_path / "fp16" / "text.onnx").graph
    assert {value.dtype for value in graph.inputs if value.name != "input_ids"} == {ir.DataType.FLOAT}
    for node in graph:
        if node.op_type == "MatMul" and not node.inputs[1].is_initializer() and node.inputs[1].producer() is None:
            assert node.inputs[0].dtype == node.outputs[0].dtype == ir.DataType.FLOAT
    assert manifest.measured[1].worst_cosine > 0.9999
