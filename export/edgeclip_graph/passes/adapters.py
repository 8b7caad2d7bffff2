"""The sum of a layer and an adapter, y + (x A) B, with the sum inside the second product.

As an Add of its own the sum reads and writes a layer's whole output once more. With 24 layers of 4 products each, as
jina-embeddings-v3 has them, that is 0.7 ms of the 4.8 that an adapter takes at 16 rows on two cores.

The first product is turned round where the rank is small: onnxruntime's GEMM fills its right operand up to 16
columns, so of rank 4 it computes four times the work. Measured on two cores, 96 products of rank 4, in ms:

| rows         | 1    | 4   | 8   | 16  | 32  | 64  | 128  | 256 | 512 |
| ------------ | ---- | --- | --- | --- | --- | --- | ---- | --- | --- |
| x A          | 0.8  | 1.4 | 1.5 | 2.5 | 2.3 | 3.9 | 11.1 | 15  | 59  |
| A^T x^T      | 1.1  | 1.5 | 1.4 | 1.4 | 1.6 | 1.9 | 2.9  | 20  | 80  |
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import Recorder, input_of
from edgeclip_graph.linear import width_of
from edgeclip_graph.operators import CONTRIB, FUSED_PRODUCT

# Columns that onnxruntime's GEMM computes at once.
_PANEL = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSum:
    """y + u B: the Add, the product, and y. B (rank, out) is an input of the graph, u has two dimensions."""

    add: ir.Node
    product: ir.Node
    y: ir.Value


class AddInProduct(InPlacePass):
    """Add(y, MatMul(u, B)) -> Gemm(u, B, y) where B is an input of the graph.

    With `turns`, which is for few rows, u = x A of a small rank becomes A^T x^T. Precondition: there is such a sum.
    Postcondition: there is none.
    """

    def __init__(self, *, turns: bool) -> None:
        super().__init__()
        self._turns = turns

    def call(self, model: ir.Model) -> PassResult:
        """Replace every sum."""
        record = Recorder(model.graph)
        for found in adapter_sums(model.graph):
            u, b = input_of(found.product, 0), input_of(found.product, 1)
            removed = [found.add, found.product]
            narrow = u.producer()
            if self._turns and narrow is not None and _is_small(narrow):
                x, a = input_of(narrow, 0), input_of(narrow, 1)
                turned = record.op(FUSED_PRODUCT, a, x, domain=CONTRIB, transA=1, transB=1)  # (rank, R)
                total = record.op("Gemm", turned, b, found.y, transA=1)
                removed.append(narrow)
            else:
                total = record.op("Gemm", u, b, found.y)
            ir.convenience.replace_nodes_and_values(
                model.graph, found.add, removed, record.take(), [found.add.outputs[0]], [total]
            )
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is a sum."""
        if not adapter_sums(model.graph):
            raise PreconditionError("no adapter in the graph")

    def ensures(self, model: ir.Model) -> None:
        """No sum is left."""
        if left := adapter_sums(model.graph):
            raise PostconditionError(f"{len(left)} sums of adapters left in the graph")


def adapter_sums(graph: ir.Graph) -> list[AdapterSum]:
    """Every sum of a layer and an adapter in the graph."""
    return [found for node in graph if node.op_type == "Add" for found in _sums(node)]


def _is_small(narrow: ir.Node) -> bool:
    """Whether a node is x A of a small rank, for one sum alone, where A is an input of the graph."""
    if narrow.op_type != "MatMul" or len(list(narrow.outputs[0].uses())) != 1:
        return False
    a = input_of(narrow, 1)
    return a.is_graph_input() and len(a.shape or ()) == 2 and 0 < width_of(a) < _PANEL


def _sums(add: ir.Node) -> list[AdapterSum]:
    """The sum that an Add is; nothing where it adds something else."""
    for y, value in (add.inputs, reversed(add.inputs)):
        product = value.producer() if value is not None else None
        if product is None or y is None or product.op_type != "MatMul" or len(list(product.outputs[0].uses())) != 1:
            continue
        u, b = product.inputs
        if u is not None and b is not None and b.is_graph_input() and len(u.shape or ()) == len(b.shape or ()) == 2:
            return [AdapterSum(add=add, product=product, y=y)]
    return []
