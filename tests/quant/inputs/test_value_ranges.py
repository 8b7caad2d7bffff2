"""Ranges are what every float value of a graph reached over all samples, and a NaN does not slip by."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from edgeclip import BuildError, Manifest
from edgeclip.families.family import Arrays
from edgeclip.manifest import Target
from edgeclip_quant.inputs.value_ranges import measure_ranges, scores_of
from tests.scenes.graph_feeds import GRAPHS, feeds, made_up

# The same sums in another order.
ORDER = 1e-5


def measured(model: ir.Model, samples: Sequence[Arrays], folder: Path) -> dict[str, float]:
    return dict(measure_ranges(model, samples, folder, lambda what, done, total: None, threads=1))


def graph(text: str) -> ir.Model:
    """A small graph in onnx's own notation."""
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_every_float_value_has_the_range_that_it_shows(
    bundles: dict[Target, Path], target: Target, graph: str, tmp_path: Path
) -> None:
    """Against the values themselves, made outputs and looked at with numpy."""
    bundle = bundles[target]
    samples = feeds(bundle, graph, made_up(bundle, texts=3, images=2))
    path = bundle / Manifest.read(bundle).graphs[graph].file
    found = measured(ir.load(path), samples, tmp_path)

    shown = ir.load(path)
    names = [str(value.name) for node in shown.graph for value in node.outputs if value.name not in ("", None)]
    shown.graph.outputs.extend(value for node in shown.graph for value in node.outputs if not value.is_graph_output())
    ir.save(shown, tmp_path / "shown.onnx", external_data="shown.data")
    session = onnxruntime.InferenceSession(tmp_path / "shown.onnx", providers=["CPUExecutionProvider"])
    wanted: dict[str, float] = {}
    for sample in samples:
        for name, value in zip(names, session.run(names, dict(sample)), strict=True):
            if value.dtype == np.float32:
                wanted[name] = max(wanted.get(name, 0.0), float(np.abs(value).max()))
    assert len(wanted) > 50
    assert set(wanted) <= set(found)
    for name, largest in wanted.items():
        assert found[name] == pytest.approx(largest, rel=ORDER), name


def test_nothing_is_left_behind(bundles: dict[Target, Path], tmp_path: Path) -> None:
    bundle = bundles["cuda"]
    model = ir.load(bundle / Manifest.read(bundle).graphs["text"].file)
    before = (
        [node.op_type for node in model.graph.all_nodes()],
        len(model.graph.outputs),
        len(model.graph.initializers),
    )
    measured(model, [{"input_ids": np.array([[0, 5, 2]])}], tmp_path)
    after = (
        [node.op_type for node in model.graph.all_nodes()],
        len(model.graph.outputs),
        len(model.graph.initializers),
    )
    assert after == before
    assert list(tmp_path.iterdir()) == []


def test_the_way_that_was_not_taken_has_a_range_of_zero(bundles: dict[Target, Path], tmp_path: Path) -> None:
    bundle = bundles["cuda"]
    model = ir.load(bundle / Manifest.read(bundle).graphs["text"].file)
    whole, padded = ({"input_ids": np.array([ids])} for ids in ([0, 5, 6, 2], [0, 5, 2, 1]))
    for samples, are_taken in (
        ([whole], {"unmasked"}),
        ([padded], {"masked"}),
        ([whole, padded], {"masked", "unmasked"}),
    ):
        found = measured(model, samples, tmp_path)
        inside = {name: found[name] for name in found if name.partition("/")[0].endswith("masked")}
        assert len(inside) == 2 * 2 * 3  # outputs and scores of either way in three blocks
        for name, largest in inside.items():
            assert (largest > 0) == (name.partition("/")[0].rpartition("_")[2] in are_taken), name


def test_a_range_is_the_largest_over_all_samples(tmp_path: Path) -> None:
    model = graph(
        "<ir_version: 10, opset_import: ['': 20]> g (float[n] x) => (float[n] y) { y = Neg(x) }".replace("'", '"')
    )
    samples = [{"x": np.array(values, np.float32)} for values in ([1, -2, 0.5], [0, 0, 0], [-7, 1, 1], [3, 3, 3])]
    assert measured(model, samples, tmp_path) == {"x": 7.0, "y": 7.0}


ATTENTION = """<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
g (float[1, t, 6] x) => (float[1, t, 6] y) {
    k = Mul(x, x)
    y = com.microsoft.MultiHeadAttention<num_heads = 2, scale = 0.5>(x, k, x)
}"""


def test_the_bound_of_an_attentions_scores_holds_and_is_met(tmp_path: Path) -> None:
    """Drawn at random no score is above it; where the longest query and key point one way, one is at it."""
    model = graph(ATTENTION)
    name = scores_of(model.graph[1])
    draw = np.random.default_rng(0)
    for _ in range(20):
        x = draw.standard_normal((1, 7, 6)).astype(np.float32) * 3
        heads = x.reshape(7, 2, 3)
        scores = 0.5 * np.einsum("qhd,khd->hqk", heads, heads**2)
        assert measured(model, [{"x": x}], tmp_path)[name] >= np.abs(scores).max()
    x = np.zeros((1, 2, 6), np.float32)
    x[0, 0, 0], x[0, 1, 4] = 4, 1
    assert measured(model, [{"x": x}], tmp_path)[name] == pytest.approx(0.5 * 4 * 16)


@pytest.mark.parametrize("position", [0, 3, 6])
@pytest.mark.parametrize(("op", "bad"), [("Sqrt", -1.0), ("Exp", 1000.0)], ids=["NaN", "infinity"])
def test_what_is_not_finite_is_an_error_wherever_it_stands(
    tmp_path: Path, op: str, bad: float, position: int
) -> None:
    """onnxruntime's own maximum passes over a NaN that is not first, and the output here is finite."""
    model = graph(f"""<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {{
        early = Neg(x)
        spoilt = {op}(x)
        y = Mul(early, early)
    }}""")
    x = np.ones(7, np.float32)
    x[position] = bad
    with pytest.raises(BuildError, match=r"NaN or infinity for sample 1, in 1 values, the first of them spoilt;"):
        measured(model, [{"x": np.ones(7, np.float32)}, {"x": x}], tmp_path)
    assert list(tmp_path.iterdir()) == []
