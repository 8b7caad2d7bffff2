"""SiLU as the one operator that onnxruntime has for it."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import Recorder, input_of, only_user
from edgeclip_graph.operators import CONTRIB


class FuseSilu(InPlacePass):
    """x * sigmoid(x) -> com.microsoft QuickGelu with alpha 1, which is the same function.

    Precondition: there is a Sigmoid, and each is multiplied by its input. Postcondition: there is none.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace every pair."""
        record = Recorder(model.graph)
        for sigmoid in _sigmoids(model):
            x, product = input_of(sigmoid, 0), only_user(sigmoid.outputs[0], "Mul")
            if x not in product.inputs:
                raise PreconditionError(f"Sigmoid {sigmoid.name} is not multiplied by its input")
            silu = record.op("QuickGelu", x, domain=CONTRIB, alpha=1.0)
            ir.convenience.replace_nodes_and_values(
                model.graph, product, [product, sigmoid], record.take(), [product.outputs[0]], [silu]
            )
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is a Sigmoid."""
        if not _sigmoids(model):
            raise PreconditionError("no Sigmoid in the graph")

    def ensures(self, model: ir.Model) -> None:
        """There is no Sigmoid."""
        if left := _sigmoids(model):
            raise PostconditionError(f"{len(left)} Sigmoid left in the graph")


def _sigmoids(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Sigmoid"]
