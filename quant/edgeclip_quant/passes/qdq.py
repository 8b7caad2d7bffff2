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

TensorRT's side, and how it is checked without one: `tensorrt_parser`. Unproved until an engine is built: that the
fusions happen, and how fast they are. Placement is NVIDIA's own: all inputs of the GEMMs but pixels, no outputs, no
biases, one pair for a tensor however many read it, activations by tensor, weights by output
(TensorRT-Model-Optimizer, modelopt/onnx/quantization/ort_utils.py, `configure_ort`; onnxruntime-inference-examples,
quantization/nlp/bert/trt, {'MatMul': 1}). Attention's two products, softmax, norms and the residual stay floating.
Free dimensions (batch, sequence) need an optimisation profile there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError, common

from edgeclip_graph.frame import array_of, constant, input_of
from edgeclip_graph.linear import LinearLayer, linear_layers
from edgeclip_quant.graph_runner import Progress
from edgeclip_quant.inputs.layer_inputs import Observation
from edgeclip_quant.kernels import LEVELS, Kernel, Plan, has_pairs, quantize_columns
from edgeclip_quant.passes.narrowing import Narrowing, Prepared
from edgeclip_quant.passes.smoothing import fold_into_norm, is_fed_by_norm, smoothing_factors
from edgeclip_quant.passes.tensorrt_parser import check_accepted
from edgeclip_quant.pick.kernel_plan import reads_pixels, relative_error

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
    """How a tensor is rounded: divided by `factors` (in,), None without, then cut off at `largest` and given 255
    levels.

    `errors` are the relative errors of the layers that read it, on rows that the rounding was not made from.
    """

    factors: NDArray[np.float32] | None
    largest: float
    errors: tuple[float, ...]


class PairNarrowing(Narrowing):
    """A tensorrt graph whose layers are int8 between pairs, or stay fp32; `kernel` as in `plan_pairs`."""

    def __init__(self, source: Prepared, kernel: Kernel, progress: Progress) -> None:
        progress(f"planning the {source.name} graph", 0, 1)
        super().__init__(source, plan_pairs(source.model, source.seen, kernel), source.weights, progress)

    def narrow(self, plans: Mapping[str, Plan]) -> ir.Model:
        """The layers with pairs or without, and the token table in int8."""
        copy = self._source.model.clone()
        quantize_for_tensorrt(copy, plans)
        return copy


def plan_pairs(
    model: ir.Model,
    seen: Mapping[str, Observation],
    kernel: Kernel = "int8 static",
    *,
    max_error: float = MAX_ERROR,
) -> dict[str, Sequence[Plan]]:
    """The plans of each linear layer of a tensorrt graph: int8, where no reader of its input has an error above
    `max_error`, and fp32.

    What reads pixels stays fp32, as in `kernels_of`: of all that the vision graph of jina-embeddings-v4 lost, two
    thirds were that layer's. `kernel` is "int7 static" where OpenVINO is to run the graph on x86 without VNNI: it
    adds two products in 16 bits. `seen` is the result of `observe` on the same graph.

    Raises PreconditionError where a layer was not observed or saw NaN or infinity.
    """
    readers: dict[ir.Value, list[LinearLayer]] = {}
    layers = linear_layers(model.graph)
    for layer in layers:
        if layer.name not in seen or not np.isfinite(seen[layer.name].largest).all():
            raise PreconditionError(f"{layer.name} was not calibrated, or on what is no number")
        if not reads_pixels(layer.x):
            readers.setdefault(layer.x, []).append(layer)
    plans: dict[str, Sequence[Plan]] = {layer.name: [Plan(kernel="fp32")] for layer in layers}
    for some in readers.values():
        rounding = plan_rounding([layer.weight for layer in some], seen[some[0].name], in_pairs=has_pairs(kernel))
        for layer, error in zip(some, rounding.errors, strict=True):
            plan = Plan(kernel=kernel, factors=rounding.factors, largest=rounding.largest, error=error)
            if max(rounding.errors) <= max_error:
                plans[layer.name] = [plan, *plans[layer.name]]
    return plans


def quantize_for_tensorrt(model: ir.Model, plans: Mapping[str, Plan]) -> None:
    """Make the linear layers and the token table of a tensorrt graph int8, in place, as planned for each layer.

    Layers that are int8 already stay as they are. Raises BuildError where TensorRT would refuse the result.
    """
    readers: dict[ir.Value, list[LinearLayer]] = {}
    for layer in linear_layers(model.graph):
        if plans[layer.name].kernel != "fp32":
            readers.setdefault(layer.x, []).append(layer)
    for x, layers in readers.items():
        _quantize_layers(model.graph, x, layers, plans[layers[0].name])
    for node in [node for node in model.graph if _is_table_lookup(node)]:
        _pack_table(model.graph, node)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    check_accepted(model)


def plan_rounding(weights: Sequence[NDArray[np.float32]], seen: Observation, *, in_pairs: bool = False) -> Rounding:
    """The rounding of a tensor that weights (in, out) multiply; either half of the rows tests the other's rounding.
    `in_pairs` as in `quantize_columns`.
    """
    joined = np.concatenate(weights, axis=1)
    halves = np.array_split(seen.rows, 2) if len(seen.rows) > 1 else [seen.rows, seen.rows]
    exact = np.concatenate(halves) @ joined
    best: tuple[float | None, NDArray[np.float32]] | None = None
    for strength in (None, *_STRENGTHS):
        found = np.concatenate(
            [
                rounded_product(rows, joined, *_fit(np.abs(other).max(axis=0), joined, strength), in_pairs=in_pairs)
                for rows, other in zip(halves, reversed(halves), strict=True)
            ]
        )
        worth = 1.0 if best is None or best[0] is not None else _WORTH_SMOOTHING
        if best is None or relative_error(found, exact) < worth * relative_error(best[1], exact):
            best = strength, found
    assert best is not None
    factors, largest = _fit(seen.largest, joined, best[0])
    ends = np.cumsum([weight.shape[1] for weight in weights])[:-1]
    parts = zip(np.split(best[1], ends, axis=1), np.split(exact, ends, axis=1), strict=True)
    return Rounding(factors=factors, largest=largest, errors=tuple(relative_error(*part) for part in parts))


def rounded_product(
    rows: NDArray[np.float32],
    weight: NDArray[np.float32],
    factors: NDArray[np.float32] | None,
    largest: float,
    *,
    in_pairs: bool = False,
) -> NDArray[np.float32]:
    """The int8 layer's result for rows (R, in) and a weight (in, out), without its bias; in numpy."""
    if factors is not None:
        rows, weight = rows / factors, weight * factors[:, None]
    levels, scales = quantize_columns(weight, in_pairs=in_pairs)
    scale = _scale(largest)
    product: NDArray[np.float32] = (np.rint(rows / scale).clip(-LEVELS - 1, LEVELS) * scale) @ (levels * scales)
    return product


def _fit(
    largest: NDArray[np.float32], weight: NDArray[np.float32], strength: float | None
) -> tuple[NDArray[np.float32] | None, float]:
    factors = None if strength is None else smoothing_factors(largest, weight, strength)
    return factors, float((largest if factors is None else largest / factors).max())


def _scale(largest: float) -> np.float32:
    return np.float32(largest / LEVELS if largest else 1.0)


def _quantize_layers(graph: ir.Graph, x: ir.Value, layers: Sequence[LinearLayer], plan: Plan) -> None:
    """Add one pair for x, and an int8 weight behind a DequantizeLinear for each layer."""
    name, factors = layers[0].name, plan.factors
    scale = constant(graph, f"{name}_input_scale", np.array(_scale(plan.largest)))
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
        levels, scales = quantize_columns(weight, in_pairs=has_pairs(plan.kernel))
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
