"""fp16 graphs answer as the fp32 ones do, because what fp16 cannot hold stays fp32; without the ranges they fall."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeclip import Manifest
from edgeclip.families.family import Arrays
from edgeclip.manifest import Target
from edgeclip_quant.emulation import emulating_session
from edgeclip_quant.inputs.value_ranges import measure_ranges, scores_of
from edgeclip_quant.passes.float16 import LARGEST, narrow_to_half, to_half
from edgeclip_quant.passes.operator_types import FillTypes
from tests.scenes.graph_feeds import GRAPHS, feeds, made_up

GPU: tuple[Target, ...] = ("cuda", "tensorrt")
# 1 - cosine of a vector to the fp32 graph's. Measured worst: 4.4e-6 (golden, padded texts), 4.1e-6 (the small trained
# model); 11 bits lose 1e-8 at once, and 50 roundings in a row about this.
WORST = 2e-5
# Vectors keep their length: the L2 norm is fp32.
LENGTH = 1e-6
# So the outlier's graphs may differ from their own fp32: the same, and the checkpoint is the golden one.
FALLEN = 1e-3

Feeds = Sequence[Arrays]
HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


@pytest.fixture(scope="module")
def sources(bundles: dict[Target, Path], trained_bundles: dict[Target, Path]) -> dict[tuple[str, Target], Path]:
    """The golden checkpoint's bundles and the small trained model's."""
    return {
        (name, target): made[target]
        for name, made in (("golden", bundles), ("demo", trained_bundles))
        for target in GPU
    }


def padded(texts: Feeds, pad_id: int) -> Arrays:
    """Texts (1, T) as one batch."""
    rows = [feed["input_ids"] for feed in texts]
    width = max(row.shape[1] for row in rows)
    padded_rows = [np.pad(row, ((0, 0), (0, width - row.shape[1])), constant_values=pad_id) for row in rows]
    return {"input_ids": np.concatenate(padded_rows)}


def inputs(bundle: Path, graph: str, *, seed: int) -> list[Arrays]:
    """Texts of 3 to 64 tokens, one at a time and then together; pictures, with an all but white one."""
    rows = feeds(bundle, graph, made_up(bundle, texts=12, images=4, seed=seed))
    if graph == "text":
        return [*rows, padded(rows, Manifest.read(bundle).need_text().pad_id)]
    pixels = rows[0]["pixel_values"]
    white = np.full_like(pixels, 250) + np.random.default_rng(seed).integers(-5, 6, pixels.shape).astype(np.uint8)
    return [*rows, {"pixel_values": white}]


def ranges_of(model: ir.Model, batches: Feeds, folder: Path) -> dict[str, float]:
    return dict(measure_ranges(model, batches, folder, lambda what, done, total: None, threads=1))


def save(model: ir.Model, path: Path) -> Path:
    ir.save(model, path, external_data=f"{path.name}_data")
    return path


def plain(path: Path, batches: Feeds) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, dict(batch))[0] for batch in batches])


def emulated(path: Path, batches: Feeds) -> NDArray[np.float32]:
    with emulating_session(path, path.parent, threads=1) as session:
        return np.concatenate([session.run(None, dict(batch))[0] for batch in batches])


def lost(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """1 - cosine of the worst row; NaN if there is one."""
    return float((1 - (found.astype(np.float64) * wanted).sum(axis=1)).max())


def full_nodes(model: ir.Model) -> list[str]:
    """The operators that an fp32 value goes into or comes out of, in their order."""
    return [
        node.op_type
        for node in model.graph.all_nodes()
        if any(value and value.dtype == FULL for value in (*node.inputs, *node.outputs))
    ]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("target", GPU)
@pytest.mark.parametrize("checkpoint", ["golden", "demo"])
def test_a_tower_answers_as_its_source(
    sources: dict[tuple[str, Target], Path], checkpoint: str, target: Target, graph: str, tmp_path: Path
) -> None:
    bundle = sources[checkpoint, target]
    source = bundle / Manifest.read(bundle).graphs[graph].file
    model = ir.load(source)
    kept = narrow_to_half(model, ranges_of(model, inputs(bundle, graph, seed=1), tmp_path))
    path = save(model, tmp_path / "half.onnx")
    unseen = inputs(bundle, graph, seed=2)
    wanted, found = plain(source, unseen), emulated(path, unseen)
    assert lost(found, wanted) < WORST
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < LENGTH
    assert (found != wanted).any()
    assert kept == []
    weights, before = (one.with_name(f"{one.name}_data").stat().st_size for one in (path, source))
    assert weights < 0.61 * before  # the golden model's patch embedding, fp32, is a fifth of its vision graph
    # onnxruntime's and onnx's own type checks, and types outside as they were.
    session, was = (onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"]) for one in (path, source))
    for now, then in ((session.get_inputs(), was.get_inputs()), (session.get_outputs(), was.get_outputs())):
        assert [(one.name, one.type, one.shape) for one in now] == [(one.name, one.type, one.shape) for one in then]
    if target == "tensorrt":
        onnx.checker.check_model(path, full_check=True)


IMAGE_SUM = ["Cast", "Slice", "Slice", "Reshape", "Transpose", "Reshape", "Pad", "MatMul", "Add", "Cast"]
LENGTH_ONE = ["ReduceL2", "Clip", "Div"]
POOLING = ["Cast", "Unsqueeze", "Cast", "MatMul", "Squeeze", "ReduceSum", "Div"]
SOFTMAX = ["Cast", "Softmax", "Cast"]


@pytest.mark.parametrize(
    ("target", "graph", "full"),
    [
        ("cuda", "text", [*POOLING, *LENGTH_ONE]),
        ("cuda", "vision", [*IMAGE_SUM, "Cast", *LENGTH_ONE]),
        ("tensorrt", "text", [*SOFTMAX * 3, *POOLING, *LENGTH_ONE]),
        ("tensorrt", "vision", [*IMAGE_SUM, *SOFTMAX * 3, "Cast", *LENGTH_ONE]),
    ],
)
def test_only_sums_softmax_and_the_norm_are_fp32(
    bundles: dict[Target, Path], target: Target, graph: str, full: list[str], tmp_path: Path
) -> None:
    """With one Cast where the types meet."""
    bundle = bundles[target]
    model = ir.load(bundle / Manifest.read(bundle).graphs[graph].file)
    before = sum(node.op_type == "Cast" for node in model.graph.all_nodes())
    narrow_to_half(model, ranges_of(model, inputs(bundle, graph, seed=1), tmp_path))
    assert full_nodes(model) == full
    # Text: Casts of the mask to int32 and to bool, before and after.
    casts = full.count("Cast") + (2 if (target, graph) == ("cuda", "text") else 0)
    assert sum(node.op_type == "Cast" for node in model.graph.all_nodes()) == casts > before


def test_every_length_and_any_company(sources: dict[tuple[str, Target], Path], tmp_path: Path) -> None:
    """Lengths that no sample had too, up to the longest; alone, and padded beside longer ones."""
    bundle = sources["demo", "cuda"]
    manifest = Manifest.read(bundle)
    source = bundle / manifest.graphs["text"].file
    model = ir.load(source)
    narrow_to_half(model, ranges_of(model, inputs(bundle, "text", seed=1), tmp_path))
    path = save(model, tmp_path / "half.onnx")
    draw = np.random.default_rng(0)
    lengths = [*range(1, 40), 64, 100, 511, manifest.need_text().max_length]
    rows = [{"input_ids": draw.integers(5, 100, (1, length))} for length in lengths]
    wanted = plain(source, rows)
    assert lost(emulated(path, rows), wanted) < WORST
    assert lost(emulated(path, [padded(rows[:-1], manifest.need_text().pad_id)]), wanted[:-1]) < WORST


def scaled(model: ir.Model, factor: float, names: Callable[[str], bool], columns: slice = slice(None)) -> None:
    """Weights times a power of two, so that nothing is rounded."""
    found = [value for name, value in model.graph.initializers.items() if names(name)]
    assert found
    for value in found:
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[..., columns] *= np.float32(factor)
        value.const_value = ir.tensor(array, name=value.name)


def with_a_large_stream(model: ir.Model, factor: float) -> None:
    """The vision graph's residual stream, larger from end to end: all that reads it begins with a norm."""
    ends = ("attention_out.out.weight", "attention_out.out.bias", "mlp.down.weight", "mlp.down.bias")
    scaled(model, factor, lambda name: name in ("patch", "position") or name.endswith(ends))


def with_large_values(model: ir.Model, factor: float) -> None:
    """The text graph's attention values, larger, and the weights that read what attention makes of them, smaller."""
    width = model.graph.initializers["norm.weight"].shape
    assert width is not None
    columns = slice(2 * int(width[0]), None)
    scaled(model, factor, lambda name: name.endswith(("qkv.weight", "qkv.bias")), columns)
    scaled(model, 1 / factor, lambda name: name.endswith("out.weight"))


OUTLIERS: Mapping[str, tuple[str, Callable[[ir.Model, float], None], float]] = {
    "stream beyond 65504": ("vision", with_a_large_stream, 2.0**17),
    "values beyond 65504": ("text", with_large_values, 2.0**18),
    "values below 6e-8": ("text", with_large_values, 2.0**-26),
}


@pytest.mark.parametrize("target", GPU)
@pytest.mark.parametrize("case", OUTLIERS)
def test_outliers_keep_fp32_and_without_their_ranges_the_graph_falls(
    bundles: dict[Target, Path], target: Target, case: str, tmp_path: Path
) -> None:
    graph, change, factor = OUTLIERS[case]
    bundle = bundles[target]
    original = bundle / Manifest.read(bundle).graphs[graph].file
    model = ir.load(original)
    change(model, factor)
    source = save(model.clone(), tmp_path / "source.onnx")
    seen, unseen = inputs(bundle, graph, seed=1), inputs(bundle, graph, seed=2)
    wanted = plain(source, unseen)
    assert lost(wanted, plain(original, unseen)) < 1e-6

    ranges = ranges_of(model, seen, tmp_path)
    if factor > 1:
        assert max(ranges.values()) > 65504
    blind = model.clone()
    kept = narrow_to_half(model, ranges)
    assert len(kept) > 6
    assert all(name in ranges or name in blind.graph.initializers for name in kept)
    found = emulated(save(model, tmp_path / "half.onnx"), unseen)
    assert lost(found, wanted) < WORST

    narrow_to_half(blind, dict.fromkeys(ranges, 1.0))
    fallen = emulated(save(blind, tmp_path / "blind.onnx"), unseen)
    assert not lost(fallen, wanted) < FALLEN


def test_half_of_the_products_stay_fp16_beside_a_large_stream(bundles: dict[Target, Path], tmp_path: Path) -> None:
    """fp32 where it is needed, not from there on."""
    bundle = bundles["cuda"]
    model = ir.load(bundle / Manifest.read(bundle).graphs["vision"].file)
    with_a_large_stream(model, 2.0**17)
    narrow_to_half(model, ranges_of(model, inputs(bundle, "vision", seed=1), tmp_path))
    products = [node.outputs[0].dtype == HALF for node in model.graph if node.op_type == "MatMul"]
    attentions = [node.outputs[0].dtype == HALF for node in model.graph if node.op_type == "MultiHeadAttention"]
    assert sum(products) == len(products) - 1 - 2 * 3  # the image sum, and what two of each block give the stream
    assert attentions and all(attentions)


def test_scores_beyond_fp16_keep_both_ways_of_a_choice_fp32(bundles: dict[Target, Path], tmp_path: Path) -> None:
    """Only the masked way's are stored, but an If gives one type."""
    bundle = bundles["cuda"]
    path = bundle / Manifest.read(bundle).graphs["text"].file
    model = FillTypes()(ir.load(path)).model
    batches = inputs(bundle, "text", seed=1)
    ranges = ranges_of(model, batches, tmp_path)
    (name, *_) = [name for name in ranges if name.endswith("_masked/scores")]
    kept = narrow_to_half(model, {**ranges, name: 2 * LARGEST})
    assert kept == [name]
    first, *others = [node for node in model.graph if node.op_type == "If"]
    assert first.outputs[0].dtype == FULL
    assert {node.outputs[0].dtype for node in others} == {HALF}
    for branch in ("then_branch", "else_branch"):
        (attention,) = first.attributes[branch].as_graph()
        assert {value.dtype for value in attention.inputs[:3] if value} == {FULL}
    found = emulated(save(model, tmp_path / "half.onnx"), batches)
    assert lost(found, plain(path, batches)) < WORST


def test_rounding_is_to_the_nearest_and_says_nothing_of_overflow() -> None:
    found = to_half(np.array([1 + 2**-11, 1 + 3 * 2**-11, 65520, 2**-25 * 1.01, 2**-26], np.float32))
    assert found.tolist() == [1.0, 1 + 2**-9, float("inf"), 2**-24, 0.0]


def test_scores_have_a_name_of_their_own(bundles: dict[Target, Path]) -> None:
    bundle = bundles["cuda"]
    model = ir.load(bundle / Manifest.read(bundle).graphs["vision"].file)
    names = {scores_of(node) for node in model.graph if node.op_type == "MultiHeadAttention"}
    assert len(names) == 3
    assert not names & {str(value.name) for node in model.graph for value in node.outputs}
