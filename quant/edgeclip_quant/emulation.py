"""Run an fp16 graph on a CPU with the rounding of a GPU.

On the CPU onnxruntime has no fp16 kernel for most operators. It runs them in fp32 between Casts of its own, and
removes every pair of these that undo each other, at any level of optimisation: nothing but the ends is rounded, and
no overflow shows (300 * 300 in fp16 gives 90000, with 1.27 and with 1.31). Pairs that stand in the model it keeps. So
the graph is rewritten: fp32 throughout, and a pair of Casts behind every operator that computes.

Products add up in fp32, as onnxruntime has cuBLAS do. Where its CUDA kernels round inside, they are spelled out: Gelu
and QuickGelu work in fp16 from end to end (so 1 - sigmoid loses the digits of a small sigmoid), and an attention with
a mask stores its scores and its weights as fp16. Not emulated: flash attention, which rounds the weights but not the
scores, and the two products inside a rotary embedding.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, common

from edgeclip.engine.ort import import_onnxruntime, start_session
from edgeclip.errors import BuildError
from edgeclip_graph.frame import constant
from edgeclip_graph.operators import FUSED_ATTENTION
from edgeclip_quant.passes.float16 import MOVES
from edgeclip_quant.passes.operator_types import FillTypes

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_FULL, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
# What moves values and computes none: rounded values stay rounded.
_MOVES = MOVES | {"Expand", "Gather", "Identity", "If", "Where"}
# In fp16 it is infinite.
_SQUARE = """<ir_version: 10, opset_import: ["": 20]> square (float16[1] x) => (float[1] y) {
    wide = Cast<to=1>(x)
    product = Mul(wide, wide)
    half = Cast<to=10>(product)
    again = Cast<to=1>(half)
    y = Neg(again)
}"""


@contextmanager
def emulating_session(path: Path, folder: Path, threads: int | None = None) -> Iterator["InferenceSession"]:
    """A session on the CPU that rounds as the fp16 graph at `path` does on CUDA. An fp32 graph runs as it is.

    `folder` holds a copy of the graph in fp32 meanwhile, which takes twice the room of the weights. Raises BuildError
    when this onnxruntime removes roundings, and otherwise what onnxruntime raises.
    """
    _check_rounding(threads)
    model = FillTypes()(ir.load(path)).model
    for step in (SpellOutRounding(), common.NameFixPass()):
        step(model)
    with tempfile.TemporaryDirectory(dir=folder, prefix="emulation-") as place:
        copy = Path(place) / "emulated.onnx"
        ir.save(model, copy, external_data=f"{copy.name}_data")
        del model
        yield start_session(copy, threads=threads)


def _check_rounding(threads: int | None) -> None:
    """BuildError for an onnxruntime that removes the Casts, because then every fp16 graph would pass."""
    model = onnx.parser.parse_model(_SQUARE).SerializeToString()
    (found,) = start_session(model, threads=threads).run(None, {"x": np.array([300], np.float16)})
    if not np.isinf(found).all():
        raise BuildError(
            f"onnxruntime {import_onnxruntime().__version__} takes Casts to fp16 away, so it cannot show what fp16 "
            "costs: 300 * 300 gave a finite number; install another (1.27 to 1.31 keep them)"
        )


class SpellOutRounding(InPlacePass):
    """Turns an fp16 graph into an fp32 one that rounds to fp16 where the fp16 one would.

    Postcondition: nothing is fp16 but between the two Casts of a rounding.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the graph and its subgraphs; weights keep their values, which fp32 holds."""
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in list(graph):
                if any(value.dtype == _HALF for value in node.outputs):
                    _spell_out(model.graph, graph, node)
            for value in graph.initializers.values():
                if value.dtype == _HALF:
                    _widen(value)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that fp16 stands only between two Casts."""
        for node in model.graph.all_nodes():
            for value in (*node.inputs, *node.outputs):
                if value and value.dtype == _HALF and node.op_type != "Cast":
                    raise PostconditionError(f"{node.op_type} {node.name} has fp16 {value.name} still")


def _widen(weights: ir.Value) -> None:
    """The same values as fp32, made when they are saved."""
    stored = weights.const_value
    assert stored is not None
    weights.const_value = ir.LazyTensor(
        lambda: ir.tensor(stored.numpy().astype(np.float32)), _FULL, ir.Shape(stored.numpy().shape), name=weights.name
    )
    weights.dtype = _FULL


def _spell_out(main: ir.Graph, graph: ir.Graph, node: ir.Node) -> None:
    rounding = _Rounding(main)
    result = _spelled(rounding, node)
    for value in node.outputs:
        if node.op_type != "Cast":
            value.type = ir.TensorType(_FULL)
    if result is not None:
        ir.convenience.replace_nodes_and_values(graph, node, [node], rounding.tape.nodes, [node.outputs[0]], [result])
    elif node.op_type not in _MOVES:
        for value in node.outputs:
            uses, places = list(value.uses()), [at for at, one in enumerate(graph.outputs) if one is value]
            rounded = rounding.widened(value) if node.op_type == "Cast" else rounding.rounded(value)
            for user, index in uses:
                user.replace_input_with(index, rounded)
            for at in places:
                graph.outputs[at] = rounded
        graph.insert_after(node, rounding.tape.nodes)


class _Rounding:
    """Records fp32 nodes whose results are rounded to fp16."""

    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.tape = ir.tape.Tape()

    def exact(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.tape.op(op_type, inputs, attributes)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.rounded(self.exact(op_type, *inputs, **attributes))

    def rounded(self, value: ir.Value) -> ir.Value:
        half = self.tape.op("Cast", [value], {"to": _HALF})
        half.dtype, half.shape = _HALF, value.shape
        return self.widened(half)

    def widened(self, half: ir.Value) -> ir.Value:
        wide = self.tape.op("Cast", [half], {"to": _FULL})
        wide.dtype, wide.shape = _FULL, half.shape
        return wide

    def number(self, value: float) -> ir.Value:
        """A constant, rounded to fp16."""
        return constant(self.main, f"rounded_{value:g}", np.array(np.float16(value), np.float32))

    def integers(self, *values: int) -> ir.Value:
        return constant(self.main, "integers_" + "_".join(map(str, values)), np.array(values, np.int64))


def _spelled(rounding: _Rounding, node: ir.Node) -> ir.Value | None:
    """The fp32 nodes for a node whose CUDA kernel rounds inside; None for any other."""
    x = node.inputs[0]
    assert x is not None
    if node.op_type == "Gelu" and node.attributes.get_string("approximate", "none") == "none":
        return _gelu(rounding, x)
    if node.op_type == "QuickGelu":
        return _quick_gelu(rounding, x, node.attributes["alpha"].as_float())
    if node.op_type == FUSED_ATTENTION and len(node.inputs) > 4 and node.inputs[4] is not None:
        return _masked_attention(rounding, node)
    return None


def _gelu(rounding: _Rounding, x: ir.Value) -> ir.Value:
    """x / 2 (1 + erf(x / sqrt 2)), from left to right (onnxruntime's cu_inc/common.cuh)."""
    erf = rounding.op("Erf", rounding.op("Mul", x, rounding.number(0.5**0.5)))
    half_x = rounding.op("Mul", x, rounding.number(0.5))
    return rounding.op("Mul", half_x, rounding.op("Add", rounding.number(1), erf))


def _quick_gelu(rounding: _Rounding, x: ir.Value, alpha: float) -> ir.Value:
    """x sigmoid(alpha x), the sigmoid of a negative number as 1 less that of the positive (activations_impl.cu)."""
    one = rounding.number(1)
    v = rounding.op("Mul", x, rounding.number(alpha))
    shrunk = rounding.op("Exp", rounding.exact("Neg", rounding.exact("Abs", v)))
    positive = rounding.op("Div", one, rounding.op("Add", one, shrunk))
    is_negative = rounding.exact("Less", v, rounding.number(0))
    return rounding.op("Mul", x, rounding.exact("Where", is_negative, rounding.op("Sub", one, positive), positive))


def _masked_attention(rounding: _Rounding, node: ir.Node) -> ir.Value:
    """q k^T stored, scale and mask and softmax in fp32, its weights stored (attention_softmax.cu)."""
    heads, scale = node.attributes["num_heads"].as_int(), node.attributes["scale"].as_float()
    hidden = node.attributes.get_float("mask_filter_value", -10000.0)
    split, join = rounding.integers(0, 0, heads, -1), rounding.integers(0, 0, -1)
    turned = [
        rounding.exact("Transpose", rounding.exact("Reshape", one, split), perm=perm)
        for one, perm in zip(node.inputs[:3], ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    ]
    scores = rounding.op("MatMul", turned[0], turned[1])  # (B, H, Tq, T)
    seen = rounding.exact("Cast", node.inputs[4], to=ir.DataType.BOOL)  # (B, T)
    bias = rounding.exact("Where", seen, rounding.number(0), rounding.number(hidden))
    bias = rounding.exact("Unsqueeze", bias, rounding.integers(1, 2))  # (B, 1, 1, T)
    scaled = rounding.exact("Mul", scores, constant(rounding.main, f"scale_{scale:g}", np.array(scale, np.float32)))
    weights = rounding.op("Softmax", rounding.exact("Add", scaled, bias), axis=-1)
    out = rounding.op("MatMul", weights, turned[2])  # (B, H, Tq, D)
    return rounding.exact("Reshape", rounding.exact("Transpose", out, perm=[0, 2, 1, 3]), join)
