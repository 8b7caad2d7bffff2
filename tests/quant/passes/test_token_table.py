"""The token table in 8 or 4 bits gives each token's row nearly as it was, and nothing else is widened."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError

from edgeclip_graph.frame import constant
from edgeclip_quant.passes.token_table import NarrowTable, quantize_rows
from tests.scenes.layer_graphs import run_graph

Array = NDArray[np.float32]

# Of the largest value of a row: half a step of 127; and in 4 bits what it is cut by where that leaves all others a
# smaller error, measured 0.126.
LOST = {8: 0.5 / 127, 4: 0.13}
# Of a row's length.
ERROR = {8: 0.01, 4: 0.13}


def lookup(*tables: Array) -> ir.Graph:
    """The rows of each table for the same ids."""
    ids = ir.Value(name="x", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"]))
    graph = ir.Graph([ids], [], nodes=[], opset_imports={"": 23}, name="lookup")
    tape = ir.tape.Tape()
    for number, table in enumerate(tables):
        rows = tape.op("Gather", [constant(graph, f"tokens{number}", table), ids], {"axis": 0})
        rows.name, rows.dtype = f"y{number}", ir.DataType.FLOAT
        graph.outputs.append(rows)
    graph.extend(tape.nodes)
    return graph


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_has_its_own_scale(bits: int) -> None:
    draw = np.random.default_rng(0)
    table = (draw.standard_normal((20, 64)) * np.geomspace(1e-3, 10, 20)[:, None]).astype(np.float32)
    table[7] = 0  # as padding's row may be
    graph = lookup(table)
    NarrowTable(bits)(ir.Model(graph, ir_version=10))
    ids = draw.integers(0, 20, (3, 9))
    ids[0, 0] = 7
    (found,) = run_graph(graph, ids)
    lost = np.abs(found - table[ids]) / np.maximum(np.abs(table[ids]).max(axis=-1, keepdims=True), 1e-9)
    assert LOST[bits] / 4 < lost.max() <= LOST[bits] * 1.0001
    errors = np.linalg.norm(found - table[ids], axis=-1) / np.maximum(np.linalg.norm(table[ids], axis=-1), 1e-9)
    assert ERROR[bits] / 4 < errors.max() < ERROR[bits]
    assert (found[0, 0] == 0).all()
    names = {str(value.name): value for node in graph for value in node.inputs if value and value.is_initializer()}
    stored = sum(value.const_value.nbytes for value in names.values() if value.const_value is not None)
    assert stored < table.nbytes * (0.27 if bits == 8 else 0.16)


@pytest.mark.parametrize("tables", [0, 2])
def test_one_table_is_wanted(tables: int) -> None:
    graph = lookup(*[np.ones((3, 16), np.float32)] * tables)
    with pytest.raises(PreconditionError, match=f"{tables} tables of tokens in the graph, wanted 1"):
        NarrowTable()(ir.Model(graph, ir_version=10))


def test_rounding_is_symmetric_and_to_the_nearest() -> None:
    levels, scales = quantize_rows(np.array([[1.0, 0.0], [-2.0, 0.5], [0.0, 0.0]], np.float32))
    assert levels.tolist() == [[127, 0], [-127, 32], [0, 0]]
    assert scales[:, 0].tolist() == pytest.approx([1 / 127, 2 / 127, 1.0])
