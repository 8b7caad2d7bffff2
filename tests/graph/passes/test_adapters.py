"""What an adapter adds to a layer is added inside its second product; other sums stay as they are."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import PreconditionError

from edgeclip.engine.ort import start_session
from edgeclip_graph.passes.adapters import AddInProduct

# Another order of summation of numbers up to 64.
SAME = 1e-5
GRAPH = """<ir_version: 10, opset_import: ["": 20]> adapted (float[rows, 8] x, float[8, 2] a, float[2, 8] b)
    => (float[rows, 8] y) <float[8, 8] w = {VALUES}> {
    base = MatMul(x, w)
    narrow = MatMul(x, a)
    added = MatMul(narrow, b)
    sum = Add(SUM)
    again = MatMul(x, w)
    y = Add(sum, again)
}""".replace("VALUES", ", ".join(str(number / 64) for number in range(64)))


@pytest.mark.parametrize(("turns", "first"), [(True, "FusedMatMul"), (False, "MatMul")])
@pytest.mark.parametrize("total", ["added, base", "base, added"])
def test_an_adapter_is_added_inside_its_product(total: str, turns: bool, first: str) -> None:
    """On either side of the sum. The product with constant weights is no adapter, and keeps its Add."""
    model = ir.from_onnx_text(GRAPH.replace("SUM", total))
    for value, shape in (("narrow", ("rows", 2)), ("base", ("rows", 8)), ("added", ("rows", 8))):
        next(one for node in model.graph for one in node.outputs if one.name == value).shape = ir.Shape(shape)
    draw = np.random.default_rng(0)
    feed = {
        name: draw.normal(size=shape).astype("f") for name, shape in (("x", (3, 8)), ("a", (8, 2)), ("b", (2, 8)))
    }
    wanted = answer(model, feed)
    model = AddInProduct(turns=turns)(model).model
    assert [node.op_type for node in model.graph] == ["MatMul", first, "Gemm", "MatMul", "Add"]
    np.testing.assert_allclose(answer(model, feed), wanted, rtol=0, atol=SAME)
    with pytest.raises(PreconditionError, match="no adapter in the graph"):
        AddInProduct(turns=turns)(model)


def answer(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    """The graph's answer by onnxruntime."""
    (found,) = start_session(ir.to_proto(model).SerializeToString()).run(None, feed)
    return np.asarray(found)
