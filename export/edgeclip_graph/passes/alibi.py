"""ALiBi, symmetric: slope * |i - j| is taken from the score of the tokens i and j (arXiv:2108.12409).

What is added to the scores is a number for each head and pair of tokens: 3.2 GB for a text of 8192 tokens and 12
heads, and the scores are as many again. On a CPU some queries at a time are computed, in a Loop, so that both are
bounded. A GPU has the room, and a graph without a Loop can be captured there: the numbers are made once for all
layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from edgeclip_graph.frame import Recorder, heads_of
from edgeclip_graph.linear import width_of
from edgeclip_graph.operators import CONTRIB, FUSED_ATTENTION, SLOPES

# Scores of one run of the kernel, of one text: 48 MB, and the same again for what is added to them. A text of 8192
# tokens and 12 heads is 68 runs of 121 queries.
MOST_SCORES = 12 << 20
# What distance takes from a score on a CPU at most. A weight of e^-60 is far below the last bit of a sum of weights
# that are near 1, and e^-88 is a denormal number, with which a processor multiplies so slowly that attention over 512
# tokens takes 22 ms a layer instead of 8 (one thread, x86).
MOST_TAKEN = 60.0


def slopes_of(node: ir.Node) -> Sequence[float] | None:
    """The slopes of an attention, one for each head; None for one without ALiBi."""
    found = node.attributes.get(SLOPES)
    if found is None:
        return None
    slopes = found.as_floats()
    if len(slopes) != heads_of(node):
        raise PreconditionError(f"{node.name} has {len(slopes)} slopes and {heads_of(node)} heads")
    return slopes


def whole_bias(record: Recorder, q: ir.Value, slopes: Sequence[float]) -> ir.Value:
    """What is added to the scores of all queries (1, H, T, T), recorded once for one length and the same slopes."""

    def bias() -> ir.Value:
        tokens = _range(record, record.op("Shape", q, start=1, end=2))
        distances = record.op("Sub", record.op("Unsqueeze", tokens, record.integers(1)), tokens)  # (T, T)
        lengths = record.op("Abs", record.op("Cast", distances, to=ir.DataType.FLOAT))
        return record.op("Mul", _taken(record, slopes), lengths)

    return record.shared(("alibi bias", *slopes), bias)


def sliced_attention(
    record: Recorder, qkv: Sequence[ir.Value], slopes: Sequence[float], mask: ir.Value | None, **attributes: float
) -> ir.Value:
    """Record MultiHeadAttention for some queries at a time; `mask` is int32 (B, T), None where every key is seen.

    Where one run has room for all queries, as it has up to a thousand tokens and 12 heads, there is no Loop: what is
    added to the scores is made once for all layers, and of 16 tokens a Loop takes twice as long as the kernel.
    """
    slices = _slices(record, qkv[0], len(slopes))
    bias = record.shared(("bias of one run", *slopes), lambda: _bias(record, slopes, slices.offsets))
    is_one = record.shared("one run", lambda: record.op("Equal", slices.runs, record.integers(1)))
    whole, some = Recorder(record.graph), Recorder(record.graph)
    at_once = whole.op(FUSED_ATTENTION, *qkv, None, mask, bias, domain=CONTRIB, **attributes)
    in_runs = _in_runs(some, qkv, slopes, mask, slices, attributes)
    for result in (at_once, in_runs):
        result.type = ir.TensorType(ir.DataType.FLOAT)
    return record.op(
        "If",
        is_one,
        then_branch=ir.Graph([], [at_once], nodes=whole.take(), name="all_queries"),
        else_branch=ir.Graph([], [in_runs], nodes=some.take(), name="runs_of_queries"),
    )


class _Slices(NamedTuple):
    """T, the number of runs, S queries in each, rows of no query at the end of the last, and i - j of the first run.

    The first four are int64 (1,), the last is (S, T). Runs are alike but for what they add to i.
    """

    length: ir.Value
    runs: ir.Value
    size: ir.Value
    extra: ir.Value
    offsets: ir.Value


def _slices(record: Recorder, q: ir.Value, heads: int) -> _Slices:
    """The runs of an attention, recorded once for all attentions of a graph."""
    one = record.integers(1)

    def divided_up(x: ir.Value, by: ir.Value) -> ir.Value:
        return record.op("Div", record.op("Sub", record.op("Add", x, by), one), by)

    def scores() -> ir.Value:
        return record.op("Mul", record.op("Mul", length, length), record.integers(heads))

    def offsets() -> ir.Value:
        return record.op("Sub", record.op("Unsqueeze", _range(record, size), one), _range(record, length))

    length = record.shared("length", lambda: record.op("Shape", q, start=1, end=2))
    count = record.shared("runs", lambda: divided_up(scores(), record.integers(MOST_SCORES)))
    size = record.shared("queries", lambda: divided_up(length, count))
    extra = record.shared("empty rows", lambda: record.op("Sub", record.op("Mul", count, size), length))
    return _Slices(length, count, size, extra, record.shared("offsets", offsets))


def _in_runs(
    record: Recorder,
    qkv: Sequence[ir.Value],
    slopes: Sequence[float],
    mask: ir.Value | None,
    slices: _Slices,
    attributes: dict[str, float],
) -> ir.Value:
    """The attention of all runs, (B, T, H*D)."""
    q, *keys_and_values = qkv
    if not (width := width_of(q)):
        raise PreconditionError(f"the width of {q.name} is not known")
    padding = record.op("Concat", record.integers(0, 0, 0, 0), slices.extra, record.integers(0), axis=0)
    k, v = (
        record.op("Transpose", record.op("Reshape", x, record.integers(0, 0, len(slopes), -1)), perm=[0, 2, 1, 3])
        for x in keys_and_values
    )  # (B, H, T, D)
    body = _body(record.graph, (record.op("Pad", q, padding), k, v), slopes, mask, slices, attributes)
    going_on = record.constant("going_on", np.array(True))
    parts = record.op("Loop", slices.runs, going_on, body=body)  # (runs, B, S, H*D)
    rows = record.op("Reshape", record.op("Transpose", parts, perm=[1, 0, 2, 3]), record.integers(0, -1, width))
    return record.op("Slice", rows, record.integers(0), slices.length, record.integers(1))


def _body(
    graph: ir.Graph,
    qkv: Sequence[ir.Value],
    slopes: Sequence[float],
    mask: ir.Value | None,
    slices: _Slices,
    attributes: dict[str, float],
) -> ir.Graph:
    """One run: (number, go on) -> (go on, (B, S, H*D)); all else it takes from the graph outside."""
    q, k, v = qkv
    record = Recorder(graph)
    number = ir.Value(name="run", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name="going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    start = record.op("Mul", number, slices.size)  # (1,)
    queries = record.op("Slice", q, start, record.op("Add", start, slices.size), record.integers(1))  # (B, S, H*D)
    bias = _bias(record, slopes, record.op("Add", slices.offsets, start))
    result = record.op(FUSED_ATTENTION, queries, k, v, None, mask, bias, domain=CONTRIB, **attributes)
    result.name, result.type = "attended", ir.TensorType(ir.DataType.FLOAT)
    still = record.op("Identity", going)
    still.name, still.type, still.shape = "still_going", going.type, going.shape
    return ir.Graph([number, going], [still, result], nodes=record.take(), name="some_queries")


def _bias(record: Recorder, slopes: Sequence[float], offsets: ir.Value) -> ir.Value:
    """What is added to the scores (1, H, S, T) of queries and keys that are `offsets` (S, T) tokens apart."""
    distances = record.op("Abs", record.op("Cast", offsets, to=ir.DataType.FLOAT))
    most_taken = record.constant("most_taken", np.array(-MOST_TAKEN, np.float32))
    return record.op("Max", record.op("Mul", _taken(record, slopes), distances), most_taken)


def _taken(record: Recorder, slopes: Sequence[float]) -> ir.Value:
    """The slopes as what is added for each token of distance, (1, H, 1, 1)."""
    return record.constant("alibi_slopes", -np.array(slopes, np.float32).reshape(1, -1, 1, 1))


def _range(record: Recorder, length: ir.Value) -> ir.Value:
    """0 to length - 1; `length` is int64 (1,)."""
    zero, one = (record.constant(f"int64_scalar_{value}", np.array(value, np.int64)) for value in (0, 1))
    return record.op("Range", zero, record.op("Squeeze", length, record.integers(0)), one)
