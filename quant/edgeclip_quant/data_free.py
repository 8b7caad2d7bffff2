"""Narrowing a graph while a checkpoint is exported: no data, no fp32 bundle, one weight in memory at a time.

Channels are turned and kernels chosen as `edgeclip quantize` does it, with what needs no data: the first kernel of
the recipe for each layer, no scale that calibration fixes, nothing smoothed. The export holds the graph against the
checkpoint's own towers, and asks for a finer attempt where it lost too much.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgeclip.manifest import Measurement, Precision
from edgeclip_graph.linear import LinearLayer, linear_layers
from edgeclip_graph.narrowing import Narrow, NarrowedTrace
from edgeclip_quant.budget import DEFAULT_BUDGETS, Budget, judge, token_bound
from edgeclip_quant.kernels import PER_ROW, STATIC, Kernel, Plan
from edgeclip_quant.passes.channels import edit_fed
from edgeclip_quant.passes.integer_layers import narrow_model
from edgeclip_quant.passes.narrowing import turn_channels
from edgeclip_quant.passes.token_table import HALF_TABLE
from edgeclip_quant.pick.kernel_plan import (
    FIRST_BLOCKS,
    decoder_blocks,
    kernels_of,
    read_by_attention,
    table_bits_of,
)
from edgeclip_quant.recipes import DEFAULT_RECIPES, Recipe, precision_of

_TABLES = (4, 8, HALF_TABLE)
# Of a weight: its scale's share, and some layers that keep more bits.
_MORE_BITS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFree:
    """Graphs by a recipe without data, and the budget that their vectors are judged by."""

    recipe: Recipe
    budget: Budget

    @property
    def name(self) -> Precision:
        """The precision that was asked for."""
        return self.recipe.precision

    @property
    def attempts(self) -> int:
        """How often a graph may be written, each time with finer kernels."""
        return len(_TABLES)

    def bits_per_weight(self, *, is_followed: bool) -> float:
        """The bits that a weight of a large matrix takes on the disk."""
        return _MORE_BITS + (8 if self._recipe(is_followed=is_followed).precision == "int8" else 4)

    def __call__(self, model: ir.Model, name: str, *, is_followed: bool, attempt: int) -> NarrowedTrace:
        """Turn channels where that can be done, then replace the layers and the table."""
        recipe = self._recipe(is_followed=is_followed)
        model, fed = turn_channels(model)
        layers = linear_layers(model.graph)
        kernels = choose_kernels(layers, recipe, attempt)
        table_bits = _TABLES[min(_TABLES.index(table_bits_of(layers, recipe)) + attempt, len(_TABLES) - 1)]
        plans = {layer: Plan(kernel=kernel) for layer, kernel in kernels.items()}
        return NarrowedTrace(
            model=narrow_model(model, plans, table_bits, name),
            precision=recipe.precision,
            kernels=dict(Counter(kernels.values())),
            change_adapter=lambda name, array: edit_fed({name: array}, fed)[name],
        )

    def objections(self, measured: Sequence[Measurement], kernels: Mapping[str, int]) -> list[str]:
        """The bounds that vectors break."""
        token_cosine = token_bound(self.name, sum(kernels.values()))
        return judge(replace(self.budget, token_cosine=token_cosine), measured, 0)

    def _recipe(self, *, is_followed: bool) -> Recipe:
        return DEFAULT_RECIPES[precision_of(self.name, is_followed=True)] if is_followed else self.recipe


def choose_kernels(layers: Sequence[LinearLayer], recipe: Recipe, attempt: int) -> dict[str, Kernel]:
    """Each layer's kernel: the first that needs no data; from attempt to attempt a later one where causal attention
    reads what a layer gives, and one attempt later elsewhere. Sensitive are a decoder's first two blocks, then its
    first half, then all of it.
    """
    read, count = read_by_attention(layers), 1 + max(decoder_blocks(layers).values(), default=0)
    sensitive_blocks = (FIRST_BLOCKS, max(FIRST_BLOCKS, -(-count // 2)), count)[attempt]
    chosen: dict[str, Kernel] = {}
    for name, kernels in kernels_of(layers, recipe, sensitive_blocks).items():
        usable = [one for one in kernels if one not in STATIC]
        # Blocks come before rows where a layer moves on: nothing was observed, and an outlier spoils less of them.
        choices = [*usable[:1], *(one for one in usable[1:] if one not in PER_ROW), "fp32"]
        step = attempt if name in read else max(0, attempt - 1)
        chosen[name] = choices[min(step, len(choices) - 1)]
    return chosen


def _narrowing(to: Precision) -> DataFree:
    budget = replace(DEFAULT_BUDGETS[to], recall_points=None)
    return DataFree(recipe=DEFAULT_RECIPES[to], budget=budget)


NARROWINGS: Mapping[Precision, Narrow] = {to: _narrowing(to) for to in DEFAULT_RECIPES}
