"""Bundles of the golden checkpoint: their graphs, run by onnxruntime, give the official code's vectors."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from torch import Tensor

from edgeclip import Manifest
from edgeclip.cli import main
from edgeclip.engine.ort import start_session
from edgeclip.errors import BuildError
from edgeclip.manifest import TARGETS, ArrayFacts, Target
from edgeclip_export import export_checkpoint
from edgeclip_export.families.jina_embeddings_v4.config import TASKS as API_TASKS
from edgeclip_graph.frame import array_of
from edgeclip_graph.passes import lower_portable
from edgeclip_quant.passes.tensorrt_parser import check_accepted
from tests.conftest import made_once
from tests.scenes import v4_golden as golden
from tests.scenes.described_graphs import describe
from tests.scenes.v4_golden import CHECKPOINT, HIDDEN, IMAGE, IMAGES, MULTI, SINGLE, TASKS, TEXT

Arrays = Mapping[str, NDArray[Any]]


class Bundle:
    """An exported bundle, and its graphs when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, Manifest.read(folder)
        self._open = cache(start_session)

    def run(self, graph: str, inputs: list[Tensor], task: str | None = None) -> Arrays:
        """The outputs of a graph for inputs in its order, with the adapter of a task where one is given."""
        facts = self.manifest.graphs[graph]
        feed = {array.name: tensor.numpy() for array, tensor in zip(facts.inputs, inputs, strict=True)}
        if task is not None:
            with np.load(self.folder / self.manifest.adapters[task].file) as arrays:
                feed |= dict(arrays)
        session = self._open(self.folder / facts.file)
        names = [array.name for array in facts.outputs]
        return dict(zip(names, session.run(names, feed), strict=True))


@pytest.fixture(scope="module")
def open_bundle(shared: Path) -> Callable[..., Bundle]:
    @cache
    def open_one(target: Target, task: str | None = None) -> Bundle:
        def make(out: Path) -> object:
            return export_checkpoint(CHECKPOINT, out, target=target, task=task)

        return Bundle(made_once(shared / f"v4-{target}-{task}", make))

    return open_one


@pytest.mark.parametrize("target", TARGETS)
def test_texts_equal_the_reference(open_bundle: Callable[..., Bundle], target: Target) -> None:
    bundle = open_bundle(target)
    for batch in ("query", "passage"):
        inputs = golden.text_inputs(batch)
        mask = inputs[4].numpy() != 0
        for task in TASKS:
            found = bundle.run("text", inputs, task)
            assert np.abs(found["single"] - TEXT[f"{batch}/{task}/expected_single"]).max() <= SINGLE
            assert np.abs(found["multi"] - TEXT[f"{batch}/{task}/expected_multi"])[mask].max() <= MULTI


@pytest.mark.parametrize("target", TARGETS)
def test_images_equal_the_reference_through_both_graphs(open_bundle: Callable[..., Bundle], target: Target) -> None:
    bundle = open_bundle(target)
    for image in IMAGES:
        features = bundle.run("vision", golden.vision_inputs(image))["image_features"]
        assert np.abs(features[0] - IMAGE[f"{image}/expected_image_features"]).max() <= HIDDEN
        for task in TASKS:
            found = bundle.run("text", golden.image_inputs(str(image), Tensor(features)), task)
            assert np.abs(found["single"][0] - IMAGE[f"{image}/{task}/expected_single"]).max() <= SINGLE
            assert np.abs(found["multi"][0] - IMAGE[f"{image}/{task}/expected_multi"]).max() <= MULTI


def test_an_image_of_fewer_pixels_equals_the_reference(open_bundle: Callable[..., Bundle]) -> None:
    bundle = open_bundle("cpu")
    inputs = golden.reduced_inputs()
    features = bundle.run("vision", inputs)["image_features"]
    found = bundle.run("text", golden.prompt_inputs(inputs, Tensor(features)), "retrieval")
    assert np.abs(found["single"][0] - IMAGE["maxpix/expected_single"]).max() <= SINGLE


def test_cut_texts_of_several_tasks_equal_the_reference(open_bundle: Callable[..., Bundle]) -> None:
    bundle = open_bundle("cpu")
    for row, task in enumerate(golden.META["text"]["mixed_tasks"]):
        inputs = golden.text_inputs("mixed", slice(row, row + 1))
        found = bundle.run("text", inputs, task)
        mask = inputs[4][0].numpy() != 0
        assert np.abs(found["single"][0] - TEXT["mixed/expected_single"][row]).max() <= SINGLE
        assert np.abs(found["multi"][0] - TEXT["mixed/expected_multi"][row])[mask].max() <= MULTI


@pytest.mark.parametrize(
    ("asked", "task", "kept"),
    [
        ("code", "code", ["code.query", "code.passage"]),
        ("retrieval.query", "retrieval", ["retrieval.query"]),
    ],
)
def test_one_task_is_merged(open_bundle: Callable[..., Bundle], asked: str, task: str, kept: list[str]) -> None:
    bundle = open_bundle("cpu", asked)
    assert list(bundle.manifest.tasks) == kept
    assert {facts.adapter for facts in bundle.manifest.tasks.values()} == {None}
    assert not bundle.manifest.adapters
    assert not list(bundle.folder.glob("*.adapter.npz"))
    assert bundle.manifest.task_required
    found = bundle.run("text", golden.text_inputs("query"))
    assert np.abs(found["single"] - TEXT[f"query/{task}/expected_single"]).max() <= SINGLE


def test_an_unknown_task_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="'separation', this model has retrieval, text-matching, code, retrieval.qu"):
        export_checkpoint(CHECKPOINT, tmp_path / "out", task="separation")
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_what_the_bundle_takes_and_gives(open_bundle: Callable[..., Bundle]) -> None:
    manifest = open_bundle("cpu").manifest
    assert manifest.family == "jina_embeddings_v4"
    assert manifest.modalities == ("text", "image")
    assert manifest.spaces.single.dim == 64 and manifest.spaces.single.is_strict
    assert manifest.spaces.single.matryoshka_dims == (8, 16, 32, 64)
    assert manifest.spaces.multi is not None and manifest.spaces.multi.dim == 16
    assert list(manifest.tasks) == list(API_TASKS)
    prompts = ["Query: ", "Passage: ", "Query: ", "Query: ", "Passage: "]
    assert [facts.prompt for facts in manifest.tasks.values()] == prompts
    assert {name: facts.rank for name, facts in manifest.adapters.items()} == dict.fromkeys(TASKS, 4)
    assert list(manifest.need_patches().prompt_ids) == golden.prompt_ids()
    assert manifest.text is not None and manifest.text.max_length == 32_768
    inputs = {name: facts.inputs for name, facts in manifest.graphs.items()}
    assert inputs["vision"] == (
        ArrayFacts(name="pixel_values", dtype="uint8", axes=("batch", "patches", 588)),
        ArrayFacts(name="patch_positions", dtype="int64", axes=("patches", 2)),
        ArrayFacts(name="windows", dtype="int64", axes=("windows", "window_patches")),
        ArrayFacts(name="window_places", dtype="int64", axes=("patches",)),
    )
    assert inputs["text"] == (
        ArrayFacts(name="input_ids", dtype="int64", axes=("batch", "tokens")),
        ArrayFacts(name="position_ids", dtype="int64", axes=("batch", 3, "tokens")),
        ArrayFacts(name="image_features", dtype="float32", axes=("batch", "image_tokens", 64)),
        ArrayFacts(name="image_places", dtype="int64", axes=("batch", "tokens")),
        ArrayFacts(name="pool_mask", dtype="float32", axes=("batch", "tokens")),
    )
    outputs = [[(array.name, array.axes) for array in facts.outputs] for facts in manifest.graphs.values()]
    assert outputs == [
        [("image_features", ("batch", "image_tokens", 64))],
        [("single", ("batch", 64)), ("multi", ("batch", "tokens", 16))],
    ]


def test_the_self_test_measures_both_spaces_of_both_modalities(open_bundle: Callable[..., Bundle]) -> None:
    bundle = open_bundle("cpu")
    measured = [(one.modality, one.space) for one in bundle.manifest.measured]
    assert sorted(measured) == [("image", "multi"), ("image", "single"), ("text", "multi"), ("text", "single")]
    with np.load(bundle.folder / bundle.manifest.selftest) as arrays:
        assert len(arrays["texts"]) == len(arrays["tasks"]) == len(arrays["text_embeds"])
        assert len(arrays["image_tasks"]) == len(arrays["image_embeds"]) == 2
        assert {"image_0", "image_1"} <= set(arrays.files)
        assert set(arrays["tasks"]) | set(arrays["image_tasks"]) <= set(bundle.manifest.tasks)
        for name in ("text_multi", "image_multi"):
            assert np.abs(np.linalg.norm(arrays[name], axis=1) - 1).max() <= MULTI and arrays[name].shape[1] == 16
        assert len(arrays["text_multi"]) > 5 * len(arrays["texts"])


def test_the_bundle_passes_its_own_self_test(
    open_bundle: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(open_bundle("cpu").folder)]) == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert names == ["text", "text, each token", "image", "image, each token"]


def test_so_does_one_whose_pictures_are_made_smaller(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    document = json.loads((folder / "preprocessor_config.json").read_text())
    document |= {"max_pixels": 20_000, "size": {"shortest_edge": 3136, "longest_edge": 20_000}}
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    export_checkpoint(folder, tmp_path / "out", task="code")
    assert main(["check", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(("target", "kernel"), [("cpu", "GroupQueryAttention"), ("cuda", "MultiHeadAttention")])
def test_attention_is_fused_and_holds_no_mask_of_tokens_x_tokens(
    open_bundle: Callable[..., Bundle], target: Target, kernel: str
) -> None:
    text, vision = (open_bundle(target).manifest.graphs[name].operators for name in ("text", "vision"))
    assert text[f"com.microsoft.{kernel}"] == golden.CONFIG.decoder.layers
    assert vision["com.microsoft.MultiHeadAttention"] == golden.CONFIG.vision.layers
    assert not {"Softmax", "LessOrEqual", "If"} & {*text, *vision}
    assert "Transpose" not in vision


def test_on_the_cpu_no_weight_is_packed_and_the_mlp_is_in_four_parts(open_bundle: Callable[..., Bundle]) -> None:
    """onnxruntime packs a copy of a constant matrix; three dimensions it reads as they lie in the mapped file."""
    bundle = open_bundle("cpu")
    for name in ("text", "vision"):
        graph = ir.load(bundle.folder / bundle.manifest.graphs[name].file).graph
        products = [node for node in graph if node.op_type in ("MatMul", "Gemm", "FusedMatMul")]
        weights = [value for node in products for value in node.inputs if value and value.is_initializer()]
        assert weights and {len(value.shape or ()) for value in weights} == {3}
    assert bundle.manifest.graphs["text"].operators["com.microsoft.QuickGelu"] == 4 * golden.CONFIG.decoder.layers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["text", "vision"])
def test_the_portable_form_lowered_again_is_the_graph(
    open_bundle: Callable[..., Bundle], name: str, target: Target
) -> None:
    """From the cpu bundle, in which weights lie turned and in parts."""
    wanted = ir.load(open_bundle(target).folder / f"{name}.onnx")
    found = lower_portable(name, open_bundle("cpu").folder / f"{name}.onnx", target)
    assert describe(found) == describe(wanted)
    for key, value in wanted.graph.initializers.items():
        np.testing.assert_array_equal(array_of(found.graph.initializers[key]), array_of(value), err_msg=key)


@pytest.mark.parametrize("graph", ["text", "vision"])
def test_a_tensorrt_graph_holds_standard_operators_of_its_opset_alone(
    open_bundle: Callable[..., Bundle], graph: str
) -> None:
    """With types that TensorRT reads."""
    bundle = open_bundle("tensorrt")
    check_accepted(ir.load(bundle.folder / bundle.manifest.graphs[graph].file))
    model = onnx.load(bundle.folder / bundle.manifest.graphs[graph].file, load_external_data=False)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)]
    onnx.checker.check_model(str(bundle.folder / bundle.manifest.graphs[graph].file), full_check=True)
