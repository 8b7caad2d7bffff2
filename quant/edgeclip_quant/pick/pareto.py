"""Choose recipes by their figures: the Pareto front of a comparison, and the pair of recipes that a budget allows.

Nothing is run here.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeclip.manifest import TOWERS, Measurement, RetrievalChange, TowerName
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
    """One tower by one recipe: its measurements, its `answers` (N, D) to the proof, how many layers have which
    kernel.

    The searches in `measured` use the fp32 vectors of the other tower. `kept` is the cosine for which layers were
    moved to finer kernels, None where they are as the recipe has them.
    """

    tower: TowerName
    recipe: Recipe
    measured: Measurement
    answers: NDArray[np.float32]
    kernels: Mapping[str, int]
    largest_layer_error: float
    kept: float | None = None

    @property
    def loss(self) -> float:
        """1 - cosine of the worst vector, at least 1e-7; infinite where an answer is no vector."""
        loss = 1 - self.measured.worst_cosine
        return math.inf if math.isnan(loss) else max(_LEAST_LOSS, loss)

    @property
    def latency(self) -> float:
        """Latency as a fraction of the fp32 tower's."""
        assert self.measured.latency_ratio is not None
        return self.measured.latency_ratio


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """All recipes of both towers of one bundle, on the same inputs.

    `source` is the fp32 towers' answers to the proof, `pairs` as in Samples. `source_bytes` are the fp32 towers',
    `other_bytes` those of a bundle's other files. `is_made_up` says whether the calibration inputs were made up.
    """

    model: str
    candidates: tuple[Candidate, ...]
    source: Vectors
    pairs: tuple[int, ...] | None
    source_bytes: Mapping[TowerName, int]
    other_bytes: int
    is_made_up: bool

    def of(self, tower: TowerName) -> list[Candidate]:
        """The candidates of one tower."""
        return [one for one in self.candidates if one.tower == tower]

    def objection(self, one: Candidate) -> str | None:
        """Why no bundle is made by this candidate; None when one may be."""
        return one.recipe.objection(is_made_up=self.is_made_up)

    def usable(self, tower: TowerName) -> list[Candidate]:
        """The candidates of one tower that a bundle may be made by."""
        return [one for one in self.of(tower) if self.objection(one) is None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """A recipe for the text tower and one for the vision tower."""

    text: Candidate
    vision: Candidate

    @property
    def towers(self) -> tuple[Candidate, Candidate]:
        """The text tower's candidate and the vision tower's."""
        return self.text, self.vision

    @property
    def weight_bytes(self) -> int:
        """The bytes of both towers together."""
        return self.text.measured.weight_bytes + self.vision.measured.weight_bytes

    @property
    def latency(self) -> float:
        """The product of both towers' latencies, each as a fraction of fp32's: a bundle is for texts and images
        alike.
        """
        return self.text.latency * self.vision.latency

    @property
    def loss(self) -> float:
        """The product of both towers' losses."""
        return self.text.loss * self.vision.loss

    def __str__(self) -> str:
        return f"text {self.text.recipe.name}, vision {self.vision.recipe.name}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pick:
    """The pair that was chosen, how many pairs there are, and how many of them are within the budget."""

    pair: Pair
    pairs: int
    within: int


def front(comparison: Comparison) -> list[Candidate]:
    """The Pareto front: candidates that no other of the same tower beats in one figure without losing in another.

    The figures are size, time and loss, and differences up to `ALIKE_SIZE`, `ALIKE_TIME` and `ALIKE_LOSS` count as
    equal, so that one graph that was timed twice does not beat itself. Recipes that no bundle is made by neither beat
    others nor are on the front.
    """
    return [
        one
        for name in TOWERS
        for one in comparison.usable(name)
        if not any(_beats(other, one) for other in comparison.usable(name))
    ]


def pick(comparison: Comparison, budget: Budget) -> Pick | None:
    """The fastest pair of recipes within the budget; None when no pair is.

    A latency is the median of a few noisy rounds. So of the pairs whose towers are both within `ALIKE_TIME` of the
    fastest pair's, the one that loses least is taken, of equal ones the smallest, and then the one compared first. A
    pair must keep all bounds that its bundle will be judged by: cosines, size, and recall with both towers narrowed.
    It is chosen on the inputs that prove it, and looks a little better on them than on others. Recipes that no bundle
    is made by are never picked, nor is fp32, which is there already.
    """
    pairs = _pairs(comparison)
    within = [pair for pair in pairs if not _broken(comparison, pair, budget)]
    if not within:
        return None
    fastest = min(within, key=lambda pair: pair.latency)
    alike = [pair for pair in within if _is_as_fast(pair, fastest)]
    best = min(alike, key=lambda pair: (pair.loss, pair.weight_bytes))
    return Pick(pair=best, pairs=len(pairs), within=len(within))


def nearest(comparison: Comparison, budget: Budget) -> str:
    """A sentence that says how near the recipes come to a budget that no pair is within, for the first bound that
    none keeps.
    """
    for name in TOWERS:
        best = min(comparison.usable(name), key=lambda one: one.loss)
        worst, wanted = best.measured.worst_cosine, -1.0 if budget.cosine is None else budget.cosine
        if not worst >= wanted:  # nor is NaN
            return (
                f"the {name} tower's best worst cosine is {format_cosine(worst)} ({best.recipe.name}), "
                f"wanted {wanted:g}"
            )
    sizeless = replace(budget, recall_points=None, size_mb=None)
    pairs = [pair for pair in _pairs(comparison) if not _broken(comparison, pair, sizeless)]
    smallest = min(pairs, key=lambda pair: pair.weight_bytes)
    size_mb = (smallest.weight_bytes + comparison.other_bytes) / 1e6
    if budget.size_mb is not None and size_mb > budget.size_mb:
        kept = "" if budget.cosine is None else f" that keeps a cosine of {budget.cosine:g}"
        return f"the smallest bundle{kept} has {size_mb:.2f} MB ({smallest}), wanted {budget.size_mb:g}"
    small = [pair for pair in pairs if not _broken(comparison, pair, replace(budget, recall_points=None))]
    best_pair = max(small, key=lambda pair: _points(comparison, pair))
    return f"{best_pair} come nearest, and {'; '.join(_broken(comparison, best_pair, budget))}"


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


def _pairs(comparison: Comparison) -> list[Pair]:
    towers = (comparison.usable(name) for name in TOWERS)
    return [Pair(text=text, vision=vision) for text, vision in itertools.product(*towers)]


def _broken(comparison: Comparison, pair: Pair, budget: Budget) -> list[str]:
    """The bounds that a pair breaks, judged as its bundle will be; the slow searches are made only if all others
    hold.
    """
    size_bytes = pair.weight_bytes + comparison.other_bytes
    alone = [replace(one.measured, retrieval=None) for one in pair.towers]
    broken = judge(budget, alone, size_bytes)
    if broken or budget.recall_points is None:
        return broken
    changes = _changes(comparison, pair)
    searched = [replace(one, retrieval=change) for one, change in zip(alone, changes, strict=True)]
    return judge(budget, searched, size_bytes)


def _changes(comparison: Comparison, pair: Pair) -> tuple[RetrievalChange | None, RetrievalChange | None]:
    narrowed = Vectors(text=pair.text.answers, vision=pair.vision.answers)
    return retrieval_changes(comparison.source, narrowed, comparison.pairs)


def _points(comparison: Comparison, pair: Pair) -> float:
    """The points of the direction of search that lost most."""
    return min((one.points for one in _changes(comparison, pair) if one), default=0.0)


def _is_as_fast(pair: Pair, fastest: Pair) -> bool:
    towers = zip(pair.towers, fastest.towers, strict=True)
    return all(one.latency <= (1 + ALIKE_TIME) * best.latency for one, best in towers)


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
