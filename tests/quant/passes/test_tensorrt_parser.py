"""What TensorRT's documents refuse is named: an accepted graph, broken in one place."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeclip import BuildError
from edgeclip.manifest import Target
from edgeclip_quant.passes.tensorrt_parser import check_accepted
from tests.scenes.graph_feeds import GRAPHS
from tests.scenes.qdq_graphs import drawn, layer_model, narrow, observed, path_of


def accepted_model() -> ir.Model:
    model = layer_model([drawn(8, 8, seed=1)])
    narrow(model, {"w0": observed(drawn(64, 8))})
    return model


def node_of(model: ir.Model, kind: str, at: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == kind][at]


def put(model: ir.Model, kind: str, index: int, array: NDArray[np.generic] | None, at: int = 0) -> None:
    """Give an input of a node another constant, or none."""
    node = node_of(model, kind, at)
    if array is None:
        node.resize_inputs(index)
        return
    value = ir.Value(name=f"broken_{index}", const_value=ir.tensor(array))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    model.graph.register_initializer(value)
    node.resize_inputs(max(index + 1, len(node.inputs)))
    node.replace_input_with(index, value)


def free(model: ir.Model, kind: str, index: int, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
    """Make an input of a node one of the graph's."""
    value = ir.Value(name="given", type=ir.TensorType(dtype), shape=ir.Shape([]))
    model.graph.inputs.append(value)
    node_of(model, kind).replace_input_with(index, value)


def behind(model: ir.Model, kind: str, inputs: Sequence[ir.Value], **options: Any) -> ir.Node:
    """One more node, whose output is the graph's."""
    node = ir.node(kind, inputs, **options)
    model.graph.append(node)
    node.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.outputs[0] = node.outputs[0]
    return node


def opset(version: int) -> Callable[[ir.Model], None]:
    return lambda model: model.graph.opset_imports.update({"": version})


def of_domain(model: ir.Model) -> None:
    node_of(model, "Add").domain = "com.microsoft"


def unknown_operator(model: ir.Model) -> None:
    behind(model, "NonZero", [model.graph.outputs[0]])


def input_of_type(dtype: ir.DataType | None) -> Callable[[ir.Model], None]:
    def break_it(model: ir.Model) -> None:
        behind(model, "Add", [model.graph.outputs[0], model.graph.inputs[0]])
        model.graph.inputs[0].type = None if dtype is None else ir.TensorType(dtype)
        node_of(model, "QuantizeLinear").replace_input_with(0, model.graph.initializers["bias"])

    return break_it


def sizes_as_numbers(model: ir.Model) -> None:
    sizes = behind(model, "Shape", [model.graph.outputs[0]])
    behind(model, "Gelu", [sizes.outputs[0]])


def int8_to_another(model: ir.Model) -> None:
    node_of(model, "MatMul").replace_input_with(1, model.graph.initializers["w0_int8"])


def int8_gather(model: ir.Model) -> None:
    behind(model, "Gather", [model.graph.initializers["w0_int8"], model.graph.outputs[0]])
    put(model, "Gather", 1, np.array(0, np.int64))


def half_of_a_product(model: ir.Model) -> None:
    put(model, "MatMul", 1, drawn(8, 8))


def scale_of(*values: float) -> Callable[[ir.Model], None]:
    array = np.array(values[0] if len(values) == 1 else values, np.float32)
    return lambda model: put(model, "QuantizeLinear", 1, array)


def zeros_of(kind: str, array: NDArray[np.generic] | None, at: int = 0) -> Callable[[ir.Model], None]:
    return lambda model: put(model, kind, 2, array, at)


def weight_axis(axis: int) -> Callable[[ir.Model], None]:
    def break_it(model: ir.Model) -> None:
        weight = next(node for node in model.graph if node.attributes.get("axis"))
        weight.attributes["axis"] = ir.AttrInt64("axis", axis)

    return break_it


def scales_too_few(model: ir.Model) -> None:
    weight = next(node for node in model.graph if node.attributes.get("axis"))
    weight.inputs[1].const_value = ir.tensor(np.ones(4, np.float32))
    weight.inputs[2].const_value = ir.tensor(np.zeros(4, np.int8))


def scales_of_activation(model: ir.Model) -> None:
    put(model, "QuantizeLinear", 1, np.ones(8, np.float32))
    put(model, "QuantizeLinear", 2, np.zeros(8, np.int8))


def unread_pair(model: ir.Model) -> None:
    pair = node_of(model, "QuantizeLinear")
    model.graph.append(ir.node("QuantizeLinear", list(pair.inputs)))


def given_pair(model: ir.Model) -> None:
    model.graph.outputs.append(node_of(model, "QuantizeLinear").outputs[0])


def quantize_twice(model: ir.Model) -> None:
    first = node_of(model, "QuantizeLinear")
    second = ir.node("QuantizeLinear", [first.outputs[0], *first.inputs[1:]])
    model.graph.insert_after(first, second)
    node_of(model, "DequantizeLinear").replace_input_with(0, second.outputs[0])


def dequantize_twice(model: ir.Model) -> None:
    first = node_of(model, "DequantizeLinear")
    behind(model, "DequantizeLinear", [first.outputs[0], *first.inputs[1:]])


def free_axes(model: ir.Model) -> None:
    put(model, "MatMul", 0, drawn(2, 8))
    behind(model, "ReduceSum", [model.graph.outputs[0], model.graph.outputs[0]])
    free(model, "ReduceSum", 1, ir.DataType.INT64)
    node_of(model, "MatMul").replace_input_with(0, node_of(model, "DequantizeLinear").outputs[0])


def second_output(model: ir.Model) -> None:
    bias = model.graph.initializers["bias"]
    behind(model, "LayerNormalization", [model.graph.outputs[0], bias, bias], num_outputs=2)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        pytest.param(opset(21), "opset 21: TensorRT is promised 13 to 20", id="opset-21"),
        pytest.param(opset(12), "opset 12:", id="opset-12"),
        pytest.param(of_domain, "com.microsoft.Add .* not among the operators", id="domain"),
        pytest.param(unknown_operator, "NonZero .* not among the operators", id="operator"),
        pytest.param(input_of_type(ir.DataType.DOUBLE), "Add .* reads x as DOUBLE", id="double"),
        pytest.param(input_of_type(ir.DataType.UINT8), "Add .* reads x as UINT8", id="uint8"),
        pytest.param(input_of_type(None), "Add .* reads x as unknown", id="no-type"),
        pytest.param(sizes_as_numbers, "Gelu .* as INT64, wanted", id="int64"),
        pytest.param(int8_to_another, "MatMul .* reads w0_int8 as INT8", id="int8-product"),
        pytest.param(int8_gather, "Gather .* reads w0_int8 as INT8", id="int8-gather"),
        pytest.param(half_of_a_product, "MatMul .* multiplies int8 by what is not", id="half"),
        pytest.param(scale_of(0.0), "QuantizeLinear .* scale that is not above zero", id="scale-0"),
        pytest.param(scale_of(-1.0), "scale that is not above zero", id="scale-negative"),
        pytest.param(scale_of(float("inf")), "scale that is not above zero and finite", id="scale-inf"),
        pytest.param(scale_of(float("nan")), "scale that is not above zero and finite", id="scale-nan"),
        pytest.param(lambda model: free(model, "QuantizeLinear", 1), "scale that is no constant", id="scale-free"),
        pytest.param(
            lambda model: put(model, "DequantizeLinear", 1, np.array(1, np.int8)),
            "scale that is not above zero",
            id="scale-int8",
        ),
        pytest.param(zeros_of("QuantizeLinear", None), "has no int8 zero point", id="zero-missing"),
        pytest.param(zeros_of("QuantizeLinear", np.array(0, np.uint8)), "reads .* as UINT8", id="zero-uint8"),
        pytest.param(zeros_of("QuantizeLinear", np.array(0, np.float32)), "has no int8 zero point", id="zero-float"),
        pytest.param(zeros_of("QuantizeLinear", np.array(3, np.int8)), "no constant zeros", id="zero-3"),
        pytest.param(zeros_of("DequantizeLinear", np.array(3, np.int8)), "no constant zeros", id="zero-3-behind"),
        pytest.param(zeros_of("DequantizeLinear", np.zeros(8, np.int8)), "no constant zeros", id="zeros-too-many"),
        pytest.param(
            lambda model: free(model, "DequantizeLinear", 2, ir.DataType.INT8), "no constant zeros", id="zero-free"
        ),
        pytest.param(weight_axis(0), "8 scales along axis 0, wanted one scale", id="axis"),
        pytest.param(weight_axis(2), "8 scales along axis 2", id="axis-outside"),
        pytest.param(scales_too_few, "4 scales along axis 1", id="scales-too-few"),
        pytest.param(scales_of_activation, "8 scales along axis 1", id="scales-of-activation"),
        pytest.param(unread_pair, "QuantizeLinear .* has no DequantizeLinear behind it", id="unread"),
        pytest.param(given_pair, "has no DequantizeLinear behind it", id="given"),
        pytest.param(quantize_twice, "has no DequantizeLinear behind it", id="quantized-twice"),
        pytest.param(dequantize_twice, "DequantizeLinear .* reads FLOAT, wanted INT8", id="dequantized-twice"),
        pytest.param(free_axes, "ReduceSum .* axes that are no constant", id="axes"),
        pytest.param(second_output, "LayerNormalization .* more than one output", id="outputs"),
    ],
)
def test_what_tensorrt_would_refuse_is_named(break_it: Callable[[ir.Model], object], message: str) -> None:
    model = accepted_model()
    check_accepted(model)
    break_it(model)
    with pytest.raises(BuildError, match=message) as caught:
        check_accepted(model)
    assert "https://" in str(caught.value)


@pytest.mark.parametrize("graph", GRAPHS)
def test_an_fp32_graph_is_accepted_too_and_types_are_followed(bundles: dict[Target, Path], graph: str) -> None:
    """Declared types are no evidence: with none in between, the answer is the same. A graph for CUDA is refused."""
    model = ir.load(path_of(bundles["tensorrt"], graph))
    for node in model.graph:
        for value in node.outputs:
            value.type = None
    check_accepted(model)
    fused = ir.load(path_of(bundles["cuda"], graph))
    fused.graph.opset_imports[""] = 20
    with pytest.raises(BuildError, match=r"com.microsoft.\w+ .* not among the operators"):
        check_accepted(fused)
