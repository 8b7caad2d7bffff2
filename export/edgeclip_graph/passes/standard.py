"""The proof that a graph holds standard ONNX operators alone, as of one opset."""

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError


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
