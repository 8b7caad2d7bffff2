"""Rotary positions: one op where onnxruntime runs the graph, standard ops for TensorRT."""

import onnx_ir as ir

from edgeclip_graph.frame import LowerOperator, Recorder, heads_of, input_of
from edgeclip_graph.operators import CONTRIB, ROTARY


class FuseRotary(LowerOperator):
    """One com.microsoft RotaryEmbedding. It takes any table, so rows and columns of an image too.

    Its position ids are one constant zero: token t takes row t. (The standard RotaryEmbedding would
    want a table per batch row, or ids for every token.)
    """

    operator = ROTARY

    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record one node."""
        x, cos, sin = (input_of(node, index) for index in range(3))
        return record.op("RotaryEmbedding", x, record.integers(0), cos, sin, domain=CONTRIB, num_heads=heads_of(node))


class SpellOutRotary(LowerOperator):
    """(a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of every head."""

    operator = ROTARY

    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record the rotation; the tables are cut to the number of tokens once for all nodes."""
        x, *tables = (input_of(node, index) for index in range(3))

        def cut(table: ir.Value) -> ir.Value:
            tokens = record.op("Shape", x, start=1, end=2)
            rows = record.op("Slice", table, record.integers(0), tokens, record.integers(0))
            return record.op("Unsqueeze", rows, record.integers(1))  # (T, 1, D/2)

        def cut_once(table: ir.Value) -> ir.Value:
            return record.shared(table.name, lambda: cut(table))

        cos, sin = map(cut_once, tables)
        heads = record.op("Reshape", x, record.integers(0, 0, heads_of(node), -1))  # (B, T, H, D)
        a, b = record.ops("Split", heads, outputs=2, axis=-1, num_outputs=2)  # (B, T, H, D/2)
        turned_a = record.op("Sub", record.op("Mul", a, cos), record.op("Mul", b, sin))
        turned_b = record.op("Add", record.op("Mul", b, cos), record.op("Mul", a, sin))
        turned = record.op("Concat", turned_a, turned_b, axis=-1)
        return record.op("Reshape", turned, record.integers(0, 0, -1))  # (B, T, H*D)
