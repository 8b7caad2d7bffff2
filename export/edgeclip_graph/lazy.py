"""Constants that are computed when they are read: a pass then needs no memory for the weights that it stores anew.

A layout of its own for every weight would be a second copy of a tower, 1.2 GB of the full-size text tower. Computed
when the graph is written, one weight after the other, it is a copy of the largest weight at most.

Each derived constant remembers the constant it was made of, and its form says how. So `edgeclip_graph.portable` can
say how the first one is made again of what a graph's file holds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError

from edgeclip_graph.frame import store

_ORIGIN = "edgeclip.origin"
_TILE = 64  # rows and columns of an array that lies in memory by columns, which are copied at once

# Gives the rows of a matrix, some at a time.
Pieces = Callable[[], Iterator[NDArray[Any]]]


def lazy(name: str, dtype: ir.DataType, shape: Sequence[int], compute: Callable[[], NDArray[Any]]) -> ir.LazyTensor:
    """A constant that `compute` gives whenever it is read. The array may lie in memory by rows or by columns: it is
    put in order only where it is written to a file.
    """
    return ir.LazyTensor(lambda: _Numbers(compute(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)


def by_rows(array: NDArray[Any]) -> NDArray[Any]:
    """The array, or a copy that lies in memory by rows. numpy's own copy of 64 rows takes four times as long."""
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.ascontiguousarray(array)
    copy = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[1], _TILE):
        copy[:, start : start + _TILE] = array[:, start : start + _TILE]
    return copy


class _Numbers(ir.Tensor[Any]):
    """An array that may lie in memory by columns."""

    def tofile(self, file: BinaryIO) -> None:
        """Write it by rows."""
        array = self.numpy()
        if array.ndim < 2 or array.flags.c_contiguous:
            super().tofile(file)
            return
        for start in range(0, len(array), _TILE):
            file.write(by_rows(array[start : start + _TILE]).data)


class InPieces(ir.LazyTensor):
    """A matrix that is computed some rows at a time, whenever it is read: as a whole it is never in memory while it
    is written.
    """

    def __init__(self, name: str, dtype: ir.DataType, shape: Sequence[int], pieces: Pieces) -> None:
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.pieces = pieces

    def tofile(self, file: BinaryIO) -> None:
        """Write piece after piece."""
        for piece in self.pieces():
            file.write(np.ascontiguousarray(piece).data)

    def _whole(self) -> ir.TensorProtocol:
        whole = np.empty(self.shape.numpy(), self.dtype.numpy())
        start = 0
        for piece in self.pieces():
            whole[start : start + len(piece)] = piece
            start += len(piece)
        return ir.tensor(whole, name=self.name)


def pieces_of(tensor: ir.TensorProtocol, numbers: int) -> Iterator[NDArray[Any]]:
    """The rows of a matrix, in pieces of so many numbers, unless it has pieces of its own."""
    if isinstance(tensor, InPieces):
        yield from tensor.pieces()
        return
    array = tensor.numpy()
    step = max(1, numbers // array.shape[1])
    for start in range(0, len(array), step):
        yield array[start : start + step]


@dataclass(frozen=True, slots=True)
class Turned:
    """A weight (in, out) as (1, out, in)."""

    def shape(self, source: Sequence[int]) -> tuple[int, ...]:
        """The shape of the derived constant."""
        inputs, outputs = source
        return 1, outputs, inputs

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The numbers of the derived constant."""
        return array.T[None]


@dataclass(frozen=True, slots=True)
class Columns:
    """Entries `start` to `stop` along the last axis."""

    start: int
    stop: int

    def shape(self, source: Sequence[int]) -> tuple[int, ...]:
        """The shape of the derived constant."""
        return *source[:-1], self.stop - self.start

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The numbers of the derived constant."""
        return array[..., self.start : self.stop]


@dataclass(frozen=True, slots=True)
class Rows:
    """Entries `start` to `stop` along the first axis."""

    start: int
    stop: int

    def shape(self, source: Sequence[int]) -> tuple[int, ...]:
        """The shape of the derived constant."""
        return self.stop - self.start, *source[1:]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The numbers of the derived constant."""
        return array[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class TurnedPart:
    """Some columns or rows of a weight, turned."""

    part: Columns | Rows

    def shape(self, source: Sequence[int]) -> tuple[int, ...]:
        """The shape of the derived constant."""
        return Turned().shape(self.part.shape(source))

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The numbers of the derived constant."""
        return Turned().apply(self.part.apply(array))


Form = Turned | Columns | Rows | TurnedPart


@dataclass(frozen=True, slots=True)
class Origin:
    """The tensor that a derived constant was made of, and its form."""

    source: ir.TensorProtocol
    form: Form


def derive(graph: ir.Graph, name: str, source: ir.Value, form: Form) -> ir.Value:
    """An initializer `name` that holds the source's numbers in another form, of the same type.

    It is computed whenever it is read, and not kept. A part that is turned remembers the whole weight. Raises
    PreconditionError for a source that holds no constant.
    """
    stored = source.const_value
    if stored is None:
        raise PreconditionError(f"{source.name} holds no constant")

    tensor = lazy(name, stored.dtype, form.shape(stored.shape.numpy()), lambda: form.apply(stored.numpy()))
    earlier = origin_of(source)
    if earlier is not None and isinstance(form, Turned) and isinstance(earlier.form, Columns | Rows):
        tensor.meta[_ORIGIN] = Origin(earlier.source, TurnedPart(earlier.form))
    else:
        tensor.meta[_ORIGIN] = Origin(stored, form)
    return store(graph, tensor)


def origin_of(value: ir.Value) -> Origin | None:
    """The origin of a derived constant; None for any other value."""
    tensor = value.const_value
    origin: Origin | None = tensor.meta.get(_ORIGIN) if isinstance(tensor, ir.LazyTensor) else None
    return origin
