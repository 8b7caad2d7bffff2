"""Store the token table as int8 rows with a scale each, in 4 bits with a scale per block, or in half precision.

Only the rows of a text's tokens are widened: by Gather, Cast and Mul, or by GatherBlockQuantized.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import array_of, constant, input_of
from edgeclip_graph.linear import width_of
from edgeclip_graph.operators import CONTRIB
from edgeclip_quant.passes.weight_blocks import gather_blocks

HALF_TABLE = 16
_NUMBERS_AT_ONCE = 1 << 24


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(rows, width) -> int8 of the same shape and a scale per row (rows, 1); symmetric, round to nearest."""
    levels = np.empty(table.shape, np.int8)
    scales = np.empty((len(table), 1), np.float32)
    step = max(1, _NUMBERS_AT_ONCE // table.shape[1])
    for start in range(0, len(table), step):  # a large table is more than a gigabyte, and so is each temporary of it
        some = slice(start, start + step)
        scales[some] = np.abs(table[some]).max(axis=1, keepdims=True) / 127.0
        scales[some][scales[some] == 0] = 1.0
        levels[some] = np.rint(table[some] / scales[some])
    return levels, scales


def token_tables(graph: ir.Graph) -> list[ir.Node]:
    """Every Gather from a constant table of floats whose rows are wider than a scale."""
    return [
        node
        for node in graph
        if node.op_type == "Gather" and (table := node.inputs[0]) is not None and table.is_initializer()
        if table.dtype == ir.DataType.FLOAT and width_of(table) > 1
    ]


class NarrowTable(InPlacePass):
    """Narrows the table that tokens are gathered from to 16 (half precision), 8 or 4 bits.

    Precondition: there is one table. Postcondition: there is none of floats.
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self._bits = bits

    def call(self, model: ir.Model) -> PassResult:
        """Replace the Gather and its table."""
        (gather,) = token_tables(model.graph)
        _replace(model.graph, gather, self._bits)
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is one table."""
        if (count := len(token_tables(model.graph))) != 1:
            raise PreconditionError(f"{count} tables of tokens in the graph, wanted 1")

    def ensures(self, model: ir.Model) -> None:
        """No table is left."""
        if left := token_tables(model.graph):
            raise PostconditionError(f"{len(left)} tables of tokens left in the graph")


def _replace(graph: ir.Graph, gather: ir.Node, bits: int) -> None:
    table, ids = input_of(gather, 0), input_of(gather, 1)
    array, name = array_of(table), str(table.name)
    tape = ir.tape.Tape()
    if bits == HALF_TABLE:
        half = constant(graph, f"{name}_half", array.astype(np.float16))
        wide = tape.op("Cast", [tape.op("Gather", [half, ids], {"axis": 0})], {"to": ir.DataType.FLOAT})
    elif bits == 4:
        wide = gather_blocks(graph, tape, array, ids, name)
        graph.opset_imports.setdefault(CONTRIB, 1)
    else:
        rows, scales = quantize_rows(array)
        values = [constant(graph, f"{name}_int8", rows), constant(graph, f"{name}_scales", scales)]
        narrow, scale = (tape.op("Gather", [value, ids], {"axis": 0}) for value in values)
        wide = tape.op("Mul", [tape.op("Cast", [narrow], {"to": ir.DataType.FLOAT}), scale])
    ir.convenience.replace_nodes_and_values(graph, gather, [gather], tape.nodes, [gather.outputs[0]], [wide])
