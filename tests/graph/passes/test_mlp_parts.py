"""A gated MLP in parts gives what it gave, with adapters and without, and is whole again in the portable form."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError

from edgeclip_graph.frame import array_of, constant
from edgeclip_graph.linear import linear_layers
from edgeclip_graph.operators import CONTRIB
from edgeclip_graph.passes.gemm import WeightsInPlace
from edgeclip_graph.passes.mlp_parts import DivideMlp
from edgeclip_graph.portable import load_portable, portable_path, save_portable
from edgeclip_graph.traits import Traits

WIDTH, MIDDLE, RANK, ROWS = 24, 50, 4, 7
DRAW = np.random.default_rng(0)
WEIGHTS = {
    "gate": DRAW.standard_normal((WIDTH, MIDDLE), dtype=np.float32),
    "up": DRAW.standard_normal((WIDTH, MIDDLE), dtype=np.float32),
    "down": DRAW.standard_normal((MIDDLE, WIDTH), dtype=np.float32) / 8,
}
ADAPTER = {
    "a": DRAW.standard_normal((WIDTH, RANK), dtype=np.float32),
    "gate_b": DRAW.standard_normal((RANK, MIDDLE), dtype=np.float32),
    "up_b": DRAW.standard_normal((RANK, MIDDLE), dtype=np.float32),
    "down_a": DRAW.standard_normal((MIDDLE, RANK), dtype=np.float32) / 8,
    "down_b": DRAW.standard_normal((RANK, WIDTH), dtype=np.float32),
}
X = DRAW.standard_normal((ROWS, WIDTH), dtype=np.float32)
# Sums in another order, as a share of the largest value. Measured: 3e-7.
SAME = 2e-6


def mlp(*, has_adapter: bool, has_bias: bool = False) -> ir.Model:
    """x + down(silu(gate x) * up x) over rows; an adapter's arrays are inputs."""

    def value(name: str, *shape: int | str) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))

    x = value("x", "rows", WIDTH)
    given = {name: value(name, *array.shape) for name, array in ADAPTER.items()} if has_adapter else {}
    graph = ir.Graph([x, *given.values()], [], nodes=[], opset_imports={"": 23, CONTRIB: 1}, name="mlp")
    tape = ir.tape.Tape()

    def shaped(result: ir.Value, width: int) -> ir.Value:
        result.dtype, result.shape = ir.DataType.FLOAT, ir.Shape(["rows", width])
        return result

    def linear(name: str, rows: ir.Value) -> ir.Value:
        width = WEIGHTS[name].shape[1]
        y = shaped(tape.op("MatMul", [rows, constant(graph, name, WEIGHTS[name])]), width)
        if has_bias:
            y = shaped(tape.op("Add", [y, constant(graph, f"{name}_bias", np.ones(width, np.float32))]), width)
        if not has_adapter:
            return y
        narrow = tape.op("MatMul", [rows, given["down_a" if name == "down" else "a"]])
        if name == "down":  # torch's chunk(1)
            narrow = tape.op("Split", [narrow], {"axis": -1, "num_outputs": 1})
        return shaped(tape.op("Add", [y, tape.op("MatMul", [narrow, given[f"{name}_b"]])]), width)

    gate, up = linear("gate", x), linear("up", x)
    silu = shaped(tape.op("QuickGelu", [gate], {"alpha": 1.0}, domain=CONTRIB), MIDDLE)
    y = tape.op("Add", [x, linear("down", shaped(tape.op("Mul", [silu, up]), MIDDLE))])
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape(["rows", WIDTH])
    graph.extend(tape.nodes)
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def answer(model: ir.Model, *, has_adapter: bool) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"x": X, **(ADAPTER if has_adapter else {})})[0]
    return found


@pytest.mark.parametrize("has_adapter", [True, False], ids=["adapter", "plain"])
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "packed"])
def test_the_answer_is_the_same(has_adapter: bool, parts: int, in_place: bool) -> None:
    model = mlp(has_adapter=has_adapter)
    wanted = answer(model, has_adapter=has_adapter)
    model = DivideMlp(parts)(model).model
    widths = [layer.shape for layer in linear_layers(model.graph)]
    assert len(widths) == 3 * parts
    assert max(min(shape) for shape in widths) <= -(-MIDDLE // parts) < MIDDLE
    assert all(-(-MIDDLE // parts) >= shape[shape[0] == WIDTH] for shape in widths)
    if in_place:
        model = WeightsInPlace()(model).model
        assert not linear_layers(model.graph)
    assert np.abs(answer(model, has_adapter=has_adapter) - wanted).max() <= SAME * np.abs(wanted).max()


def test_each_part_is_added_before_another_is_begun(tmp_path: Path) -> None:
    """No more than two parts' results are in memory at a time, in the order that onnxruntime runs the nodes in."""
    parts = 5
    model = WeightsInPlace()(DivideMlp(parts)(mlp(has_adapter=False)).model).model
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    session.run(None, {"x": X})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran = [one["args"]["op_name"] for one in events if one["name"].endswith("_kernel_time")]
    order = [name for name in ran if name in ("QuickGelu", "Add")]
    assert order == ["QuickGelu", *["QuickGelu", "Add"] * (parts - 1), "Add"]


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "packed"])
def test_its_weights_are_whole_again_in_the_portable_form(tmp_path: Path, in_place: bool) -> None:
    model = mlp(has_adapter=True)
    trace = model.clone()
    for step in (DivideMlp(2), *((WeightsInPlace(),) if in_place else ())):
        model = step(model).model
    used = {value for node in model.graph for value in node.inputs}
    for name, value in list(model.graph.initializers.items()):
        if value not in used:
            del model.graph.initializers[name]
    ir.save(model, tmp_path / "mlp.onnx", external_data="mlp.onnx_data", size_threshold_bytes=0)
    save_portable(trace, model, tmp_path / "mlp.onnx", Traits(mlp_parts=2, reads_in_place=in_place))
    found, traits = load_portable(portable_path(tmp_path / "mlp.onnx"))
    assert traits == Traits(mlp_parts=2, reads_in_place=in_place)
    for name, weight in WEIGHTS.items():
        (layer,) = (layer for layer in linear_layers(found.graph) if layer.name == name)
        np.testing.assert_array_equal(array_of(layer.weight_value), weight)


def test_a_graph_without_such_an_mlp_is_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="no gated MLP without biases"):
        DivideMlp(2)(mlp(has_adapter=False, has_bias=True))
    with pytest.raises(PreconditionError, match="no gated MLP"):
        DivideMlp(2)(ir.Model(ir.Graph([], [], nodes=[], name="empty"), ir_version=10))
