"""Mix the channels of a decoder, so that no outlier channel is left where inputs are rounded.

RMSNorm's length does not change when its input is turned by an orthogonal matrix R. So once its weights w are in the
layers that read it, the whole residual stream can be turned, and every layer's weights take that back (QuaRot,
arXiv:2404.00456; SpinQuant, arXiv:2405.16406): exact in real arithmetic, and free.

    h -> h R     writers W -> W R     readers W -> R^T diag(w) W

A channel three hundred times the others then is a little of every channel. The same is done with the channels of each
head between v and o. A head's and a product's channels are first brought to one size, as the weights on both sides
say it (data-free equalisation, Nagel et al. 2019, arXiv:1906.04721). The input of `down` is a product, which no
matrix passes: it is turned when it is computed, in blocks, by one small product.

R is a Kronecker product of Hadamard matrices, and of cosine transforms where a width has odd factors, behind random
signs. A LayerNorm subtracts a mean, which R would move: towers with LayerNorm have no such pass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import Recorder, array_of, constant, input_of
from edgeclip_graph.lazy import by_rows
from edgeclip_graph.linear import width_of
from edgeclip_quant.passes.channels import (
    RMS_NORMS,
    Between,
    Edit,
    Edits,
    find_products,
    find_residual,
    find_values,
    read_by,
)

Array = NDArray[Any]
# The largest factor of a width that is one matrix. 64 is a multiple of every vector unit, and costs 2 % of `down`.
_BLOCK = 64
_SEED = 0
_SMALLEST = 1e-12
_NUMBERS_AT_ONCE = 1 << 17  # as many as stay in a processor's cache
# Multiplications of a product up to which OpenBLAS uses one thread. Two take four times the processor's time where
# other work keeps one of them waiting.
_ONE_THREAD = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """R of `width` channels: signs, then A (x) B; A None is no more than B, block by block.

    An array may have several times as many channels; each part is turned in itself.
    """

    width: int
    signs: NDArray[np.float32] | None
    a: NDArray[np.float32] | None
    b: NDArray[np.float32]

    def turn(self, array: Array) -> Array:
        """x R of every row of an array (..., width)."""
        flat = array.reshape(-1, array.shape[-1])
        turned = np.empty(flat.shape, np.float32)
        step = max(1, _NUMBERS_AT_ONCE // flat.shape[1])
        for start in range(0, len(flat), step):
            some = slice(start, start + step)
            turned[some] = self._turn(by_rows(flat[some])).reshape(-1, flat.shape[1])
        return turned.reshape(array.shape)

    def back(self, array: Array) -> Array:
        """x R^T of every row of an array (..., width)."""
        parts = array.reshape(-1, self.width // len(self.b), len(self.b)) @ self.b.T
        turned = (parts if self.a is None else self.a @ parts).reshape(array.shape)
        return turned if self.signs is None else turned * self.signs

    def rows(self, array: Array) -> Array:
        """R^T W for a weight (times * width, out), for each of its parts."""
        return self.turn(array.T).T

    def _turn(self, rows: Array) -> Array:
        if self.signs is not None:
            rows = (rows.reshape(-1, self.width) * self.signs).reshape(rows.shape)
        size, blocks = len(self.b), rows.shape[1] // len(self.b)
        count = self.width // size
        if self.a is None:
            count = max(one for one in range(1, blocks + 1) if blocks % one == 0 and one * size**2 <= _ONE_THREAD)
        turned: Array = rows.reshape(-1, count, size) @ self.b
        return turned if self.a is None else self.a.T @ turned


@cache
def orthogonal(size: int) -> NDArray[np.float32]:
    """An orthogonal matrix whose entries are all small: Hadamard's, times a cosine transform for an odd factor."""
    odd = size
    matrix = np.ones((1, 1))
    while odd % 2 == 0:
        matrix, odd = np.block([[matrix, matrix], [matrix, -matrix]]), odd // 2
    index = np.arange(odd)
    cosines = np.cos(math.pi / odd * (index[None] + 0.5) * index[:, None]) * math.sqrt(2 / odd)
    cosines[0] = math.sqrt(1 / odd)
    found: NDArray[np.float32] = (np.kron(cosines, matrix) / math.sqrt(len(matrix))).astype(np.float32)
    return found


def make_turn(width: int, *, blocks: bool = False) -> Turn:
    """R for channels of this width; with `blocks` each block of channels is turned in itself."""
    size = max(one for one in range(1, _BLOCK + 1) if width % one == 0)
    if blocks:
        return Turn(size, None, None, orthogonal(size))
    signs = np.random.default_rng(_SEED).choice(np.array([-1, 1], np.float32), width)
    return Turn(width, signs, orthogonal(width // size), orthogonal(size))


class Rotate(InPlacePass):
    """Folds RMSNorm's weights into the layers that read it, evens channels between layers, and turns the stream.

    `fed` says what must become of the arrays of an adapter, by the name of the graph's input.

    Precondition: RMSNorms of one width, whose stream nothing else reads. Postcondition: their weights are 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fed: Mapping[str, Sequence[Edit]] = {}

    def call(self, model: ir.Model) -> PassResult:
        """Collect what becomes of each weight, then put the new ones in place."""
        graph, edits = model.graph, Edits()
        residual = find_residual(graph)
        turn = make_turn(residual.width)
        readings = [(norm, read_by(norm.outputs[0], residual.width)) for norm in residual.norms]
        for norm, reading in readings:
            scale = _scaling_rows(array_of(input_of(norm, 1)))
            for use in reading.weights:
                edits.add(use, scale)
        for between in (*find_values(graph), *find_products(graph)):
            _even(edits, between)
        for between in find_values(graph):
            _turn_heads(edits, between)
        for between in find_products(graph):
            _turn_product(graph, edits, between)
        for use in residual.writers:
            edits.add(use, turn.turn)
        record = Recorder(graph)
        for value in residual.entries:
            _replace_uses(record, value, _online(record, value, turn))
        for norm, reading in readings:
            gains = array_of(input_of(norm, 1))
            for use in reading.weights:
                edits.add(use, turn.rows)
            for value in reading.others:
                _replace_uses(record, value, _online_back(record, value, turn, gains, f"{input_of(norm, 1).name}"))
            norm.replace_input_with(1, constant(graph, f"ones_{residual.width}", np.ones_like(gains)))
        edits.apply(graph)
        self.fed = edits.fed
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is a stream that can be turned."""
        find_residual(model.graph)

    def ensures(self, model: ir.Model) -> None:
        """No RMSNorm has weights of its own."""
        norms = [node for node in model.graph if node.op_type in RMS_NORMS]
        if left := [norm for norm in norms if (array_of(input_of(norm, 1)) != 1).any()]:
            raise PostconditionError(f"{len(left)} of {len(norms)} RMSNorms have weights")


def can_rotate(model: ir.Model) -> bool:
    """Whether a graph has RMSNorms, and nothing but them reads what they read."""
    try:
        find_residual(model.graph)
    except PreconditionError:
        return False
    return True


def _even(edits: Edits, between: Between) -> None:
    """Divide what writes each channel, and multiply what reads it, so that both are of one size."""
    writer = next(use for use in between.writers if use.is_constant and use.node.op_type == "MatMul")
    reader = next(use for use in between.readers if use.is_constant)
    columns, rows = edits.edited(writer), edits.edited(reader)
    written = np.sqrt(np.einsum("ij,ij->j", columns, columns).astype(np.float64))
    by_row = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    # A channel that several rows read counts as the largest of them.
    places = between.spread(np.arange(len(written), dtype=np.float64)).astype(int)
    read = np.zeros(len(written))
    np.maximum.at(read, places, np.sqrt(by_row))
    sizes = np.sqrt(np.maximum(written, _SMALLEST) / np.maximum(read, _SMALLEST))
    is_used = (written > _SMALLEST) & (read > _SMALLEST)
    sizes = np.where(is_used, sizes / np.exp(np.log(sizes[is_used]).mean()) if is_used.any() else 1.0, 1.0)
    factors = sizes.astype(np.float32)

    def divide(array: Array) -> Array:
        return array / factors

    scale = _scaling_rows(between.spread(factors))
    for use in between.writers:
        edits.add(use, divide)
    for use in between.readers:
        edits.add(use, scale)


def _turn_heads(edits: Edits, between: Between) -> None:
    attention = between.x.producer()
    assert attention is not None
    heads = attention.attributes["num_heads"].as_int()
    kv_heads = attention.attributes.get_int("kv_num_heads", heads)
    writer = between.writers[0]
    start, stop, _ = writer.columns.indices(width_of(writer.value))
    size = (stop - start) // kv_heads
    head = Turn(size, None, None, orthogonal(size))
    for use in between.writers:
        edits.add(use, head.turn)
    for use in between.readers:
        edits.add(use, head.rows)


def _turn_product(graph: ir.Graph, edits: Edits, between: Between) -> None:
    """Turn a product as it is computed, block by block."""
    channels = width_of(between.x)
    turn = make_turn(channels, blocks=True)
    size = len(turn.b)
    if size == 1:
        return
    record = Recorder(graph)
    rank = len(between.x.shape or ())
    matrix = record.constant(f"turn_{size}", turn.b)
    flat = record.op("Gemm", record.op("Reshape", between.x, record.integers(-1, size)), matrix)
    # Rows that were flattened come back by their number, which is that of x.
    shape = record.op("Shape", between.x, start=0, end=rank - 1)
    turned = record.op("Reshape", flat, record.op("Concat", shape, record.integers(channels), axis=0))
    _replace_uses(record, between.x, turned)
    for use in between.readers:
        edits.add(use, turn.rows)


def _online(record: Recorder, value: ir.Value, turn: Turn) -> ir.Value:
    """x R, computed."""
    assert turn.signs is not None
    assert turn.a is not None
    signed = record.op("Mul", value, record.constant(f"turn_signs_{turn.width}", turn.signs))
    return _kron(record, signed, len(value.shape or ()), turn.a.T, turn.b, "turn")


def _online_back(record: Recorder, value: ir.Value, turn: Turn, gains: Array, name: str) -> ir.Value:
    """(x R^T) w, computed."""
    assert turn.signs is not None
    assert turn.a is not None
    plain = _kron(record, value, len(value.shape or ()), turn.a, turn.b.T, "turn_back")
    return record.op("Mul", plain, record.constant(f"{name}_signed", (turn.signs * gains).astype(np.float32)))


def _kron(record: Recorder, value: ir.Value, rank: int, a: Array, b: Array, name: str) -> ir.Value:
    """A X B of every row as a matrix X; A and B are no layer's weights, which are of two dimensions on the right."""
    keep = [0] * (rank - 1)
    parts = record.op("Reshape", value, record.integers(*keep, len(a), len(b)))
    right = record.constant(f"{name}_b_{len(b)}", np.ascontiguousarray(b)[None])
    left = record.constant(f"{name}_a_{len(a)}", np.ascontiguousarray(a))
    parts = record.op("MatMul", left, record.op("MatMul", parts, right))
    return record.op("Reshape", parts, record.integers(*keep, len(a) * len(b)))


def _replace_uses(record: Recorder, value: ir.Value, turned: ir.Value) -> None:
    """Let every user of a value take what was recorded of it."""
    nodes = record.take()
    turned.shape, turned.type = value.shape, value.type
    for user, index in list(value.uses()):
        if user not in nodes:
            user.replace_input_with(index, turned)
    producer = value.producer()
    graph = record.graph
    if value.is_graph_output():
        graph.outputs[list(graph.outputs).index(value)] = turned
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)


def _scaling_rows(factors: Array) -> Edit:
    """Multiply the rows of a weight; of one with several parts, each part's."""

    def scale(array: Array) -> Array:
        scaled: Array = array * np.tile(factors, len(array) // len(factors))[:, None]
        return scaled

    return scale
