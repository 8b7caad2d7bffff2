"""A derived constant is computed when it is read, and the passes that store weights anew read none of them."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeclip_graph.frame import array_of, constant
from edgeclip_graph.lazy import Columns, Turned, by_rows, derive, origin_of
from edgeclip_graph.passes.gemm import WeightsInPlace
from edgeclip_graph.passes.split_linear import SeparateParts
from tests.scenes.layer_graphs import layer_model, only_layer

WEIGHT = np.random.default_rng(0).standard_normal((6, 10), dtype=np.float32)
BIAS = np.arange(1, 11, dtype=np.float32)


def test_a_derived_constant_is_computed_when_it_is_read_and_not_kept(tmp_path: Path) -> None:
    reads: list[str] = []
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([3, 10]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="derived")
    weight = constant(graph, "weight", WEIGHT)
    weight.const_value = counted(reads, WEIGHT, "weight")
    turned = derive(graph, "turned", weight, Turned())
    assert (turned.dtype, list(turned.shape or ())) == (ir.DataType.FLOAT, [1, 10, 6])
    product = ir.node("MatMul", [x, turned])
    product.outputs[0].name = "y"
    graph.append(product)
    graph.outputs.append(product.outputs[0])
    del graph.initializers["weight"]
    assert reads == []
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "graph.onnx", external_data="data", size_threshold_bytes=0)
    assert len(reads) == 1
    written = ir.load(tmp_path / "graph.onnx").graph.initializers["turned"]
    assert (array_of(written) == WEIGHT.T).all()
    assert (array_of(turned) == WEIGHT.T).all() and len(reads) == 2


def test_it_remembers_what_it_was_made_of() -> None:
    graph = layer_model(WEIGHT, BIAS).graph
    weight = graph.initializers["weight"]
    found = origin_of(derive(graph, "columns", weight, Columns(2, 5)))
    assert found is not None and found.source is weight.const_value and found.form == Columns(2, 5)
    assert origin_of(weight) is None and origin_of(graph.outputs[0]) is None


def test_nothing_is_derived_of_a_value_that_is_computed() -> None:
    graph = layer_model(WEIGHT, BIAS).graph
    with pytest.raises(ir.passes.PreconditionError, match="y holds no constant"):
        derive(graph, "turned", graph.outputs[0], Turned())


@pytest.mark.parametrize(("step", "parts"), [(WeightsInPlace, ()), (SeparateParts, (4, 6))])
def test_a_pass_that_stores_weights_anew_reads_none_of_them(step: type[ir.passes.InPlacePass], parts: tuple) -> None:
    reads: list[str] = []
    model = layer_model(WEIGHT, BIAS, parts=parts)
    weight = only_layer(model).weight_value
    weight.const_value = counted(reads, WEIGHT, "weight")
    model = step()(model).model
    assert reads == []
    found = [array_of(value) for name, value in model.graph.initializers.items() if name.startswith("weight_")]
    joined = np.concatenate(found, axis=1) if parts else found[0][0].T
    assert (joined == WEIGHT).all()


def counted(reads: list[str], array: NDArray[np.float32], name: str) -> ir.LazyTensor:
    """A tensor that adds to `reads` whenever it is read."""

    def compute() -> ir.TensorProtocol:
        reads.append("read")
        return ir.tensor(array, name=name)

    return ir.LazyTensor(compute, ir.DataType.FLOAT, ir.Shape(array.shape), name=name)


@pytest.mark.parametrize("shape", [(130, 70), (64, 64), (3, 200), (5,), (2, 3, 4), (0, 7)])
@pytest.mark.parametrize("is_turned", [True, False])
def test_an_array_by_rows_is_the_same_array(shape: tuple[int, ...], is_turned: bool) -> None:
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    array = array.T if is_turned else array
    found = by_rows(array)
    assert found.flags.c_contiguous and found.dtype == np.float32
    np.testing.assert_array_equal(found, array)
