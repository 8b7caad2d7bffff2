"""Narrow one graph for the CPU to integers: each layer by the fastest kernel that is accurate enough for it.

A layer's inputs on the calibration samples decide its first kernel (`pick.kernel_plan`); the others follow where the
whole graph loses too much (`narrowing`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from edgeclip.manifest import FIRST_GRAPH
from edgeclip_graph.linear import linear_layers
from edgeclip_graph.passes import lower_portable
from edgeclip_quant.graph_runner import Progress
from edgeclip_quant.kernels import Kernel, Plan, ReplaceLayers
from edgeclip_quant.passes.narrowing import Narrowing, Prepared
from edgeclip_quant.passes.token_table import HALF_TABLE, NarrowTable, table_error, token_tables
from edgeclip_quant.pick.kernel_plan import kernels_of, plan_layer, table_bits_of, table_sensitivity
from edgeclip_quant.recipes import Recipe

# The token table among the plans of the layers, and its bits in each form.
_TABLE = "token table"
_TABLE_BITS: Mapping[Kernel, int] = {"int4 blocks": 4, "int8 per row": 8, "fp32": HALF_TABLE}


def plain_graph(name: str, source: Path) -> ir.Model:
    """The graph at `source` for the CPU, lowered from its portable form with layers that are MatMul and Add.

    The fp32 graph for the CPU reads its text weights in place, in two forms chosen by the number of rows, because
    reading 1.2 GB is what a short text costs there, and multiplies by parts of an image's layers separately. Integer
    weights are a quarter of that and have kernels of their own, and one input is rounded once. A decoder's MLP is in
    parts, as an export has it, so that a long text takes less memory. Raises PassError or
    InvariantError of onnx_ir, or BuildError, for a graph that is not as an export has it.
    """
    return lower_portable(name, source, "cpu", layers="divided")


def narrow_model(model: ir.Model, plans: Mapping[str, Plan], table_bits: int, name: str) -> ir.Model:
    """Replace the layers as planned, and the token table, in place; what no node reads any more is removed."""
    # An image has a thousand rows, so copies count; a short text has few, so operators do.
    separates = name == FIRST_GRAPH["image"]
    table = (NarrowTable(table_bits),) if token_tables(model.graph) else ()
    tidying = common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.NameFixPass()
    for step in (ReplaceLayers(plans, separates=separates), *table, *tidying, common.TopologicalSortPass()):
        model = step(model).model
    return model


class IntegerNarrowing(Narrowing):
    """A graph narrowed by a recipe."""

    def __init__(self, source: Prepared, recipe: Recipe, progress: Progress, *, may_fix: bool) -> None:
        """Choose the first kernel of each layer; `may_fix` as in `plan_layer`."""
        layers = linear_layers(source.model.graph)
        kernels_by_layer = kernels_of(layers, recipe)
        plans: dict[str, Sequence[Plan]] = {}
        for done, layer in enumerate(layers):
            progress(f"planning the {source.name} graph", done, len(layers))
            ours = replace(recipe, kernels=kernels_by_layer[layer.name])
            plans[layer.name] = plan_layer(layer, source.seen[layer.name], ours, may_fix=may_fix)
        weights = dict(source.weights)
        if source.has_table:
            least, graph = table_bits_of(layers, recipe), source.model.graph
            plans[_TABLE] = [
                Plan(kernel=kernel, error=table_error(graph, bits))
                for kernel, bits in _TABLE_BITS.items()
                if bits >= least
            ]
            weights[_TABLE] = table_sensitivity(layers)
        super().__init__(source, plans, weights, progress)

    def narrow(self, plans: Mapping[str, Plan]) -> ir.Model:
        """The layers by their kernels, the token table in its bits."""
        layers = dict(plans)
        table_bits = _TABLE_BITS[layers.pop(_TABLE).kernel] if _TABLE in layers else HALF_TABLE
        return narrow_model(self._source.model.clone(), layers, table_bits, self._source.name)
