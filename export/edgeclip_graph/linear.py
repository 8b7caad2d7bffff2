"""The linear layers of a plain graph: what is quantised, and by what names it is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """x W + b: the MatMul, the Add, and W (in, out) as an array. `name` is the weight's."""

    name: str
    matmul: ir.Node
    add: ir.Node

    @property
    def x(self) -> ir.Value:
        """What is multiplied, (..., in)."""
        return _given(self.matmul, 0)

    @property
    def weight(self) -> NDArray[np.float32]:
        """(in, out)."""
        return array_of(self.matmul, 1)

    @property
    def bias(self) -> NDArray[np.float32]:
        """(out,)."""
        return _array(self.bias_value)

    @property
    def bias_value(self) -> ir.Value:
        """(out,)."""
        return _given(self.add, _bias_at(self.add))

    @property
    def output(self) -> ir.Value:
        """The Add's."""
        return self.add.outputs[0]


def linear_layers(graph: ir.Graph) -> Sequence[LinearLayer]:
    """Every MatMul with constant weights of two dimensions whose product goes to one Add of a constant row."""
    return [layer for node in graph if (layer := linear_layer(node)) is not None]


def linear_layer(node: ir.Node) -> LinearLayer | None:
    """The layer that a node multiplies for; None where it does not, or nothing is added to it."""
    if node.op_type != "MatMul" or node.domain or not _is_matrix(node.inputs[1]):
        return None
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add" or not _is_row(users[0].inputs[_bias_at(users[0])]):
        return None
    return LinearLayer(name=str(_given(node, 1).name), matmul=node, add=users[0])


def array_of(node: ir.Node, index: int) -> NDArray[np.float32]:
    """A constant input of a node."""
    return _array(_given(node, index))


def _bias_at(add: ir.Node) -> int:
    return 0 if _is_row(add.inputs[0]) else 1


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and len(value.shape or ()) == 2


def _is_row(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and len(value.shape or ()) == 1


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise PreconditionError(f"{node.op_type} {node.name} has no input {index}")
    return value


def _array(value: ir.Value) -> NDArray[np.float32]:
    tensor = value.const_value
    if tensor is None:
        raise PreconditionError(f"{value.name} holds no constant")
    array: NDArray[np.float32] = tensor.numpy()
    return array


def constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """An initializer of the graph; one name is one value however often it is asked for."""
    if name not in graph.initializers:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        graph.register_initializer(value)
    return graph.initializers[name]
