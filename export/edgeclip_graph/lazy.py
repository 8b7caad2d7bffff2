"""Constants that are computed when they are read: a pass then needs no memory for the weights that it stores anew.

A layout of its own for every weight would be a second copy of a tower, 1.2 GB of the full-size text tower. Computed
when the graph is written, one weight after the other, it is a copy of the largest weight at most.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError

from edgeclip_graph.frame import store


def derive(
    graph: ir.Graph,
    name: str,
    source: ir.Value,
    shape: Sequence[int],
    change: Callable[[NDArray[Any]], NDArray[Any]],
) -> ir.Value:
    """An initializer `name` that holds `change` of the source's numbers, an array of `shape` and the same type.

    It is computed whenever it is read, and not kept. PreconditionError for a source that holds no constant.
    """
    stored = source.const_value
    if stored is None:
        raise PreconditionError(f"{source.name} holds no constant")

    def compute() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(change(stored.numpy())), name=name)

    return store(graph, ir.LazyTensor(compute, dtype=stored.dtype, shape=ir.Shape(shape), name=name))
