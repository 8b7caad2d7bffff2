"""Standard ONNX operators alone, as of one opset and with types that TensorRT reads; and the proof of it."""

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from edgeclip_graph.frame import input_of


class MeasureAfterCast(InPlacePass):
    """Shape of bytes -> Shape of what they are cast to, because TensorRT reads bytes in a Cast alone.

    Postcondition: no Shape reads uint8.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Let each Shape read a Cast that the graph has anyway."""
        moved = 0
        for node in _of_bytes(model):
            casts = [user for user, _ in input_of(node, 0).uses() if user.op_type == "Cast"]
            if casts:
                node.replace_input_with(0, casts[0].outputs[0])
                moved += 1
        return PassResult(model, modified=bool(moved))

    def ensures(self, model: ir.Model) -> None:
        """No Shape reads bytes."""
        if left := _of_bytes(model):
            raise PostconditionError(f"{len(left)} Shape of bytes that are cast to nothing")


class RequireStandardOps(InPlacePass):
    """Declares `opset` and checks that every node is an operator that opset has.

    The trace is of a later opset. What later opsets changed in these operators is only which types
    they take, which the check of names and attributes here and onnx's own type check in the tests
    hold. `allowzero` is dropped from Reshape, which TensorRT does not read: a 0 in a shape here means the
    dimension of the input.

    Postcondition: no other domain, no operator or attribute that `opset` lacks.
    """

    def __init__(self, opset: int) -> None:
        super().__init__()
        self.opset = opset

    def call(self, model: ir.Model) -> PassResult:
        """Lower the declared opset."""
        for node in model.graph:
            if node.op_type == "Reshape":
                node.attributes.pop("allowzero", None)
        model.graph.opset_imports.clear()
        model.graph.opset_imports[""] = self.opset
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Every node is in the opset."""
        for node in model.graph.all_nodes():
            if node.domain not in ("", "ai.onnx"):
                raise PostconditionError(f"{node.domain}.{node.op_type} is no standard operator")
            if not onnx.defs.has(node.op_type, max_inclusive_version=self.opset):
                raise PostconditionError(f"{node.op_type} is not in opset {self.opset}")
            schema = onnx.defs.get_schema(node.op_type, self.opset)
            if unknown := set(node.attributes) - set(schema.attributes):
                raise PostconditionError(f"{node.op_type} of opset {self.opset} has no {sorted(unknown)}")


def _of_bytes(model: ir.Model) -> list[ir.Node]:
    """The Shapes of bytes."""
    return [node for node in model.graph if node.op_type == "Shape" and input_of(node, 0).dtype == ir.DataType.UINT8]
