"""Which values of a small graph become fp16, where a cast stands, and what is refused."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx_ir.passes import PostconditionError, PreconditionError

from edgeclip_quant.passes.float16 import NarrowToHalf, narrow_to_half

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


def graph(text: str, **weights: NDArray[np.float32]) -> ir.Model:
    """A small graph in onnx's own notation, some of its inputs made weights."""
    header = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]> g '
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(header + text)))
    for name, array in weights.items():
        (value,) = [one for one in model.graph.inputs if one.name == name]
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return model


def narrowed(model: ir.Model, **ranges: float) -> tuple[dict[str, ir.DataType | None], list[str]]:
    """The type of every value, and what was kept; a range is 1 where nothing else is said."""
    names = [str(value.name) for node in model.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value]
    kept = narrow_to_half(model, {**dict.fromkeys(names, 1.0), **ranges})
    return {str(value.name): value.dtype for node in model.graph for value in node.outputs}, kept


PRODUCT = "(float[2,3] x, float[3,3] w, float[3] b) => (float[2,3] y) { p = MatMul(x, w)\n y = Add(p, b) }"
WEIGHT, BIAS = np.full((3, 3), 0.5, np.float32), np.ones(3, np.float32)


def test_inputs_and_outputs_keep_types_and_names() -> None:
    model = graph(PRODUCT, w=WEIGHT, b=BIAS)
    types, kept = narrowed(model)
    assert types == {"x_fp16": HALF, "p": HALF, "y_fp16": HALF, "y": FULL}
    assert kept == []
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [("y", FULL)]
    assert {name: value.dtype for name, value in model.graph.initializers.items()} == {"w_fp16": HALF, "b_fp16": HALF}


def test_products_with_weights_that_are_fed_keep_fp32() -> None:
    """A layer with an adapter: x W + (x A) B^T. What it adds is fp32, and the layer is not."""
    model = graph(
        """(float[2,3] x, float[3,3] w, float[3,1] a, float[3,1] b) => (float[2,3] y) {
            p = MatMul(x, w)
            low = MatMul(x, a)
            turned = Transpose<perm = [1, 0]>(b)
            added = MatMul(low, turned)
            sum = Add(p, added)
            y = MatMul(sum, w)
        }""",
        w=WEIGHT,
    )
    types, kept = narrowed(model)
    assert kept == []
    assert types["p"] == HALF
    assert {types[name] for name in ("low", "turned", "added")} == {FULL}
    assert [(value.name, value.dtype) for value in model.graph.inputs] == [("x", FULL), ("a", FULL), ("b", FULL)]


@pytest.mark.parametrize(
    ("weight", "x", "y", "is_kept"),
    [
        (1e5, 1.0, 1e4, True),  # would be infinite
        (1.0, 1.0, 3.0, False),
        (2.0**-20, 1e4, 0.03, False),  # exact, if small
        (1.01e-6, 1e4, 0.03, True),  # 17 steps of fp16, less 1 %: against the output's largest, 1 %
        (1.01e-6, 1.0, 1.0, False),  # the same, where it does not count
        (1e-8, 1e4, 3e-3, True),  # would be nothing
    ],
)
def test_weights_that_fp16_cannot_hold_keep_fp32(weight: float, x: float, y: float, is_kept: bool) -> None:
    model = graph(
        "(float[2,3] x, float[3,3] w, float[3,3] v) => (float[2,3] z) { y = MatMul(x, w)\n z = MatMul(y, v) }",
        w=np.full((3, 3), weight, np.float32),
        v=WEIGHT,
    )
    types, kept = narrowed(model, x=x, y=y)
    assert kept == (["w"] if is_kept else [])
    assert types["y"] == (FULL if is_kept else HALF)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-9])
def test_a_scale_of_small_weights_keeps_fp32(scale: float) -> None:
    """Small ones beside large ones may be flushed: it is the largest that they add up with."""
    model = graph(
        """(float[2,3] x, float[3] s, float[3,3] w) => (float[2,3] y) {
            n = LayerNormalization(x, s)
            y = MatMul(n, w)
        }""",
        s=np.array([scale, scale, 1e-10], np.float32),
        w=WEIGHT,
    )
    types, kept = narrowed(model)
    assert kept == (["s"] if scale == 1e-9 else [])
    assert types["n"] == (FULL if scale == 1e-9 else HALF)


def test_one_cast_serves_all_who_want_the_type() -> None:
    model = graph(
        """(float[2,3] x, float[3,3] w) => (float[2,3] y) {
            p = MatMul(x, w)
            q = Neg(p)
            a = MatMul(q, w)
            b = MatMul(q, w)
            y = Add(a, b)
        }""",
        w=WEIGHT,
    )
    types, kept = narrowed(model, p=1e5)
    assert kept == ["p"]
    assert [name for name in types if name.endswith("_fp16")] == ["q_fp16", "y_fp16"]
    assert (types["p"], types["q"], types["a"]) == (FULL, FULL, HALF)


def test_cheap_nodes_between_fp32_ones_are_fp32_and_cost_no_cast() -> None:
    model = graph(
        """(float[2,3] x, float[3,3] w) => (float[2,3] y) {
            p = MatMul(x, w)
            n = ReduceL2<keepdims = 1>(p)
            t = Transpose(n)
            u = Transpose(t)
            y = Div(p, u)
        }""",
        w=WEIGHT,
    )
    types, _ = narrowed(model)
    assert types == {"x_fp16": HALF, "p": HALF, "p_fp32": FULL, "n": FULL, "t": FULL, "u": FULL, "y": FULL}


def test_weights_that_both_types_read_are_there_twice() -> None:
    model = graph(
        """(float[2,3] x, float[3,3] w) => (float[2,3] y) {
            p = MatMul(x, w)
            y = MatMul(p, w)
        }""",
        w=WEIGHT,
    )
    narrowed(model, y=1e5)
    assert {name: value.dtype for name, value in model.graph.initializers.items()} == {"w": FULL, "w_fp16": HALF}


def test_statistics_that_are_not_fp32_by_themselves_keep_the_norm_fp32() -> None:
    text = """(float[2,3] x, float[3] s, float[3,3] w) => (float[2,3] y) {{
        n = LayerNormalization<stash_type = {stash}>(x, s)
        y = MatMul(n, w)
    }}"""
    for stash, dtype in ((1, HALF), (16, FULL)):
        types, _ = narrowed(graph(text.format(stash=stash), s=BIAS, w=WEIGHT))
        assert types["n"] == dtype


def test_what_a_schema_does_not_know_as_fp16_keeps_fp32() -> None:
    model = graph(
        """(float[2,3] x, int8[2,3] i, float s, float[3,3] w) => (float[2,3] y) {
            d = DequantizeLinear(i, s)
            a = Add(d, x)
            y = MatMul(a, w)
        }""",
        w=WEIGHT,
        s=np.array(0.1, np.float32),
    )
    types, kept = narrowed(model)
    assert (types["d"], types["a_fp16"], kept) == (FULL, HALF, [])


def refused(model: ir.Model, ranges: Mapping[str, float]) -> str:
    with pytest.raises((PreconditionError, PostconditionError)) as raised:
        narrow_to_half(model, ranges)
    return str(raised.value)


def test_what_cannot_be_narrowed_is_refused() -> None:
    ones = dict.fromkeys("xpya", 1.0)
    assert refused(graph(PRODUCT, w=WEIGHT, b=BIAS), {"x": 1.0}) == "no range was measured for p"
    large = dict.fromkeys("xpy", 1e6)
    assert refused(graph(PRODUCT, w=WEIGHT, b=BIAS), large) == "no product of the graph could be made fp16"
    twice = graph(PRODUCT, w=WEIGHT, b=BIAS)
    narrow_to_half(twice, ones)
    assert "is fp16 already" in refused(twice, ones)
    loop = "(float[2,3] x, float[3,3] w) => (float[2,3] y) { p = MatMul(x, w)\n y = com.microsoft.Other(p) }"
    model = graph(loop, w=WEIGHT)
    model.graph.outputs[0].dtype = FULL
    assert "no schema is known of com.microsoft.Other" in refused(model, ones)


def test_a_cast_that_undoes_another_is_not_left() -> None:
    model = graph(
        """(float[2,3] x, float[3,3] w) => (float[2,3] y) {
            a = Cast<to = 11>(x)
            p = Cast<to = 1>(a)
            y = MatMul(p, w)
        }""",
        w=WEIGHT,
    )
    with pytest.raises(PostconditionError, match="undoes"):
        NarrowToHalf(dict.fromkeys("xapy", 1.0))(model)
