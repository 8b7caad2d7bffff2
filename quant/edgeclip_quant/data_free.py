"""Narrowing a graph while a checkpoint is exported: no data, no fp32 bundle, one weight in memory at a time.

Every linear layer becomes blocks of 8 or 4 bits, whose scales follow from the weights alone and whose inputs have a
scale for each block of a row, so that an outlier spoils its own block only. The token table has a scale for each row
(8 bits) or block (4 bits).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from edgeclip.manifest import Precision
from edgeclip_graph.linear import linear_layers
from edgeclip_graph.narrowing import Narrow, NarrowedTrace
from edgeclip_quant.budget import DEFAULT_BUDGETS
from edgeclip_quant.kernels import Kernel, Plan, ReplaceLayers
from edgeclip_quant.passes.token_table import NarrowTable, token_tables
from edgeclip_quant.passes.weight_blocks import BLOCK

_SCALE_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockNarrowing:
    """Every linear layer by one kernel of blocks, and the table in as many bits."""

    precision: Precision
    kernel: Kernel
    bits: int
    least_cosine: float

    @property
    def bits_per_weight(self) -> float:
        """The bits of a level, and the block's share of its scale."""
        return self.bits + _SCALE_BITS / BLOCK

    def __call__(self, model: ir.Model) -> NarrowedTrace:
        """Replace the layers and the table; what no node reads any more is removed."""
        plans = {layer.name: Plan(kernel=self.kernel) for layer in linear_layers(model.graph)}
        table = (NarrowTable(self.bits),) if token_tables(model.graph) else ()
        tidying = common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.NameFixPass()
        for step in (ReplaceLayers(plans, separates=False), *table, *tidying, common.TopologicalSortPass()):
            model = step(model).model
        return NarrowedTrace(model=model, kernels=dict(Counter(plan.kernel for plan in plans.values())))


def _narrowing(precision: Precision, kernel: Kernel, bits: int) -> BlockNarrowing:
    least = DEFAULT_BUDGETS[precision].cosine
    assert least is not None
    return BlockNarrowing(precision=precision, kernel=kernel, bits=bits, least_cosine=least)


NARROWINGS: Mapping[Precision, Narrow] = {
    "int8": _narrowing("int8", "int8 blocks", 8),
    "int4": _narrowing("int4", "int4 blocks", 4),
}
