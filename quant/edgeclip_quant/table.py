"""The token table as int8 rows with a scale each: a quarter of its size, and of what a text reads of it.

Gather, Cast, Mul: only the rows of the text's tokens are widened.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError

from edgeclip_quant.linear import constant


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(rows, width) -> int8 of the same shape and a scale per row (rows, 1); symmetric, round to nearest."""
    scales = np.abs(table).max(axis=1, keepdims=True) / 127.0
    scales[scales == 0] = 1.0
    return np.rint(table / scales).astype(np.int8), scales.astype(np.float32)


def replace_table(graph: ir.Graph) -> None:
    """Narrow the one table that tokens are gathered from."""
    gathers = [
        node
        for node in graph
        if node.op_type == "Gather" and (table := node.inputs[0]) is not None and table.is_initializer()
        if table.dtype == ir.DataType.FLOAT
    ]
    if len(gathers) != 1:
        raise PreconditionError(f"{len(gathers)} tables of tokens in the graph, wanted 1")
    (gather,) = gathers
    table, ids = gather.inputs
    assert table is not None
    assert table.const_value is not None
    rows, scales = quantize_rows(table.const_value.numpy())
    tape = ir.tape.Tape()
    values = [constant(graph, f"{table.name}_int8", rows), constant(graph, f"{table.name}_scales", scales)]
    narrow, scale = (tape.op("Gather", [value, ids], {"axis": 0}) for value in values)
    wide = tape.op("Mul", [tape.op("Cast", [narrow], {"to": ir.DataType.FLOAT}), scale])
    ir.convenience.replace_nodes_and_values(graph, gather, [gather], tape.nodes, [gather.outputs[0]], [wide])
