"""One linear layer whose output is split at once (q, k and v; gate and up) as a product for each part.

The split copies: 67 ms of 3310 for an image on two cores. The GEMMs are as fast apart, for their input has a
thousand rows. What a bias of zeros adds is left out; the reference's keys have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import Recorder, input_of

# `edgeclip_quant.passes.plain_graph` puts the parts together again, by this ending and their numbers.
ENDING = "_part_"


@dataclass(frozen=True, slots=True, kw_only=True)
class _SplitLayer:
    matmul: ir.Node
    add: ir.Node
    split: ir.Node
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class SeparateParts(InPlacePass):
    """Split(MatMul(x, W) + b) with constant W (in, out) and b (out,) -> MatMul(x, W_i) + b_i for each part.

    Precondition: there is such a Split. Postcondition: there is none.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace every layer that is split."""
        record = Recorder(model.graph)
        for layer in _split_layers(model.graph):
            x, name = input_of(layer.matmul, 0), input_of(layer.matmul, 1).name
            ends = np.cumsum([_width(part) for part in layer.split.outputs])
            parts = zip(np.split(layer.weight, ends[:-1], axis=1), np.split(layer.bias, ends[:-1]), strict=True)
            outputs = []
            for number, (weight, bias) in enumerate(parts):
                product = record.op("MatMul", x, record.constant(f"{name}{ENDING}{number}", weight.copy()))
                if bias.any():
                    bias_name = f"{input_of(layer.add, 1).name}{ENDING}{number}"
                    product = record.op("Add", product, record.constant(bias_name, bias.copy()))
                outputs.append(product)
            ir.convenience.replace_nodes_and_values(
                model.graph,
                layer.split,
                [layer.split, layer.add, layer.matmul],
                record.take(),
                list(layer.split.outputs),
                outputs,
            )
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """A layer is split."""
        if not _split_layers(model.graph):
            raise PreconditionError("no linear layer in the graph is split")

    def ensures(self, model: ir.Model) -> None:
        """No layer is split."""
        if left := _split_layers(model.graph):
            raise PostconditionError(f"{len(left)} linear layers that are split left in the graph")


def _split_layers(graph: ir.Graph) -> Sequence[_SplitLayer]:
    found = (_split_layer(node) for node in graph if node.op_type == "Split")
    return [layer for layer in found if layer is not None]


def _split_layer(split: ir.Node) -> _SplitLayer | None:
    """The layer that a Split along the last axis alone takes, if that is so and the widths are known."""
    add = input_of(split, 0).producer()
    matmul = add and add.op_type == "Add" and input_of(add, 0).producer()
    if not add or not matmul or matmul.op_type != "MatMul":
        return None
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    is_last = axis in (-1, len(add.outputs[0].shape or ()) - 1)
    weight, bias = (_constant(input_of(node, 1)) for node in (matmul, add))
    is_alone = all(len(list(node.outputs[0].uses())) == 1 for node in (matmul, add))
    if not is_last or not is_alone or weight is None or bias is None or weight.ndim != 2 or bias.ndim != 1:
        return None
    if sum(map(_width, split.outputs)) != weight.shape[1]:
        return None
    return _SplitLayer(matmul=matmul, add=add, split=split, weight=weight, bias=bias)


def _constant(value: ir.Value) -> NDArray[np.float32] | None:
    return value.const_value.numpy() if value.is_initializer() and value.const_value is not None else None


def _width(value: ir.Value) -> int:
    """Of the last axis; 0 where it is not known."""
    width = value.shape[-1] if value.shape else None
    return width if isinstance(width, int) else 0
