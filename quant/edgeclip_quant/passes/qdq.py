"""Int8 for TensorRT: every linear layer between QuantizeLinear and DequantizeLinear, in standard operators alone.

    y = (t clip(round(x / t), -128, 127)) (Q s) + b,     t = max|x| of the calibration / 127,
                                                         s = max|W| of the output / 127, Q = round(W / s)

The graph says what is int8 and with which scales (explicit quantisation), and TensorRT makes DQ, MatMul one integer
GEMM. So t is a constant, one for all rows of all inputs to come, where the CPU's kernel has one for each row.
**What the calibration did not see is cut off**: a value above its range becomes the range, and nothing reports it.
The range is the greatest magnitude seen; clipped to the least error on those rows, or with half as much on top, the
worst cosines of the two small models moved by less than 0.002, up and down. Calibrated on made-up inputs and
compared on real ones, and vice versa, they keep 0.9988; data like yours are better.

Smoothing (`smoothing`) makes that worse, since it brings every channel up to the range: a plan that took it wherever
calibration rows liked it fell to a worst cosine of 0.97 on pictures of another kind, 0.9988 without. It is also what
saves a graph with outlier channels (0.36 without it, 0.998 with). So it is taken where it halves a layer's error on
rows that it was not made from, and gently.

onnxruntime on the CPU runs the graph with integer GEMMs, or, with its optimisations off, as it is written; the two
differ by up to 3e-3 in a component, where a value at the edge of two levels falls the other way, and not in cosine.

TensorRT's side, and how it is checked without one: `check_accepted` holds a graph against what the documents and the
parser's code say. Unproved until an engine is built: that the fusions happen, and how fast they are. Placement is
NVIDIA's own: all inputs of the GEMMs, no outputs, no biases, one pair for a tensor however many read it, activations
by tensor, weights by output (TensorRT-Model-Optimizer, modelopt/onnx/quantization/ort_utils.py, `configure_ort`;
onnxruntime-inference-examples, quantization/nlp/bert/trt, {'MatMul': 1}). Attention's two products, softmax, norms
and the residual stay floating. Free dimensions (batch, sequence) need an optimisation profile there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError, common

from edgeclip.errors import BuildError
from edgeclip_graph.frame import array_of, constant, input_of
from edgeclip_graph.linear import LinearLayer, linear_layers
from edgeclip_quant.inputs.layer_inputs import Observation
from edgeclip_quant.kernels import LEVELS, quantize_columns
from edgeclip_quant.passes.smoothing import fold_into_norm, is_fed_by_norm, smoothing_factors
from edgeclip_quant.pick.kernel_plan import relative_error

# Relative error (Frobenius) of a layer's output up to which it becomes int8; Gaussian data give 1.3e-2, the widest
# layers of the two small models (behind SwiGLU) 3.5e-2.
MAX_ERROR = 4e-2
# Weaker than where each row has a scale of its own: 0.75 lowered every layer's error and cost 0.01 of cosine.
_STRENGTHS = (0.25, 0.5)
_WORTH_SMOOTHING = 0.5

# Three base-255 digits stay below 2**24: OpenVINO (2025.4) divides integers as float32, which is exact up to there.
# Four base-215 digits of an int32, a quarter less to store, gave texts a cosine of 0.57 with it.
_PER_WORD, _TABLE_LEVELS = 3, 127
_BASE = 2 * _TABLE_LEVELS + 1
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How a tensor is rounded: divided by `factors` (in,), None without, then by `scale`.

    `errors` are the relative errors of the layers that read it, on rows that the rounding was not made from.
    """

    factors: NDArray[np.float32] | None
    scale: np.float32
    errors: tuple[float, ...]


def quantize_for_tensorrt(
    model: ir.Model, seen: Mapping[str, Observation], *, max_error: float = MAX_ERROR
) -> Mapping[str, float]:
    """Make the linear layers and the token table of a tensorrt graph int8, in place; returns each layer's error by
    name.

    `seen` is the result of `observe` on the same graph. Layers whose error is above `max_error` stay fp32, without a
    pair. Layers that are int8 already stay as they are. Raises PreconditionError where a layer was not observed or
    saw NaN or infinity, BuildError where TensorRT would refuse the result.
    """
    readers: dict[ir.Value, list[LinearLayer]] = {}
    for layer in linear_layers(model.graph):
        if layer.name not in seen or not np.isfinite(seen[layer.name].largest).all():
            raise PreconditionError(f"{layer.name} was not calibrated, or on what is no number")
        readers.setdefault(layer.x, []).append(layer)
    errors: dict[str, float] = {}
    for x, layers in readers.items():
        rounding = plan_rounding([layer.weight for layer in layers], seen[layers[0].name])
        errors.update(zip((layer.name for layer in layers), rounding.errors, strict=True))
        if max(rounding.errors) <= max_error:
            _quantize_layers(model.graph, x, layers, rounding)
    for node in [node for node in model.graph if _is_table_lookup(node)]:
        _pack_table(model.graph, node)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    check_accepted(model)
    return errors


def plan_rounding(weights: Sequence[NDArray[np.float32]], seen: Observation) -> Rounding:
    """The rounding of a tensor that weights (in, out) multiply; either half of the rows tests the other's
    rounding.
    """
    joined = np.concatenate(weights, axis=1)
    halves = np.array_split(seen.rows, 2) if len(seen.rows) > 1 else [seen.rows, seen.rows]
    exact = np.concatenate(halves) @ joined
    best: tuple[float | None, NDArray[np.float32]] | None = None
    for strength in (None, *_STRENGTHS):
        found = np.concatenate(
            [
                rounded_product(rows, joined, *_fit(np.abs(other).max(axis=0), joined, strength))
                for rows, other in zip(halves, reversed(halves), strict=True)
            ]
        )
        worth = 1.0 if best is None or best[0] is not None else _WORTH_SMOOTHING
        if best is None or relative_error(found, exact) < worth * relative_error(best[1], exact):
            best = strength, found
    assert best is not None
    factors, scale = _fit(seen.largest, joined, best[0])
    ends = np.cumsum([weight.shape[1] for weight in weights])[:-1]
    parts = zip(np.split(best[1], ends, axis=1), np.split(exact, ends, axis=1), strict=True)
    return Rounding(factors=factors, scale=scale, errors=tuple(relative_error(*part) for part in parts))


def rounded_product(
    rows: NDArray[np.float32], weight: NDArray[np.float32], factors: NDArray[np.float32] | None, scale: np.float32
) -> NDArray[np.float32]:
    """The int8 layer's result for rows (R, in) and a weight (in, out), without its bias; in numpy."""
    if factors is not None:
        rows, weight = rows / factors, weight * factors[:, None]
    levels, scales = quantize_columns(weight)
    product: NDArray[np.float32] = (np.rint(rows / scale).clip(-LEVELS - 1, LEVELS) * scale) @ (levels * scales)
    return product


def _fit(
    largest: NDArray[np.float32], weight: NDArray[np.float32], strength: float | None
) -> tuple[NDArray[np.float32] | None, np.float32]:
    factors = None if strength is None else smoothing_factors(largest, weight, strength)
    top = float((largest if factors is None else largest / factors).max())
    return factors, np.float32(top / LEVELS if top else 1.0)


def _quantize_layers(graph: ir.Graph, x: ir.Value, layers: Sequence[LinearLayer], rounding: Rounding) -> None:
    """Add one pair for x, and an int8 weight behind a DequantizeLinear for each layer."""
    name, factors = layers[0].name, rounding.factors
    scale = constant(graph, f"{name}_input_scale", np.array(rounding.scale))
    zero = constant(graph, "int8_zero_point", np.array(0, np.int8))  # without it, ONNX says uint8
    tape = ir.tape.Tape()
    if factors is not None:
        if is_fed_by_norm(x):
            fold_into_norm(graph, x, factors)
        else:
            x = tape.op("Mul", [x, constant(graph, f"{name}_inverse_factors", (1 / factors).astype(np.float32))])
    pair = tape.op("DequantizeLinear", [tape.op("QuantizeLinear", [x, scale, zero]), scale, zero])
    for layer in layers:
        weight = layer.weight if factors is None else layer.weight * factors[:, None]
        levels, scales = quantize_columns(weight)
        values = [
            constant(graph, f"{layer.name}_int8", levels),
            constant(graph, f"{layer.name}_scales", scales),
            # x86 without VNNI needs unsigned weights; of weights without zero points onnxruntime makes wrong ones.
            constant(graph, f"{layer.name}_zero_points", np.zeros(len(scales), np.int8)),
        ]
        layer.matmul.replace_input_with(1, tape.op("DequantizeLinear", values, {"axis": 1}))
        layer.matmul.replace_input_with(0, pair)
    graph.insert_before(layers[0].matmul, tape.nodes)


def pack_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(V, W) -> words (V, 1, N), N = ceil(W/3), and a scale per row (V, 1, 1): 255 levels, three values to a word.

    TensorRT's int8 is for Q and DQ: its parser's table lists it for neither Gather nor Cast (its layers' pages do),
    and a DQ before the Gather widens the whole table, 1 GB, either when the engine is built or at every text.
    Int32 is listed for all of Gather, Div, Mod, Cast. No number here is negative, so no two ways of dividing differ.
    Value k N + j of a row is digit k of word j; the last words' places beyond W hold nothing.
    """
    scales = np.maximum(table.max(axis=1, keepdims=True), -table.min(axis=1, keepdims=True)) / _TABLE_LEVELS
    scales[scales == 0] = 1.0
    count, width = -(-table.shape[1] // _PER_WORD), table.shape[1]
    words = np.empty((len(table), 1, count), np.int32)
    for start in range(0, len(table), _ROWS_AT_ONCE):  # at once it would take five tables' memory
        part = slice(start, start + _ROWS_AT_ONCE)
        digits = np.zeros((len(table[part]), _PER_WORD * count), np.int32)
        digits[:, :width] = np.rint(table[part] / scales[part]) + _TABLE_LEVELS
        words[part] = (digits.reshape(len(digits), _PER_WORD, -1) * _powers()).sum(axis=1, keepdims=True)
    return words, scales.astype(np.float32)[:, None]


def _powers() -> NDArray[np.int32]:
    return (_BASE ** np.arange(_PER_WORD, dtype=np.int32))[:, None]


def _is_table_lookup(node: ir.Node) -> bool:
    if node.op_type != "Gather" or (table := node.inputs[0]) is None or not table.is_initializer():
        return False
    return table.dtype == ir.DataType.FLOAT and len(table.shape or ()) == 2


def _pack_table(graph: ir.Graph, gather: ir.Node) -> None:
    table, ids = input_of(gather, 0), input_of(gather, 1)
    if ids.shape is None:
        raise PreconditionError(f"{table.name} {table.shape}: wanted ids of known rank")
    rows = array_of(table)
    words, scales = pack_rows(rows)
    tape = ir.tape.Tape()

    def number(name: str, array: NDArray[np.generic]) -> ir.Value:
        return constant(graph, f"{table.name}_{name}", array)

    word = tape.op("Gather", [number("words", words), ids], {"axis": 0})  # (..., 1, N)
    power, base = number("powers", _powers()), number("base", np.array(_BASE, np.int32))
    digits = tape.op("Mod", [tape.op("Div", [word, power]), base])
    wide = tape.op("Cast", [digits], {"to": ir.DataType.FLOAT})  # (..., 3, N)
    levels = tape.op("Sub", [wide, number("zero", np.array(_TABLE_LEVELS, np.float32))])
    values = tape.op("Mul", [levels, tape.op("Gather", [number("scales", scales), ids], {"axis": 0})])
    shape = np.array([*(0 for _ in ids.shape), -1], np.int64)
    row = tape.op("Reshape", [values, number("row", shape)])  # (..., 3 N)
    if (width := rows.shape[1]) % _PER_WORD:
        cut = [number(name, np.array([at], np.int64)) for name, at in (("begin", 0), ("end", width), ("axis", -1))]
        row = tape.op("Slice", [row, *cut])  # (..., W)
    ir.convenience.replace_nodes_and_values(graph, gather, [gather], tape.nodes, [gather.outputs[0]], [row])


# What TensorRT accepts.

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
    "CumSum": Accepted(reads=_NUMBERS, axes=1),
    "DequantizeLinear": Accepted(reads=_FLOATS | _INT8, gives=1, source=_PARSER_CODE),
    "Div": Accepted(reads=_NUMBERS),
    "Equal": Accepted(reads=_NUMBERS, gives=ir.DataType.BOOL),
    "Expand": Accepted(reads=_NUMBERS | _BOOLS),
    "Gather": Accepted(reads=_NUMBERS | _BOOLS),
    "Gelu": Accepted(reads=_FLOATS),
    "LayerNormalization": Accepted(reads=_FLOATS),
    "MatMul": Accepted(reads=_FLOATS),
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
    "Slice": Accepted(reads=_NUMBERS | _BOOLS),
    "Softmax": Accepted(reads=_FLOATS),
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
