"""Narrow one tower for the CPU to integers: each layer by the fastest kernel that is accurate enough for it.

A layer's inputs on the calibration samples decide its first kernel (`pick.kernel_plan`). Then the whole tower is run
on those samples; while its worst cosine is below the wanted one, more of its worst layers move to a finer kernel.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgeclip.manifest import TowerName
from edgeclip_graph.census import count_operators
from edgeclip_graph.linear import linear_layers
from edgeclip_quant.graph_runner import answer
from edgeclip_quant.inputs.layer_inputs import Observation, observe
from edgeclip_quant.inputs.made_up import Batches
from edgeclip_quant.kernels import Plan, replace_layer
from edgeclip_quant.passes.plain_graph import MakePlain
from edgeclip_quant.passes.token_table import replace_table
from edgeclip_quant.pick.kernel_plan import plan_layer, raise_worst
from edgeclip_quant.recipes import Recipe

Progress = Callable[[str, int, int], None]
Plans = Mapping[str, Sequence[Plan]]

# Shares of the layers that move on when a tower is not good enough yet, round by round; then all, until it is fp32.
_ROUNDS = (0.125, 0.25, 0.5)
# Of what a cosine may lack of 1, so much may be used up here; the proof is on other samples.
_USED_UP = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowed:
    """A tower's graph as written: how many layers have which kernel, each layer's error, the operators."""

    kernels: Mapping[str, int]
    errors: Mapping[str, float]
    operators: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A tower before narrowing: its plain graph, each layer's observed inputs on the samples, and its vectors
    (N, D).
    """

    name: TowerName
    model: ir.Model
    samples: Batches
    seen: Mapping[str, Observation]
    wanted: NDArray[np.float32]


def prepare(name: TowerName, source: Path, samples: Batches, folder: Path, progress: Progress) -> Prepared:
    """Read and observe the graph at `source`; `folder` holds a copy of it meanwhile.

    Raises PassError or InvariantError of onnx_ir for a graph that is not as an export leaves it.
    """
    model = MakePlain()(ir.load(source)).model
    seen, wanted = observe(model, samples, folder, lambda what, done, total: progress(f"{what}, {name}", done, total))
    return Prepared(name=name, model=model, samples=samples, seen=seen, wanted=wanted)


def narrow_to_integers(
    tower: Prepared, out: Path, recipe: Recipe, cosine: float | None, progress: Progress, *, may_fix: bool
) -> Narrowed:
    """Write the tower by `recipe` to `out`; `cosine` is the least that is accepted, None any. `may_fix` as in
    `plan_layer`.
    """
    layers = linear_layers(tower.model.graph)
    plans: dict[str, Sequence[Plan]] = {}
    for done, layer in enumerate(layers):
        progress(f"planning the {tower.name} tower", done, len(layers))
        plans[layer.name] = plan_layer(layer, tower.seen[layer.name], recipe, may_fix=may_fix)
    for share in itertools.chain(_ROUNDS, itertools.repeat(1.0)):
        operators = _write(tower, out, plans, recipe, progress)
        if cosine is None:
            break
        found = answer(out, tower.samples, f"trying the {tower.name} tower", progress)
        if _worst(found, tower.wanted) >= 1 - _USED_UP * (1 - cosine):
            break
        further = raise_worst(plans, share)
        if further == plans:
            break
        plans = further
    return Narrowed(
        kernels=dict(Counter(left[0].kernel for left in plans.values())),
        errors={layer: left[0].error for layer, left in plans.items()},
        operators=operators,
    )


def _write(tower: Prepared, out: Path, plans: Plans, recipe: Recipe, progress: Progress) -> dict[str, int]:
    progress(f"writing the {tower.name} tower", 0, 1)
    copy = tower.model.clone()
    for layer in linear_layers(copy.graph):
        # An image has a thousand rows, so copies count; a short text has few, so operators do.
        replace_layer(copy.graph, layer, plans[layer.name][0], separates=tower.name == "vision")
    if tower.name == "text":
        replace_table(copy.graph, recipe.table_bits)
    for step in (common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.NameFixPass()):
        copy = step(copy).model
    common.TopologicalSortPass()(copy)
    ir.save(copy, out, external_data=f"{out.name}_data")
    return count_operators(copy)


def _worst(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    worst = float((found.astype(np.float64) * wanted).sum(axis=1).min())
    return worst if np.isfinite(worst) else -1.0
