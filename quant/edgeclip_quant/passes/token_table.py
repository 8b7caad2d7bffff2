"""Store the token table as int8 rows with a scale each, in 4 bits with a scale per block, or in half precision.

Only the rows of a text's tokens are widened: by Gather, Cast and Mul, or by GatherBlockQuantized.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import input_of, store
from edgeclip_graph.lazy import InPieces, lazy, pieces_of
from edgeclip_graph.linear import width_of
from edgeclip_graph.operators import CONTRIB
from edgeclip_quant.passes.weight_blocks import quantize_blocks, quantize_table, table_block, widen_blocks

Array = NDArray[np.float32]
HALF_TABLE = 16
_NUMBERS_AT_ONCE = 1 << 22  # of a large table, which is more than a gigabyte


def quantize_rows(table: Array) -> tuple[NDArray[np.int8], Array]:
    """(rows, width) -> int8 of the same shape and a scale per row (rows, 1); symmetric, round to nearest."""
    scales = np.abs(table).max(axis=1, keepdims=True) / np.float32(127.0)
    scales[scales == 0] = 1.0
    return np.rint(table / scales).astype(np.int8), scales


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


def table_error(graph: ir.Graph, bits: int) -> float:
    """|table' - table| / |table| of the first rows of the graph's table in so many bits."""
    (gather,) = token_tables(graph)
    rows = next(iter(pieces_of(_source(gather), _NUMBERS_AT_ONCE)))
    if bits == HALF_TABLE:
        found = rows.astype(np.float16).astype(np.float32)
    elif bits == 4:
        block = table_block(rows.shape[1])
        found = widen_blocks(quantize_blocks(rows, 4, block), 4, rows.shape[1])
    else:
        levels, scales = quantize_rows(rows)
        found = levels * scales
    return float(np.linalg.norm(found - rows) / (np.linalg.norm(rows) or 1))


def _source(gather: ir.Node) -> ir.TensorProtocol:
    table = input_of(gather, 0)
    if table.const_value is None:
        raise PreconditionError(f"{table.name} holds no constant")
    return table.const_value


def _replace(graph: ir.Graph, gather: ir.Node, bits: int) -> None:
    table, ids = input_of(gather, 0), input_of(gather, 1)
    name, source = str(table.name), _source(gather)
    tape = ir.tape.Tape()
    count, width = source.shape.numpy()
    if bits == HALF_TABLE:

        def halves() -> Iterator[NDArray[Any]]:
            return (piece.astype(np.float16) for piece in pieces_of(source, _NUMBERS_AT_ONCE))

        half = store(graph, InPieces(f"{name}_half", ir.DataType.FLOAT16, (count, width), halves))
        wide = tape.op("Cast", [tape.op("Gather", [half, ids], {"axis": 0})], {"to": ir.DataType.FLOAT})
    elif bits == 4:
        block = table_block(width)
        blocks = -(-width // block)
        rows = _Rows(source, quantize_table)
        packed = store(graph, InPieces(f"{name}_int4", ir.DataType.UINT8, (count, width // 2), rows.pieces))
        scales = lazy(f"{name}_block_scales", ir.DataType.FLOAT, (count, blocks), lambda: rows.rest(0))
        zeros = lazy(f"{name}_block_zeros", ir.DataType.UINT8, (count, -(-blocks // 2)), lambda: rows.rest(1))
        constants = [store(graph, one) for one in (scales, zeros)]
        attributes = {"bits": 4, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        wide = tape.op("GatherBlockQuantized", [packed, ids, *constants], attributes, domain=CONTRIB)
        graph.opset_imports.setdefault(CONTRIB, 1)
    else:
        rows = _Rows(source, quantize_rows)
        values = [
            store(graph, InPieces(f"{name}_int8", ir.DataType.INT8, (count, width), rows.pieces)),
            store(graph, lazy(f"{name}_scales", ir.DataType.FLOAT, (count, 1), lambda: rows.rest(0))),
        ]
        narrow, scale = (tape.op("Gather", [value, ids], {"axis": 0}) for value in values)
        wide = tape.op("Mul", [tape.op("Cast", [narrow], {"to": ir.DataType.FLOAT}), scale])
    ir.convenience.replace_nodes_and_values(graph, gather, [gather], tape.nodes, [gather.outputs[0]], [wide])


class _Rows:
    """The rows of a table in few bits, computed when they are read, and what else they need, which is remembered."""

    def __init__(self, table: ir.TensorProtocol, narrow: Callable[[Array], tuple[NDArray[Any], ...]]) -> None:
        self._table, self._narrow = table, narrow
        self._rest: list[NDArray[Any]] = []

    def pieces(self) -> Iterator[NDArray[Any]]:
        """The rows, some at a time."""
        rests = []
        for piece in pieces_of(self._table, _NUMBERS_AT_ONCE):
            levels, *rest = self._narrow(piece)
            rests.append(rest)
            yield levels
        self._rest = [np.concatenate(some) for some in zip(*rests, strict=True)]

    def rest(self, number: int) -> NDArray[Any]:
        """The scales of all rows, or their zero points."""
        if not self._rest:
            for _ in self.pieces():
                pass
        return self._rest[number]
