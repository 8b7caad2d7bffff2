"""Finding the linear layers of a graph: a product with constant weights, and the bias where one is added to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip_graph.frame import array_of, input_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """x W + b, or x W: the MatMul, and the Add where there is a bias. `name` is the weight's.

    Numbers are read from the graph whenever they are asked for: a weight that was derived is computed each time.
    """

    name: str
    matmul: ir.Node
    add: ir.Node | None

    @property
    def x(self) -> ir.Value:
        """What is multiplied, (..., in)."""
        return input_of(self.matmul, 0)

    @property
    def weight_value(self) -> ir.Value:
        """(in, out)."""
        return input_of(self.matmul, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of inputs and of outputs."""
        shape = self.weight_value.shape
        assert shape is not None  # `linear_layer` asks for two dimensions
        inputs, outputs = shape.numpy()
        return inputs, outputs

    @property
    def weight(self) -> NDArray[np.float32]:
        """(in, out)."""
        return array_of(self.weight_value)

    @property
    def bias(self) -> NDArray[np.float32]:
        """(out,), zeros without a bias."""
        value = self.bias_value
        return np.zeros(self.shape[1], np.float32) if value is None else array_of(value)

    @property
    def bias_value(self) -> ir.Value | None:
        """(out,), None without a bias."""
        return None if self.add is None else input_of(self.add, _bias_at(self.add))

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """The layer's nodes, the last first."""
        return [self.matmul] if self.add is None else [self.add, self.matmul]

    @property
    def output(self) -> ir.Value:
        """What the last node gives."""
        return self.nodes[0].outputs[0]


def linear_layers(graph: ir.Graph) -> Sequence[LinearLayer]:
    """Every MatMul with constant weights of two dimensions, with the constant row that its product is added to."""
    return [layer for node in graph if (layer := linear_layer(node)) is not None]


def linear_layer(node: ir.Node) -> LinearLayer | None:
    """The layer that a node multiplies for; None where it does not, or the product is added to a constant that is no
    row: positions, to which a vision tower adds its patches.
    """
    if node.op_type != "MatMul" or node.domain or not _is_matrix(node.inputs[1]):
        return None
    users = [user for user, _ in node.outputs[0].uses()]
    added = users[0] if len(users) == 1 and users[0].op_type == "Add" else None
    if added is not None and not _is_row(added.inputs[_bias_at(added)]):
        if any(value is not None and value.is_initializer() for value in added.inputs):
            return None
        added = None
    return LinearLayer(name=str(input_of(node, 1).name), matmul=node, add=added)


def split_of(layer: LinearLayer) -> ir.Node | None:
    """The Split along the last axis that is the only user of the layer's output; None unless its widths are known."""
    users = [user for user, _ in layer.output.uses()]
    if len(users) != 1 or users[0].op_type != "Split" or not all(map(width_of, users[0].outputs)):
        return None
    axis = users[0].attributes.get_int("axis", 0)
    return users[0] if axis in (-1, len(layer.output.shape or ()) - 1) else None


def width_of(value: ir.Value) -> int:
    """The size of a value's last axis; 0 where it is not known."""
    width = value.shape[-1] if value.shape else None
    return width if isinstance(width, int) else 0


def _bias_at(add: ir.Node) -> int:
    return 0 if _is_row(add.inputs[0]) else 1


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and len(value.shape or ()) == 2


def _is_row(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and len(value.shape or ()) == 1
