"""SiLU as the one op onnxruntime has for it."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError
from onnxscript.rewriter import RewriteRule, RewriteRuleSet

from edgeclip_graph.frame import CONTRIB


class FuseSilu(InPlacePass):
    """x * sigmoid(x) -> com.microsoft QuickGelu with alpha 1, which is the same function.

    Precondition: there is a Sigmoid. Postcondition: there is none.
    """

    _rules = RewriteRuleSet(
        [
            RewriteRule(
                lambda op, x: op.Mul(x, op.Sigmoid(x)),
                lambda op, x: op.QuickGelu(x, alpha=1.0, _domain=CONTRIB),
            )
        ],
        commute=True,
    )

    def call(self, model: ir.Model) -> PassResult:
        """Replace every pair."""
        self._rules.apply_to_model(model)
        model.graph.opset_imports.setdefault(CONTRIB, 1)
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is a Sigmoid."""
        if not _sigmoids(model):
            raise PreconditionError("no Sigmoid in the graph")

    def ensures(self, model: ir.Model) -> None:
        """There is no Sigmoid."""
        if left := _sigmoids(model):
            raise PostconditionError(f"{left} Sigmoid left in the graph")


def _sigmoids(model: ir.Model) -> int:
    return sum(node.op_type == "Sigmoid" for node in model.graph)
