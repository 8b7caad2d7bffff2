"""What graph passes share: replacing every node of one traced operator, reading inputs, storing constants."""

import abc
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.operators import DOMAIN


class Recorder:
    """Records the nodes that replace one node; constants and shared values live on in the graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._tape = ir.tape.Tape()
        self._shared: dict[Hashable, ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Record a node with one output."""
        return self._tape.op(op_type, inputs, attributes, domain=domain)

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Record a node with several outputs."""
        return self._tape.op_multi_out(op_type, inputs, attributes, num_outputs=outputs, domain=domain)

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """An initializer of the graph; one name is one value however often it is asked for."""
        return constant(self.graph, name, array)

    def integers(self, *values: int) -> ir.Value:
        """A 1-D int64 constant, named after what it holds."""
        name = "int64_" + "_".join(str(value).replace("-", "minus_") for value in values)
        return self.constant(name, np.array(values, dtype=np.int64))

    def shared(self, key: Hashable, record: Callable[[], ir.Value]) -> ir.Value:
        """What `record` records, recorded when it is first asked for."""
        if key not in self._shared:
            self._shared[key] = record()
        return self._shared[key]

    def share(self, key: Hashable, value: ir.Value) -> None:
        """Let `shared` give this value for the key from now on."""
        self._shared[key] = value

    def take(self) -> Sequence[ir.Node]:
        """The nodes recorded since the last call."""
        nodes = tuple(self._tape.nodes)
        for domain, version in self._tape.used_opsets:
            self.graph.opset_imports.setdefault(domain, version or 1)
        self._tape = ir.tape.Tape()
        return nodes


class LowerOperator(InPlacePass):
    """Replaces each `edgeclip` node of one kind by what `lower` records.

    Precondition: there is one. Postcondition: there is none.
    """

    operator: ClassVar[str]

    @abc.abstractmethod
    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record the replacement of `node` and return the value that replaces its output."""

    def call(self, model: ir.Model) -> PassResult:
        """Replace every node of the operator."""
        record = Recorder(model.graph)
        for node in self._nodes(model):
            result = self.lower(record, node)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], record.take(), [node.outputs[0]], [result]
            )
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is something to lower."""
        if not self._nodes(model):
            raise PreconditionError(f"no {DOMAIN}.{self.operator} in the graph")

    def ensures(self, model: ir.Model) -> None:
        """Nothing is left to lower."""
        if left := self._nodes(model):
            raise PostconditionError(f"{len(left)} {DOMAIN}.{self.operator} left in the graph")

    def _nodes(self, model: ir.Model) -> list[ir.Node]:
        return [node for node in model.graph if node.domain == DOMAIN and node.op_type == self.operator]


def heads_of(node: ir.Node) -> int:
    """The node's num_heads."""
    return node.attributes["num_heads"].as_int()


def input_of(node: ir.Node, index: int) -> ir.Value:
    """An input that must be there."""
    value = node.inputs[index]
    if value is None:
        raise PreconditionError(f"{node.op_type} {node.name} has no input {index}")
    return value


def array_of(value: ir.Value) -> NDArray[Any]:
    """The numbers of a constant; PreconditionError for a value that is computed."""
    if value.const_value is None:
        raise PreconditionError(f"{value.name} holds no constant")
    return value.const_value.numpy()


def only_user(value: ir.Value, op_type: str) -> ir.Node:
    """The one node that takes the value; PreconditionError where there are more, or it is of another kind."""
    users = [user for user, _ in value.uses()]
    if len(users) != 1 or users[0].op_type != op_type:
        raise PreconditionError(f"{value.name} goes to {[user.op_type for user in users]}, wanted one {op_type}")
    return users[0]


def constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """An initializer of the graph; one name is one value however often it is asked for."""
    return store(graph, ir.tensor(array, name=name))


def store(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """A tensor as an initializer of the graph; one name is one value however often it is asked for."""
    name = str(tensor.name)
    if name not in graph.initializers:
        value = ir.Value(name=name, const_value=tensor)
        value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
        graph.register_initializer(value)
    return graph.initializers[name]
