"""The kernels that a linear layer can be computed by, and what each computes.

| kernel        | operators                              | weights                    | scale of the input         |
| ------------- | -------------------------------------- | -------------------------- | -------------------------- |
| int8 static   | QuantizeLinear, MatMulIntegerToFloat   | int8, a scale per output   | one, fixed by calibration  |
| int8 per row  | the same GEMM, elementwise round it    | int8, a scale per output   | a row's own                |
| int8 per call | DynamicQuantizeMatMul                  | int8, a scale per output   | the whole input's own      |
| int7 static   | as int8 static                         | int8, pairs of 8 bits      | one, fixed by calibration  |
| int7 per row  | as int8 per row                        | int8, pairs of 8 bits      | a row's own                |
| int8 blocks   | MatMulNBits                            | 8 bit, a scale per block   | one per block of a row     |
| int4 blocks   | MatMulNBits                            | 4 bit, scale, zero point   | one per block of a row     |
| fp32          | MatMul, Add                            | as they are                | none                       |

Times on two cores with AVX-512 VNNI, 1024 to 4096, as fractions of fp32's: at 16 rows 0.30 static, 0.34 per row, 0.36
blocks; at 1297 rows 0.31, 0.39 and 0.6. Per call is as quick as static and is not used in a bundle: a vector would
depend on the other inputs of its batch, and one token with large values takes the precision of all others. It is here
for comparison. `static` is for inputs that a norm gives: their rows are of one length, so a fixed scale fits them,
and no value lies far outside of what calibration saw.

`int7` is for x86 without VNNI, which multiplies two neighbouring inputs (0 to 255) with two neighbouring weights of
an output and adds the products in 16 bits. Weights of 7 bits (64) cannot overflow there, and no more can neighbours
that have 128 together, which loses less: a scale follows from the largest pair, not from twice the largest weight. So
onnxruntime needs no guard against overflow (`edgeclip.engine.providers.may_overflow`). Fractions of fp32's time on
one thread without VNNI, 16 rows of 1024 to 4096: 0.62 with AVX-512, 0.48 with AVX2; 8 bits with the guard take 0.93
and 0.63. With VNNI, 7 bits take as long as 8.
"""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import array_of, constant, store
from edgeclip_graph.lazy import lazy
from edgeclip_graph.linear import LinearLayer, linear_layers, split_of, width_of
from edgeclip_graph.operators import CONTRIB
from edgeclip_quant.passes.smoothing import fold_into_norm, is_fed_by_norm
from edgeclip_quant.passes.weight_blocks import blocks_product, matmul_blocks

Kernel = Literal[
    "int8 static",
    "int8 per row",
    "int8 per call",
    "int7 static",
    "int7 per row",
    "int8 blocks",
    "int4 blocks",
    "fp32",
]
Array = NDArray[np.float32]

STATIC: frozenset[Kernel] = frozenset(("int8 static", "int7 static"))
PER_ROW: frozenset[Kernel] = frozenset(("int8 per row", "int7 per row"))
# Never -128: arm64 without dotprod multiplies -128 by a zero input wrongly (`edgeclip.engine.products`).
LEVELS = 127
_PAIRED: frozenset[Kernel] = frozenset(("int7 static", "int7 per row"))
_SMALLEST_SCALE = np.finfo(np.float32).tiny
_ALL_LEVELS = 255
_ZERO = 128  # of the unsigned input
# The least value of x Phi(x) is -0.16997, at -0.7518.
GELU_LOWEST = 0.17
_SMALLEST_ROW = 1e-12
_NUMBERS_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one layer is computed.

    `factors` (in,) divide its input and multiply its weights first (`smoothing`), None without. `largest` is the
    largest value that a static scale represents. `shift` is added to an input that is never below -shift, so that all
    256 levels of a row's scale are used; the bias subtracts it again. `error` is the output's, |y' - y| / |y|, on the
    observed inputs; `loss` is what plans of one layer are compared by.
    """

    kernel: Kernel
    factors: Array | None = None
    largest: float = 0.0
    shift: float = 0.0
    error: float = 0.0
    loss: float = 0.0


def has_pairs(kernel: Kernel) -> bool:
    """Whether neighbouring weights of an output share 8 bits (`int7`)."""
    return kernel in _PAIRED


def quantize_columns(weight: Array, *, in_pairs: bool = False) -> tuple[NDArray[np.int8], Array]:
    """(in, out) -> int8 from -127 to 127, of the same shape, and a scale per output (out,); symmetric, round to
    nearest.

    `in_pairs`: the positive weights of rows 2k and 2k + 1 are at most 128 together, the negative ones at least -128.
    """
    reach = _largest_pairs(weight) if in_pairs else np.abs(weight).max(axis=0)
    scales = (reach / LEVELS).astype(np.float32)
    scales[scales < _SMALLEST_SCALE] = 1.0  # which is not exact, so that a weight could become more than 127 of it
    levels = np.empty(weight.shape, np.int8)
    step = max(1, _NUMBERS_AT_ONCE // len(weight))
    for start in range(0, weight.shape[1], step):  # as much as stays in a processor's cache
        some = slice(start, start + step)
        wide = weight[:, some] / scales[some]
        levels[:, some] = np.rint(wide, out=wide)
    return levels, scales


def _largest_pairs(weight: Array) -> Array:
    """The largest sum of weights of one sign in rows 2k and 2k + 1, for each output."""
    largest = np.zeros(weight.shape[1], np.float32)
    for sign in (1, -1):
        one_sided = np.maximum(sign * weight, 0)
        first, second = one_sided[::2], one_sided[1::2]
        largest = np.maximum(largest, first.max(axis=0))
        if len(second):
            largest = np.maximum(largest, (first[: len(second)] + second).max(axis=0))
    return largest


def lowest(x: ir.Value) -> float:
    """The greatest magnitude below zero that x can have, 0 where nothing is known about it."""
    producer = x.producer()
    return GELU_LOWEST if producer is not None and producer.op_type == "Gelu" else 0.0


def product(kernel: Kernel, rows: Array, weight: Array, *, largest: float = 0.0, shift: float = 0.0) -> Array:
    """The result of a kernel for rows (R, in) and a weight (in, out), without the bias; in numpy."""
    if kernel == "fp32":
        return rows @ weight
    if kernel == "int8 blocks" or kernel == "int4 blocks":
        return blocks_product(rows, weight, 8 if kernel == "int8 blocks" else 4)
    if kernel == "int8 per call":
        low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
        step = (high - low) / 255 or 1.0
        rounded = (np.clip(np.rint(rows / step) - np.rint(low / step), 0, 255) + np.rint(low / step)) * step
    elif shift:
        step = (rows + shift).max(axis=1, keepdims=True) / _ALL_LEVELS
        rounded = np.rint((rows + shift) / step) * step - shift
    else:
        reach = np.abs(rows).max(axis=1, keepdims=True) if kernel in PER_ROW else np.array(largest)
        step = np.maximum(reach, _SMALLEST_ROW) / LEVELS
        rounded = np.clip(np.rint(rows / step), -LEVELS - 1, LEVELS) * step
    levels, scales = quantize_columns(weight, in_pairs=has_pairs(kernel))
    found: Array = (rounded.astype(np.float32) @ levels.astype(np.float32)) * scales
    return found


class ReplaceLayers(InPlacePass):
    """Computes every linear layer as planned; `plans` are by layer.

    `separates`: a layer whose output is split at once (q, k and v; gate and up) becomes one product for each part.
    That costs a few operators and saves the copies: 46 ms of 1400 for an image at full size. Layers that read one
    input round it once. New weights are computed when they are read, so no more than one is in memory.

    Precondition: there is a linear layer, and each has a plan. Postcondition: those planned as fp32 are left, and no
    others.
    """

    def __init__(self, plans: Mapping[str, Plan], *, separates: bool) -> None:
        super().__init__()
        self._plans, self._separates = plans, separates

    def call(self, model: ir.Model) -> PassResult:
        """Replace the layers one after the other."""
        replacing = _Replacing(model.graph, separates=self._separates)
        for layer in linear_layers(model.graph):
            replacing.replace(layer, self._plans[layer.name])
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """Every layer has a plan."""
        names = {layer.name for layer in linear_layers(model.graph)}
        if not names:
            raise PreconditionError("no linear layer in the graph")
        if missing := sorted(names - self._plans.keys()):
            raise PreconditionError(f"no plan for {', '.join(missing)}")

    def ensures(self, model: ir.Model) -> None:
        """Only layers that stay fp32 are left."""
        left = {layer.name for layer in linear_layers(model.graph)}
        wanted = {name for name, plan in self._plans.items() if plan.kernel == "fp32"}
        if left != wanted:
            raise PostconditionError(f"{len(left)} linear layers left in the graph, wanted {len(wanted)}")


def replace_layer(graph: ir.Graph, layer: LinearLayer, plan: Plan, *, separates: bool = False) -> None:
    """Compute the layer as planned; `separates` as in `ReplaceLayers`."""
    _Replacing(graph, separates=separates).replace(layer, plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rounded:
    """An input as integers: (levels - zero) step, times its row's largest if there is one, less the shift."""

    levels: ir.Value
    step: ir.Value
    zero: ir.Value
    largest: ir.Value | None
    shift: float


class _Replacing:
    """Replaces layers of one graph, and remembers the inputs that were rounded."""

    def __init__(self, graph: ir.Graph, *, separates: bool) -> None:
        self._graph, self._separates = graph, separates
        self._rounded: dict[Hashable, _Rounded] = {}

    def replace(self, layer: LinearLayer, plan: Plan) -> None:
        """Compute one layer as planned."""
        if plan.kernel == "fp32":
            return
        graph, tape, x, name, stored = self._graph, ir.tape.Tape(), layer.x, layer.name, layer.weight_value
        factors = plan.factors

        def weight() -> Array:
            array = array_of(stored)
            return array if factors is None else array * factors[:, None]

        if factors is not None:
            if is_fed_by_norm(x):
                fold_into_norm(graph, x, factors)
            else:
                inverse = constant(graph, f"{name}_inverse_factors", (1 / factors).astype(np.float32))
                x = tape.op("Mul", [x, inverse])
        removed, replaced = list(layer.nodes), [layer.output]
        if plan.kernel == "int8 blocks" or plan.kernel == "int4 blocks":
            bits = 8 if plan.kernel == "int8 blocks" else 4
            outputs = [matmul_blocks(graph, tape, x, weight, layer.shape, layer.bias_value, name, bits)]
        elif plan.kernel == "int8 per call":
            levels, scales = _Columns(weight, layer.shape, [layer.shape[1]]).store(graph, 0, name)
            outputs = [tape.op("DynamicQuantizeMatMul", [x, levels, scales, None, layer.bias_value], domain=CONTRIB)]
        else:
            rounded = self._round(tape, x, plan, name)
            bias = None if layer.add is None else layer.bias
            split = split_of(layer) if self._separates else None
            if split is None:
                widths, names = [layer.shape[1]], [name]
            else:
                removed, replaced = [split, *removed], list(split.outputs)
                widths = list(map(width_of, replaced))
                names = [f"{name}_{number}" for number in range(len(widths))]
            columns = _Columns(weight, layer.shape, widths, in_pairs=has_pairs(plan.kernel))
            outputs = [
                _multiply(
                    graph, tape, rounded, columns, number, None if bias is None else bias[columns.of(number)], one
                )
                for number, one in enumerate(names)
            ]
        graph.opset_imports.setdefault(CONTRIB, 1)
        ir.convenience.replace_nodes_and_values(graph, removed[0], removed, tape.nodes, replaced, outputs)

    def _round(self, tape: ir.tape.Tape, x: ir.Value, plan: Plan, name: str) -> _Rounded:
        """The input as integers; one that was rounded alike before is not rounded again."""
        key = (x, plan.kernel, plan.shift, plan.largest)
        if key not in self._rounded:
            self._rounded[key] = _round(self._graph, tape, x, plan, name)
        return self._rounded[key]


class _Columns:
    """A weight of one product or of several, by columns, in integers: computed when one of them is first read.

    It is read and rounded once: scales stay, and levels until each product has read its own.
    """

    def __init__(
        self, weight: Callable[[], Array], shape: tuple[int, int], widths: Sequence[int], *, in_pairs: bool = False
    ) -> None:
        self._weight, self._inputs, self._in_pairs = weight, shape[0], in_pairs
        ends = list(itertools.accumulate(widths))
        self._parts = [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]
        self._levels: NDArray[np.int8] | None = None
        self._unread: set[int] = set()
        self._scales: Array | None = None

    def of(self, number: int) -> slice:
        """The columns of one product."""
        return self._parts[number]

    def store(self, graph: ir.Graph, number: int, name: str) -> tuple[ir.Value, ir.Value]:
        """The levels and the scales of one product as constants; levels first: files are written in that order."""
        part = self._parts[number]
        width = part.stop - part.start
        levels = lazy(f"{name}_int8", ir.DataType.INT8, (self._inputs, width), lambda: self.levels(number))
        scales = lazy(f"{name}_scales", ir.DataType.FLOAT, (width,), lambda: self.scales(number))
        return store(graph, levels), store(graph, scales)

    def levels(self, number: int) -> NDArray[np.int8]:
        """The levels of one product (in, width)."""
        if self._levels is None:
            self._levels, self._scales = quantize_columns(self._weight(), in_pairs=self._in_pairs)
            self._unread = set(range(len(self._parts)))
        found = self._levels[:, self._parts[number]]
        self._unread.discard(number)
        if not self._unread:
            self._levels = None
        return found

    def scales(self, number: int) -> Array:
        """The scales of one product (width,)."""
        if self._scales is None:
            self._scales = quantize_columns(self._weight(), in_pairs=self._in_pairs)[1]
        return self._scales[self._parts[number]]


def _round(graph: ir.Graph, tape: ir.tape.Tape, x: ir.Value, plan: Plan, name: str) -> _Rounded:
    """Static: x / step. Per row: x / r in steps of 1/127, r = max|x|; shifted: (x + c) / r in 1/255, r of x + c."""
    zero = constant(graph, "int8_zero", np.array(_ZERO, np.uint8))
    if plan.kernel in STATIC:
        step = constant(graph, f"{name}_step", np.array(max(plan.largest, _SMALLEST_ROW) / LEVELS, np.float32))
        levels = tape.op("QuantizeLinear", [x, step, zero])
        return _Rounded(levels=levels, step=step, zero=zero, largest=None, shift=0.0)
    last = constant(graph, "int8_last_axis", np.array([-1], np.int64))
    if plan.shift:
        step = constant(graph, "uint8_step", np.array(1 / _ALL_LEVELS, np.float32))
        zero = constant(graph, "uint8_zero", np.array(0, np.uint8))
        x = tape.op("Add", [x, constant(graph, "int8_shift", np.array(plan.shift, np.float32))])
        largest = tape.op("ReduceMax", [x, last], {"keepdims": 1})
    else:
        step = constant(graph, "int8_step", np.array(1 / LEVELS, np.float32))
        # A row of zeros becomes 0 / 0, whatever integers that gives, and those times its largest, which is 0.
        largest = tape.op("ReduceMax", [tape.op("Abs", [x]), last], {"keepdims": 1})
    levels = tape.op("QuantizeLinear", [tape.op("Div", [x, largest]), step, zero])
    return _Rounded(levels=levels, step=step, zero=zero, largest=largest, shift=plan.shift)


def _multiply(
    graph: ir.Graph,
    tape: ir.tape.Tape,
    rounded: _Rounded,
    columns: _Columns,
    number: int,
    bias: Array | None,
    name: str,
) -> ir.Value:
    """One product with a weight (in, out) and a bias (out,), from which the shift is subtracted."""
    levels, scales = columns.store(graph, number, name)
    if rounded.shift:
        sums = array_of(levels).astype(np.float64).sum(axis=0) * array_of(scales)
        bias = ((0 if bias is None else bias) - rounded.shift * sums).astype(np.float32)
    inputs = [rounded.levels, levels, rounded.step, scales, rounded.zero]
    added = None if bias is None else constant(graph, f"{name}_bias", bias)
    if rounded.largest is None:
        return tape.op("MatMulIntegerToFloat", [*inputs, None, added], domain=CONTRIB)
    product = tape.op("MatMulIntegerToFloat", inputs, domain=CONTRIB)
    product = tape.op("Mul", [product, rounded.largest])
    return product if added is None else tape.op("Add", [product, added])
