"""Narrow one graph for the CPU to integers: each layer by the fastest kernel that is accurate enough for it.

A layer's inputs on the calibration samples decide its first kernel (`pick.kernel_plan`). Then the whole graph is run
on those samples; while its worst cosine is below the wanted one, more of its worst layers move to a finer kernel.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgeclip.families.family import Arrays
from edgeclip.manifest import FIRST_GRAPH
from edgeclip_graph.census import count_operators
from edgeclip_graph.linear import linear_layers
from edgeclip_graph.passes import lower_portable
from edgeclip_quant.graph_runner import Progress, answers, open_run
from edgeclip_quant.inputs.layer_inputs import Observation, observe
from edgeclip_quant.kernels import Plan, ReplaceLayers
from edgeclip_quant.passes.token_table import NarrowTable, token_tables
from edgeclip_quant.pick.kernel_plan import plan_layer, raise_worst
from edgeclip_quant.recipes import Recipe

Plans = Mapping[str, Sequence[Plan]]

# Shares of the layers that move on when a graph is not good enough yet, round by round; then all, until it is fp32.
_ROUNDS = (0.125, 0.25, 0.5)
# Of what a cosine may lack of 1, so much may be used up here; the proof is on other samples.
_USED_UP = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowed:
    """A graph as written: how many layers have which kernel, each layer's error, the operators."""

    kernels: Mapping[str, int]
    errors: Mapping[str, float]
    operators: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A graph before narrowing: its plain form, each layer's observed inputs on the samples (feeds), and the rows
    (N, D) of its first output and of the others.
    """

    name: str
    model: ir.Model
    samples: Sequence[Arrays]
    seen: Mapping[str, Observation]
    wanted: NDArray[np.float32]
    others: Sequence[NDArray[np.float32]] = ()

    @property
    def has_table(self) -> bool:
        """Whether tokens are gathered from a table."""
        return bool(token_tables(self.model.graph))


def plain_graph(name: str, source: Path) -> ir.Model:
    """The graph at `source` for the CPU, lowered from its portable form with layers that are MatMul and Add.

    The fp32 graph for the CPU reads its text weights in place, in two forms chosen by the number of rows, because
    reading 1.2 GB is what a short text costs there, and multiplies by parts of an image's layers separately. Integer
    weights are a quarter of that and have kernels of their own, and one input is rounded once. Raises PassError or
    InvariantError of onnx_ir, or BuildError, for a graph that is not as an export has it.
    """
    return lower_portable(name, source, "cpu", layers="plain")


def prepare(name: str, model: ir.Model, samples: Sequence[Arrays], folder: Path, progress: Progress) -> Prepared:
    """Observe a graph of `plain_graph`; `folder` holds a copy of it meanwhile."""

    def report(what: str, done: int, total: int) -> None:
        progress(f"{what}, {name}", done, total)

    seen, (wanted, *others) = observe(model, samples, folder, report)
    return Prepared(name=name, model=model, samples=samples, seen=seen, wanted=wanted, others=others)


def narrow_to_integers(
    source: Prepared,
    out: Path,
    recipe: Recipe,
    cosine: float | None,
    progress: Progress,
    *,
    may_fix: bool,
    token_cosine: float | None = None,
) -> Narrowed:
    """Write the graph by `recipe` to `out`; `cosine` is the least that is accepted of a vector, `token_cosine` of a
    token's, None any. `may_fix` as in `plan_layer`.
    """
    layers = linear_layers(source.model.graph)
    plans: dict[str, Sequence[Plan]] = {}
    for done, layer in enumerate(layers):
        progress(f"planning the {source.name} graph", done, len(layers))
        plans[layer.name] = plan_layer(layer, source.seen[layer.name], recipe, may_fix=may_fix)
    trying = f"trying the {source.name} graph"
    for share in itertools.chain(_ROUNDS, itertools.repeat(1.0)):
        operators = _write(source, out, plans, recipe, progress)
        if cosine is None or _is_kept(
            source, answers(open_run(out), source.samples, trying, progress), cosine, token_cosine
        ):
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


def _write(source: Prepared, out: Path, plans: Plans, recipe: Recipe, progress: Progress) -> dict[str, int]:
    progress(f"writing the {source.name} graph", 0, 1)
    copy = source.model.clone()
    # An image has a thousand rows, so copies count; a short text has few, so operators do.
    separates = source.name == FIRST_GRAPH["image"]
    table = (NarrowTable(recipe.table_bits),) if source.has_table else ()
    first = {name: left[0] for name, left in plans.items()}
    tidying = common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.NameFixPass()
    for step in (ReplaceLayers(first, separates=separates), *table, *tidying):
        copy = step(copy).model
    common.TopologicalSortPass()(copy)
    ir.save(copy, out, external_data=f"{out.name}_data")
    return count_operators(copy)


def _is_kept(
    source: Prepared, found: Sequence[NDArray[np.float32]], cosine: float, token_cosine: float | None
) -> bool:
    """Whether every output is as near as is wanted; one of three dimensions has a row for each token."""
    for value, rows, wanted in zip(source.model.graph.outputs, found, (source.wanted, *source.others), strict=True):
        least = cosine if len(value.shape or ()) == 2 else token_cosine
        if least is not None and not _worst(rows, wanted) >= 1 - _USED_UP * (1 - least):
            return False
    return True


def _worst(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        worst = float(((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())
    return worst if np.isfinite(worst) else -1.0
