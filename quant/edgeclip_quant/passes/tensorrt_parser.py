"""What TensorRT accepts: every node of a graph held against what the documents and the parser's code say.

No engine was built of such a graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.errors import BuildError

# The bundle's promise; TensorRT 10.15 reads 9 to 24. Per-channel scales came with 13.
_OPSETS = range(13, 21)
# "INT8 [...] support is available only through quantization", "UINT8 is only supported as network input or output".
_PARSER_TABLE = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md (TensorRT 10.15)"
# QuantDequantLinearHelper: scales above zero, zero points all zero and as many as scales, no UINT8, the axis's size.
_PARSER_CODE = "https://github.com/onnx/onnx-tensorrt/blob/main/onnxOpImporters.cpp"
# "The scale tensor must be a build-time constant", a scalar by tensor, 1-D by channel.
_LAYER_PAGES = "https://docs.nvidia.com/deeplearning/tensorrt/operators/docs/Quantize.html"
# "An IDequantizeLayer is required between the weights and the linear operator"; of weights alone, INT4 is offered.
_GUIDE = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html"

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_NUMBERS = _FLOATS | {ir.DataType.INT32, ir.DataType.INT64}  # INT64 is native since TensorRT 9
_BOOLS = frozenset({ir.DataType.BOOL})
_INT8 = frozenset({ir.DataType.INT8})


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The types an operator reads, which input holds its axes (a constant), and the type it gives: an input's or a
    fixed one.
    """

    reads: frozenset[ir.DataType]
    gives: int | ir.DataType = 0
    axes: int | None = None
    source: str = _PARSER_TABLE


ACCEPTED: Mapping[str, Accepted] = {
    "Abs": Accepted(reads=_FLOATS),
    "Add": Accepted(reads=_NUMBERS),
    "Cast": Accepted(reads=_NUMBERS | _BOOLS | {ir.DataType.UINT8}),
    "Clip": Accepted(reads=_FLOATS),
    "Concat": Accepted(reads=_NUMBERS | _BOOLS),
    "Cos": Accepted(reads=_FLOATS),
    "CumSum": Accepted(reads=_NUMBERS, axes=1),
    "DequantizeLinear": Accepted(reads=_FLOATS | _INT8, gives=1, source=_PARSER_CODE),
    "Div": Accepted(reads=_NUMBERS),
    "Equal": Accepted(reads=_NUMBERS, gives=ir.DataType.BOOL),
    "Expand": Accepted(reads=_NUMBERS | _BOOLS),
    "Gather": Accepted(reads=_NUMBERS | _BOOLS),
    "Gelu": Accepted(reads=_FLOATS),
    "Gemm": Accepted(reads=_FLOATS),
    "GreaterOrEqual": Accepted(reads=_NUMBERS, gives=ir.DataType.BOOL),
    "LayerNormalization": Accepted(reads=_FLOATS),
    "LessOrEqual": Accepted(reads=_NUMBERS, gives=ir.DataType.BOOL),
    "MatMul": Accepted(reads=_FLOATS),
    "Max": Accepted(reads=_NUMBERS),
    "Mod": Accepted(reads=_NUMBERS),
    "Mul": Accepted(reads=_NUMBERS),
    "Not": Accepted(reads=_BOOLS),
    "Pad": Accepted(reads=_NUMBERS),
    "QuantizeLinear": Accepted(reads=_FLOATS | _INT8, gives=2, source=_PARSER_CODE),
    "Range": Accepted(reads=_NUMBERS - _FLOATS),  # of floats, constants alone
    "ReduceL2": Accepted(reads=_NUMBERS, axes=1),
    "ReduceMean": Accepted(reads=_NUMBERS, axes=1),
    "ReduceSum": Accepted(reads=_NUMBERS, axes=1),
    "Relu": Accepted(reads=_FLOATS),
    "Reshape": Accepted(reads=_NUMBERS | _BOOLS),
    "Shape": Accepted(reads=_NUMBERS | _BOOLS, gives=ir.DataType.INT64),
    "Sigmoid": Accepted(reads=_FLOATS),
    "Sin": Accepted(reads=_FLOATS),
    "Slice": Accepted(reads=_NUMBERS | _BOOLS),
    "Softmax": Accepted(reads=_FLOATS),
    "Sqrt": Accepted(reads=_FLOATS),
    "Split": Accepted(reads=_NUMBERS | _BOOLS),
    "Squeeze": Accepted(reads=_NUMBERS | _BOOLS, axes=1),
    "Sub": Accepted(reads=_NUMBERS),
    "Transpose": Accepted(reads=_NUMBERS | _BOOLS),
    "Unsqueeze": Accepted(reads=_NUMBERS | _BOOLS, axes=1),
    "Where": Accepted(reads=_NUMBERS | _BOOLS, gives=1),
}


def check_accepted(model: ir.Model) -> None:
    """Check every node; BuildError names the first that TensorRT would refuse, and the document that says so.

    Types are followed from the inputs and constants on, whatever the values in between declare.
    """
    opset = model.graph.opset_imports.get("", 0)
    if opset not in _OPSETS:
        raise BuildError(f"opset {opset}: TensorRT is promised {_OPSETS[0]} to {_OPSETS[-1]} ({_PARSER_TABLE})")
    types = {value: value.dtype for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for node in model.graph:
        accepted = None if node.domain else ACCEPTED.get(node.op_type)
        if accepted is None:
            _refuse(node, "is not among the operators that were looked up", _PARSER_TABLE)
        for value in node.inputs:
            if value is not None and (found := types.get(value)) not in accepted.reads:
                wanted = ", ".join(sorted(kind.name for kind in accepted.reads))
                _refuse(
                    node,
                    f"reads {value.name} as {found.name if found else 'unknown'}, wanted {wanted}",
                    accepted.source,
                )
        if accepted.axes is not None and len(node.inputs) > accepted.axes and _array(node, accepted.axes) is None:
            _refuse(node, "has axes that are no constant", accepted.source)
        if len(node.outputs) > 1 and node.op_type == "LayerNormalization":
            _refuse(node, "gives more than one output", accepted.source)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _check_rounding(node, types)
        if node.op_type == "MatMul" and len({_is_dequantized(value) for value in node.inputs}) > 1:
            _refuse(node, "multiplies int8 by what is not; both inputs are wanted behind a DequantizeLinear", _GUIDE)
        types.update(dict.fromkeys(node.outputs, _type_given(node, accepted, types)))


def _check_rounding(node: ir.Node, types: Mapping[ir.Value, ir.DataType | None]) -> None:
    data, scales, zeros = node.inputs[0], _array(node, 1), _array(node, 2)
    is_quantize = node.op_type == "QuantizeLinear"
    assert data is not None
    if types[data] not in (_FLOATS if is_quantize else _INT8):
        _refuse(node, f"reads {types[data]}, wanted {'a float' if is_quantize else 'INT8'}", _PARSER_TABLE)
    if scales is None:
        _refuse(node, "has a scale that is no constant", _LAYER_PAGES)
    if scales.dtype.kind == "i" or not (np.isfinite(scales) & (scales > 0)).all():
        _refuse(node, "has a scale that is not above zero and finite", _PARSER_CODE)
    if is_quantize and (zeros is None or zeros.dtype != np.int8):
        _refuse(node, "has no int8 zero point, without which ONNX makes it uint8", _PARSER_CODE)
    if len(node.inputs) > 2 and (zeros is None or zeros.any() or zeros.size != scales.size):
        _refuse(node, "has zero points that are no constant zeros, one for each scale", _PARSER_CODE)
    if scales.size > 1:
        shape, axis = list(data.shape or ()), node.attributes.get_int("axis", 1)
        is_by_output = data.is_initializer() and axis in (-1, len(shape) - 1) and list(scales.shape) == shape[-1:]
        if not is_by_output:
            wanted = "wanted one scale, or a weight's along its last"
            _refuse(node, f"has {scales.size} scales along axis {axis}, {wanted}", _PARSER_CODE)
    if is_quantize and (
        node.outputs[0].is_graph_output()
        or not (users := [user.op_type for user, _ in node.outputs[0].uses()])
        or set(users) != {"DequantizeLinear"}
    ):
        _refuse(node, "has no DequantizeLinear behind it", _GUIDE)


def _type_given(
    node: ir.Node, accepted: Accepted, types: Mapping[ir.Value, ir.DataType | None]
) -> ir.DataType | None:
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if isinstance(accepted.gives, ir.DataType):
        return accepted.gives
    value = node.inputs[accepted.gives]
    return None if value is None else types[value]


def _is_dequantized(value: ir.Value | None) -> bool:
    return value is not None and (producer := value.producer()) is not None and producer.op_type == "DequantizeLinear"


def _array(node: ir.Node, index: int) -> NDArray[Any] | None:
    """An input's values, None where the node has no such input or it is no constant."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _refuse(node: ir.Node, what: str, source: str) -> NoReturn:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    raise BuildError(f"{name} {node.name or node.outputs[0].name}: {what} ({source})")
