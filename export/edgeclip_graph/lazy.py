"""Constants that are computed when they are read: a pass then needs no memory for the weights that it stores anew.

A layout of its own for every weight would be a second copy of a tower, 1.2 GB of the full-size text tower. Computed
when the graph is written, one weight after the other, it is a copy of the largest weight at most.

Each derived constant remembers the constant it was made of, and its form says how. So `edgeclip_graph.portable` can
say how the first one is made again of what a graph's file holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError

from edgeclip_graph.frame import store

_ORIGIN = "edgeclip.origin"


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

    def compute() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(form.apply(stored.numpy())), name=name)

    shape = ir.Shape(form.shape(stored.shape.numpy()))
    tensor = ir.LazyTensor(compute, dtype=stored.dtype, shape=shape, name=name)
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
