"""Choose recipes by their figures: the Pareto front of a comparison, and the recipes of all graphs that a budget
allows.

Nothing is run here.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeclip.manifest import FIRST_GRAPH, Measurement, Modality, RetrievalChange
from edgeclip_quant.budget import Budget, judge
from edgeclip_quant.proof.retrieval import Vectors, retrieval_changes
from edgeclip_quant.recipes import Recipe

# Figures nearer than this count as the same. Sizes: graphs of the same kernels differ by their nodes. Times: one
# graph timed twice on a busy machine gave 0.767 and 0.789. Losses (1 - the worst cosine): those of one half of a data
# set were 2 to 41 % more than the other half's, once 90 %.
ALIKE_SIZE, ALIKE_TIME, ALIKE_LOSS = 0.01, 0.05, 0.5
_LEAST_LOSS = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One graph by one recipe: the measurements of the modality that enters by it, its `answers` to the proof (single
    vectors, (N, D)), how many layers have which kernel.

    All other graphs are fp32 then. `kept` is the cosine for which layers were
    moved to finer kernels, None where they are as the recipe has them.
    """

    modality: Modality
    recipe: Recipe
    measured: Measurement
    answers: NDArray[np.float32]
    kernels: Mapping[str, int]
    largest_layer_error: float
    kept: float | None = None

    @property
    def graph(self) -> str:
        """The name of the graph that is narrowed."""
        return FIRST_GRAPH[self.modality]

    @property
    def loss(self) -> float:
        """1 - cosine of the worst vector, at least 1e-7; infinite where an answer is no vector."""
        loss = 1 - self.measured.worst_cosine
        return math.inf if math.isnan(loss) else max(_LEAST_LOSS, loss)

    @property
    def latency(self) -> float:
        """Latency as a fraction of the fp32 graph's."""
        assert self.measured.latency_ratio is not None
        return self.measured.latency_ratio


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """All recipes on the graphs of one bundle, on the same inputs.

    `source` is the fp32 bundle's single vectors of the proof, `pairs` as in Samples. `source_bytes` are those of the
    fp32 graph that a modality enters by, `other_bytes` those of a bundle's other files. `is_made_up` says whether the
    calibration inputs were made up.
    """

    model: str
    candidates: tuple[Candidate, ...]
    source: Vectors
    pairs: tuple[int, ...] | None
    source_bytes: Mapping[Modality, int]
    other_bytes: int
    is_made_up: bool

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities whose graphs were compared, in the order of the candidates."""
        return tuple(dict.fromkeys(one.modality for one in self.candidates))

    def of(self, modality: Modality) -> list[Candidate]:
        """The candidates for the graph of one modality."""
        return [one for one in self.candidates if one.modality == modality]

    def objection(self, one: Candidate) -> str | None:
        """Why no bundle is made by this candidate; None when one may be."""
        return one.recipe.objection(is_made_up=self.is_made_up)

    def usable(self, modality: Modality) -> list[Candidate]:
        """The candidates for the graph of one modality that a bundle may be made by."""
        return [one for one in self.of(modality) if self.objection(one) is None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """A recipe for each graph of a bundle."""

    candidates: tuple[Candidate, ...]

    @property
    def weight_bytes(self) -> int:
        """The bytes of all graphs together."""
        return sum(one.measured.weight_bytes for one in self.candidates)

    @property
    def latency(self) -> float:
        """The product of the graphs' latencies, each as a fraction of fp32's: all graphs count alike."""
        return math.prod(one.latency for one in self.candidates)

    @property
    def loss(self) -> float:
        """The product of the graphs' losses."""
        return math.prod(one.loss for one in self.candidates)

    def __str__(self) -> str:
        return ", ".join(f"{one.graph} {one.recipe.name}" for one in self.candidates)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pick:
    """The choice that was made, how many choices there are, and how many of them are within the budget."""

    choice: Choice
    choices: int
    within: int


def front(comparison: Comparison) -> list[Candidate]:
    """The Pareto front: candidates that no other for the same graph beats in one figure without losing in another.

    The figures are size, time and loss, and differences up to `ALIKE_SIZE`, `ALIKE_TIME` and `ALIKE_LOSS` count as
    equal, so that one graph that was timed twice does not beat itself. Recipes that no bundle is made by neither beat
    others nor are on the front.
    """
    return [
        one
        for modality in comparison.modalities
        for one in comparison.usable(modality)
        if not any(_beats(other, one) for other in comparison.usable(modality))
    ]


def pick(comparison: Comparison, budget: Budget) -> Pick | None:
    """The fastest choice of recipes within the budget; None when there is none.

    A latency is the median of a few noisy rounds. So of the choices whose graphs are all within `ALIKE_TIME` of the
    fastest choice's, the one that loses least is taken, of equal ones the smallest, and then the one compared first.
    A choice must keep all bounds that its bundle will be judged by: cosines, size, and recall with all graphs
    narrowed.
    It is chosen on the inputs that prove it, and looks a little better on them than on others. Recipes that no bundle
    is made by are never picked, nor is fp32, which is there already.
    """
    choices = _choices(comparison)
    within = [choice for choice in choices if not _broken(comparison, choice, budget)]
    if not within:
        return None
    fastest = min(within, key=lambda choice: choice.latency)
    alike = [choice for choice in within if _is_as_fast(choice, fastest)]
    best = min(alike, key=lambda choice: (choice.loss, choice.weight_bytes))
    return Pick(choice=best, choices=len(choices), within=len(within))


def nearest(comparison: Comparison, budget: Budget) -> str:
    """A sentence that says how near the recipes come to a budget that no choice is within, for the first bound that
    none keeps.
    """
    for modality in comparison.modalities:
        best = min(comparison.usable(modality), key=lambda one: one.loss)
        worst, wanted = best.measured.worst_cosine, -1.0 if budget.cosine is None else budget.cosine
        if not worst >= wanted:  # nor is NaN
            return (
                f"the best worst cosine of {modality} vectors is {format_cosine(worst)} ({best.recipe.name}), "
                f"wanted {wanted:g}"
            )
    sizeless = replace(budget, recall_points=None, size_mb=None)
    choices = [choice for choice in _choices(comparison) if not _broken(comparison, choice, sizeless)]
    smallest = min(choices, key=lambda choice: choice.weight_bytes)
    size_mb = (smallest.weight_bytes + comparison.other_bytes) / 1e6
    if budget.size_mb is not None and size_mb > budget.size_mb:
        kept = "" if budget.cosine is None else f" that keeps a cosine of {budget.cosine:g}"
        return f"the smallest bundle{kept} has {size_mb:.2f} MB ({smallest}), wanted {budget.size_mb:g}"
    small = [choice for choice in choices if not _broken(comparison, choice, replace(budget, recall_points=None))]
    nearest_one = max(small, key=lambda choice: _points(comparison, choice))
    return f"{nearest_one} come nearest, and {'; '.join(_broken(comparison, nearest_one, budget))}"


def format_cosine(cosine: float) -> str:
    """A cosine with two digits of its distance to 1, so that it never looks like 1 when it is not: 0.9781,
    0.99986.
    """
    if not math.isfinite(cosine) or cosine >= 1:
        return f"{cosine:.4f}"
    return f"{cosine:.{max(4, 1 - math.floor(math.log10(1 - cosine)))}f}"


def alike_words() -> str:
    """In words: the differences that count as equal."""
    return f"sizes within {ALIKE_SIZE:.0%}, times within {ALIKE_TIME:.0%}, losses within {ALIKE_LOSS:.0%}"


def _choices(comparison: Comparison) -> list[Choice]:
    graphs = (comparison.usable(modality) for modality in comparison.modalities)
    return [Choice(candidates=candidates) for candidates in itertools.product(*graphs)]


def _broken(comparison: Comparison, choice: Choice, budget: Budget) -> list[str]:
    """The bounds that a choice breaks, judged as its bundle will be; the slow searches are made only if all others
    hold.
    """
    size_bytes = choice.weight_bytes + comparison.other_bytes
    alone = [replace(one.measured, retrieval=None) for one in choice.candidates]
    broken = judge(budget, alone, size_bytes)
    if broken or budget.recall_points is None:
        return broken
    changes = _changes(comparison, choice)
    return judge(budget, [replace(one, retrieval=changes[one.modality]) for one in alone], size_bytes)


def _changes(comparison: Comparison, choice: Choice) -> Mapping[Modality, RetrievalChange | None]:
    narrowed = {one.modality: one.answers for one in choice.candidates}
    return retrieval_changes(comparison.source, narrowed, comparison.pairs)


def _points(comparison: Comparison, choice: Choice) -> float:
    """The points of the direction of search that lost most."""
    return min((one.points for one in _changes(comparison, choice).values() if one), default=0.0)


def _is_as_fast(choice: Choice, fastest: Choice) -> bool:
    graphs = zip(choice.candidates, fastest.candidates, strict=True)
    return all(one.latency <= (1 + ALIKE_TIME) * best.latency for one, best in graphs)


def _beats(one: Candidate, other: Candidate) -> bool:
    """Better by more than the tolerance in a figure, worse by more in none, and better on the whole, so that none
    beats in a circle.
    """
    better = [its - mine for mine, its in zip(_figures(one), _figures(other), strict=True)]
    return max(better) > 1 and min(better) >= -1 and sum(better) > 0


def _figures(one: Candidate) -> tuple[float, float, float]:
    """The figures in units of their tolerance; less is better."""
    return (
        math.log(one.measured.weight_bytes) / math.log1p(ALIKE_SIZE),
        math.log(one.latency) / math.log1p(ALIKE_TIME),
        math.log(one.loss) / math.log1p(ALIKE_LOSS),
    )
