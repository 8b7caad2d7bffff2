"""Causal attention, in which heads of queries share heads of keys: onnxruntime's kernels, or standard ops.

onnxruntime's kernels know that they are causal, so there is no mask of tokens x tokens. 2,048 tokens take 41 MB with
GroupQueryAttention and 500 with the standard ops (16 heads, two of keys; measured on two x86 cores).
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeclip_graph.frame import LowerOperator, Recorder, heads_of, input_of
from edgeclip_graph.operators import CAUSAL_ATTENTION, CONTRIB, FUSED_ATTENTION

_TOTAL = "total length"


class FuseCausalAttention(LowerOperator):
    """com.microsoft GroupQueryAttention without a cache: all rows of a batch are as long as the batch.

    The kernel always writes the keys and values that a cache would hold; without these outputs it makes scores of
    tokens x tokens. onnxruntime frees a value behind its last reader, and one without a reader at the end of the run:
    17 MB a layer for 8,192 tokens of jina-embeddings-v4. So the next layer's attention reads the length from them.

    Its kernel for CUDA takes no fp32 (onnxruntime 1.31).
    """

    operator = CAUSAL_ATTENTION

    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record one node; the lengths are recorded once for all."""
        q, k, v = (input_of(node, index) for index in range(3))
        last = record.shared("last tokens", lambda: _last_tokens(record, q))
        total = record.shared(_TOTAL, lambda: _total_length(record, q))
        output, *cache = record.ops(
            "GroupQueryAttention",
            q,
            k,
            v,
            None,
            None,
            last,
            total,
            outputs=3,
            domain=CONTRIB,
            num_heads=heads_of(node),
            kv_num_heads=_kv_heads_of(node),
            scale=1.0,
        )
        record.share(_TOTAL, _cached_length(record, cache))
        return output


class RepeatCausalAttention(LowerOperator):
    """com.microsoft MultiHeadAttention in one direction; each head of keys is repeated for its heads of queries."""

    operator = CAUSAL_ATTENTION

    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record it, and the repeated heads, which are small beside the weights."""
        heads, kv_heads = heads_of(node), _kv_heads_of(node)
        q, k, v = (input_of(node, index) for index in range(3))
        keys, values = (
            record.op("Reshape", _repeat(record, x, kv_heads, heads // kv_heads), record.integers(0, 0, -1))
            for x in (k, v)
        )
        attributes = {"num_heads": heads, "unidirectional": 1, "scale": 1.0}
        return record.op(FUSED_ATTENTION, q, keys, values, domain=CONTRIB, **attributes)


class SpellOutCausalAttention(LowerOperator):
    """MatMul, a mask that is added, Softmax, MatMul; each head of keys is repeated for its heads of queries."""

    operator = CAUSAL_ATTENTION

    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record them, with the transposes in and out of (B, H, T, D)."""
        heads, kv_heads = heads_of(node), _kv_heads_of(node)
        q, k, v = (input_of(node, index) for index in range(3))
        queries = record.op("Reshape", q, record.integers(0, 0, heads, -1))  # (B, T, H, D)
        keys, values = (_repeat(record, x, kv_heads, heads // kv_heads) for x in (k, v))  # (B, T, H, D)
        scores = record.op(
            "MatMul",
            record.op("Transpose", queries, perm=[0, 2, 1, 3]),
            record.op("Transpose", keys, perm=[0, 2, 3, 1]),
        )  # (B, H, T, T)
        scores = record.op("Add", scores, record.shared("causal bias", lambda: _causal_bias(record, q)))
        weights = record.op("Softmax", scores, axis=-1)
        out = record.op("MatMul", weights, record.op("Transpose", values, perm=[0, 2, 1, 3]))  # (B, H, T, D)
        return record.op("Reshape", record.op("Transpose", out, perm=[0, 2, 1, 3]), record.integers(0, 0, -1))


def _kv_heads_of(node: ir.Node) -> int:
    return node.attributes["kv_num_heads"].as_int()


def _last_tokens(record: Recorder, x: ir.Value) -> ir.Value:
    """The index of the last token of each row (B,)."""
    last = record.op("Sub", record.op("Shape", x, start=1, end=2), record.integers(1))
    rows = record.op("Expand", last, record.op("Shape", x, start=0, end=1))
    return record.op("Cast", rows, to=ir.DataType.INT32)


def _total_length(record: Recorder, x: ir.Value) -> ir.Value:
    """T, without a dimension."""
    length = record.op("Squeeze", record.op("Shape", x, start=1, end=2), record.integers(0))
    return record.op("Cast", length, to=ir.DataType.INT32)


def _cached_length(record: Recorder, cache: Sequence[ir.Value]) -> ir.Value:
    """T (1,), as the keys and the values (B, heads, T, D) of an attention have it."""
    lengths = [record.op("Shape", value, start=2, end=3) for value in cache]
    return record.op("Cast", record.op("Max", *lengths), to=ir.DataType.INT32)


def _repeat(record: Recorder, x: ir.Value, heads: int, times: int) -> ir.Value:
    """(B, T, heads * D) -> (B, T, heads * times, D): each head `times` times, one after the other."""
    split = record.op("Reshape", x, record.integers(0, 0, heads, 1, -1))
    if times > 1:
        split = record.op("Concat", *[split] * times, axis=3)  # (B, T, heads, times, D)
    return record.op("Reshape", split, record.integers(0, 0, heads * times, -1))


def _causal_bias(record: Recorder, x: ir.Value) -> ir.Value:
    """0 where a token may see another, -infinity where it comes later (T, T). A token always sees itself."""
    length = record.op("Squeeze", record.op("Shape", x, start=1, end=2), record.integers(0))
    zero, one = (record.constant(f"int64_scalar_{value}", np.array(value, np.int64)) for value in (0, 1))
    tokens = record.op("Range", zero, length, one)  # (T,)
    is_seen = record.op("LessOrEqual", tokens, record.op("Unsqueeze", tokens, record.integers(1)))  # (T, T)
    seen = record.constant("score_seen", np.array(0.0, np.float32))
    hidden = record.constant("score_hidden", np.array(-np.inf, np.float32))
    return record.op("Where", is_seen, seen, hidden)
