"""ALiBi, symmetric: slope * |i - j| is taken from the score of the tokens i and j (arXiv:2108.12409).

What is added to the scores is a number for each head and pair of tokens: 3.2 GB for a text of 8192 tokens and 12
heads, and the scores are as many again. On a CPU some queries at a time are computed, in a Loop, so that both are
bounded. A GPU has the room, and a graph without a Loop can be captured there: the numbers are made once for all
layers.
"""

from collections.abc import Sequence

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
    """Record MultiHeadAttention for some queries at a time; `mask` is int32 (B, T), None where every key is seen."""
    q, *keys_and_values = qkv
    length, count, size, extra, offsets = _slices(record, q, len(slopes))
    padded = record.op("Pad", q, record.op("Concat", record.integers(0, 0, 0, 0), extra, record.integers(0), axis=0))
    k, v = (
        record.op("Transpose", record.op("Reshape", x, record.integers(0, 0, len(slopes), -1)), perm=[0, 2, 1, 3])
        for x in keys_and_values
    )  # (B, H, T, D)
    body = _body(record, (padded, k, v), slopes, mask, (size, offsets), attributes)
    parts = record.op("Loop", count, record.constant("going_on", np.array(True)), body=body)  # (runs, B, S, H*D)
    if not (width := width_of(q)):
        raise PreconditionError(f"the width of {q.name} is not known")
    rows = record.op("Reshape", record.op("Transpose", parts, perm=[1, 0, 2, 3]), record.integers(0, -1, width))
    return record.op("Slice", rows, record.integers(0), length, record.integers(1))  # (B, T, H*D)


def _slices(record: Recorder, q: ir.Value, heads: int) -> tuple[ir.Value, ...]:
    """T, the number of runs, S queries in each, rows of no query at the end of the last, and i - j of the first run.

    The first four are int64 (1,), the last is (S, T). Runs are alike but for what they add to i. All attentions of a
    graph share what is recorded here.
    """
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
    return length, count, size, extra, record.shared("offsets", offsets)


def _body(
    record: Recorder,
    qkv: Sequence[ir.Value],
    slopes: Sequence[float],
    mask: ir.Value | None,
    slices: tuple[ir.Value, ir.Value],
    attributes: dict[str, float],
) -> ir.Graph:
    """One run: (number, go on) -> (go on, (B, S, H*D)); all else it takes from the graph outside."""
    (q, k, v), (size, offsets) = qkv, slices
    tape = ir.tape.Tape()
    number = ir.Value(name="run", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name="going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    start = tape.op("Mul", [number, size])  # (1,)
    queries = tape.op("Slice", [q, start, tape.op("Add", [start, size]), record.integers(1)])  # (B, S, H*D)
    distances = tape.op("Cast", [tape.op("Add", [offsets, start])], {"to": ir.DataType.FLOAT})  # (S, T)
    bias = tape.op("Mul", [_taken(record, slopes), tape.op("Abs", [distances])])  # (1, H, S, T)
    bias = tape.op("Max", [bias, record.constant("most_taken", np.array(-MOST_TAKEN, np.float32))])
    result = tape.op(FUSED_ATTENTION, [queries, k, v, None, mask, bias], attributes, domain=CONTRIB)
    result.name, result.type = "attended", ir.TensorType(ir.DataType.FLOAT)
    still = tape.op("Identity", [going])
    still.name, still.type, still.shape = "still_going", going.type, going.shape
    return ir.Graph([number, going], [still, result], nodes=tape.nodes, name="some_queries")


def _taken(record: Recorder, slopes: Sequence[float]) -> ir.Value:
    """The slopes as what is added for each token of distance, (1, H, 1, 1)."""
    return record.constant("alibi_slopes", -np.array(slopes, np.float32).reshape(1, -1, 1, 1))


def _range(record: Recorder, length: ir.Value) -> ir.Value:
    """0 to length - 1; `length` is int64 (1,)."""
    zero, one = (record.constant(f"int64_scalar_{value}", np.array(value, np.int64)) for value in (0, 1))
    return record.op("Range", zero, record.op("Squeeze", length, record.integers(0)), one)
