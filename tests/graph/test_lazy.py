"""A derived constant is computed when it is read, and the passes that store weights anew read none of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeclip_graph.frame import array_of, constant
from edgeclip_graph.lazy import derive
from edgeclip_graph.passes.gemm import WeightsInPlace
from edgeclip_graph.passes.split_linear import SeparateParts
from tests.scenes.layer_graphs import layer_model, only_layer

WEIGHT = np.random.default_rng(0).standard_normal((6, 10), dtype=np.float32)
BIAS = np.arange(1, 11, dtype=np.float32)


def test_a_derived_constant_is_computed_when_it_is_read_and_not_kept(tmp_path: Path) -> None:
    reads: list[str] = []
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([3, 10]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="derived")
    turned = derive(graph, "turned", constant(graph, "weight", WEIGHT), (10, 6), counted(reads, lambda w: w.T))
    assert (turned.dtype, list(turned.shape or ())) == (ir.DataType.FLOAT, [10, 6])
    product = ir.node("MatMul", [x, turned])
    product.outputs[0].name = "y"
    graph.append(product)
    graph.outputs.append(product.outputs[0])
    assert reads == []
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "graph.onnx", external_data="data", size_threshold_bytes=0)
    assert len(reads) == 1
    written = ir.load(tmp_path / "graph.onnx").graph.initializers["turned"]
    assert (array_of(written) == WEIGHT.T).all()
    assert (array_of(turned) == WEIGHT.T).all() and len(reads) == 2


def test_nothing_is_derived_of_a_value_that_is_computed() -> None:
    graph = layer_model(WEIGHT, BIAS).graph
    with pytest.raises(ir.passes.PreconditionError, match="y holds no constant"):
        derive(graph, "turned", graph.outputs[0], (1,), lambda array: array)


@pytest.mark.parametrize(("step", "parts"), [(WeightsInPlace, ()), (SeparateParts, (4, 6))])
def test_a_pass_that_stores_weights_anew_reads_none_of_them(step: type[ir.passes.InPlacePass], parts: tuple) -> None:
    reads: list[str] = []
    model = layer_model(WEIGHT, BIAS, parts=parts)
    weight = only_layer(model).weight_value
    stored = counted(reads, lambda array: array)
    weight.const_value = ir.LazyTensor(
        lambda: ir.tensor(stored(WEIGHT)), ir.DataType.FLOAT, ir.Shape(WEIGHT.shape), name=weight.name
    )
    model = step()(model).model
    assert reads == []
    found = [array_of(value) for name, value in model.graph.initializers.items() if name.startswith("weight_")]
    joined = np.concatenate(found, axis=1) if parts else found[0][0].T
    assert (joined == WEIGHT).all()


def counted(reads: list[str], change: Callable[[NDArray], NDArray]) -> Callable[[NDArray], NDArray]:
    """`change`, which adds to `reads` whenever it is called."""

    def compute(array: NDArray) -> NDArray:
        reads.append("read")
        return change(array)

    return compute
