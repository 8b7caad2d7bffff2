"""Linear layers of few rows: the weights as the left operand of the GEMM.

A query is bandwidth bound: 16 tokens use every weight 16 times, so the time is that of reading 1.2 GB.
onnxruntime's CPU GEMM packs its right operand, and on packed weights with a handful of rows it
reaches about half of the memory's bandwidth. As left operand the weights are read row by row as they
lie in the file: 0.83 of the plain export at 16 tokens, 0.94 at 512 (bench/results/text.json), and
since nothing is packed the session opens in a tenth of a second and its weights stay memory-mapped,
shared between processes and evictable.

    y = x W + b      ->      y^T = W^T x^T + b^T

x^T costs nothing (transB), y^T is turned back by one Transpose, and between the two layers of an MLP
not even that: an elementwise function does not care.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_export.passes.frame import Recorder, input_of

ELEMENTWISE = ("Gelu",)


class WeightsFirst(InPlacePass):
    """MatMul(x, W) + b with a constant W and 2-D x -> Transpose(Gemm(W^T, x, b^T, transB=1)).

    Precondition: there is such a MatMul. Postcondition: no MatMul has a constant operand.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Turn every linear layer round, then drop the transposes around elementwise functions."""
        record = Recorder(model.graph)
        for node in _linear_layers(model.graph):
            _turn(record, node)
        for node in [node for node in model.graph if node.op_type in ELEMENTWISE]:
            _drop_transposes(record, node)
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is a linear layer."""
        if not _linear_layers(model.graph):
            raise PreconditionError("no linear layer in the graph")

    def ensures(self, model: ir.Model) -> None:
        """There is no MatMul with weights left."""
        if left := _linear_layers(model.graph):
            raise PostconditionError(f"{len(left)} MatMul with constant weights left in the graph")


def _linear_layers(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "MatMul" and input_of(node, 1).is_initializer()]


def _turn(record: Recorder, matmul: ir.Node) -> None:
    x, weight = input_of(matmul, 0), input_of(matmul, 1)
    add = _only_user(matmul.outputs[0], "Add")
    bias = input_of(add, 1)
    if not bias.is_initializer() or len(weight.shape or ()) != 2 or len(x.shape or ()) != 2:
        raise PreconditionError(f"MatMul {matmul.name} is no 2-D linear layer with a bias")
    turned_weight = record.constant(f"{weight.name}_turned", np.ascontiguousarray(_array(weight).T))
    turned_bias = record.constant(f"{bias.name}_turned", _array(bias)[:, None])
    product = record.op("Gemm", turned_weight, x, turned_bias, transB=1)  # (N, B*T)
    output = record.op("Transpose", product, perm=[1, 0])  # (B*T, N)
    graph = record.graph
    ir.convenience.replace_nodes_and_values(graph, add, [add, matmul], record.take(), [add.outputs[0]], [output])
    for value in (weight, bias):
        del graph.initializers[str(value.name)]


def _drop_transposes(record: Recorder, node: ir.Node) -> None:
    """Gemm(W, f(Transpose(y)), transB=1) -> Gemm(W, f(y)): what is turned twice is not turned."""
    transpose = input_of(node, 0).producer()
    gemm = _only_user(node.outputs[0], "Gemm")
    if transpose is None or transpose.op_type != "Transpose" or gemm.inputs[1] is not node.outputs[0]:
        raise PreconditionError(f"{node.op_type} {node.name} does not stand between two linear layers")
    graph, turned = record.graph, input_of(transpose, 0)
    node.replace_input_with(0, turned)
    node.outputs[0].shape = turned.shape
    gemm.attributes["transB"] = ir.AttrInt64("transB", 0)
    graph.remove(transpose, safe=True)


def _array(value: ir.Value) -> NDArray[np.generic]:
    tensor = value.const_value
    assert tensor is not None
    return tensor.numpy()


def _only_user(value: ir.Value, op_type: str) -> ir.Node:
    users = [user for user, _ in value.uses()]
    if len(users) != 1 or users[0].op_type != op_type:
        raise PreconditionError(f"{value.name} goes to {[user.op_type for user in users]}, wanted one {op_type}")
    return users[0]
