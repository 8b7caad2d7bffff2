"""Narrow one graph to integers, layer by layer, as finely as what it gives must be.

A layer has a row of plans, from the fastest to fp32, and begins with the first. The whole graph is run on the
calibration samples, up to the first whose cosine is below the wanted one, or until some are clearly above it; while
one is below, the worst layers move on to a finer plan, as many as their errors say must and a few at least.
"""

import abc
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PostconditionError, common

from edgeclip.families.family import Arrays
from edgeclip_graph.census import count_operators
from edgeclip_graph.linear import linear_layers
from edgeclip_quant.graph_runner import Progress, answers, each_answer, open_run
from edgeclip_quant.inputs.layer_inputs import Observation, observe
from edgeclip_quant.kernels import Plan
from edgeclip_quant.passes.channels import Edit, edit_fed
from edgeclip_quant.passes.rotation import Rotate, can_rotate
from edgeclip_quant.passes.token_table import token_tables
from edgeclip_quant.pick.kernel_plan import raise_worst, sensitivities, share_to_raise

# The least shares of the layers that move on when a graph is not good enough yet, at first and then; but no more than
# twice the share of its loss that must go.
_FIRST, _THEN = 0.125, 0.25
# Of what a cosine may lack of 1, so much may be used up here; the proof is on other samples.
_USED_UP = 0.8
# Of what may be lost, so much is aimed at: what is left in few bits loses more than its share.
_AIM = 0.8
# So many samples are enough where none loses more than half of what it may: the proof is on others.
_FEW, _CLEAR = 8, 0.5
# Largest difference that turning channels may make to an answer, as a share of its largest element: on the golden
# checkpoint 3e-6 of multi vectors and 9e-6 of image features.
TURNED = 2e-5
_COMPARED = 2  # samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowed:
    """A graph as written: how many layers have which kernel, each layer's error, the operators, and `fed` as in
    `Prepared`.
    """

    kernels: Mapping[str, int]
    errors: Mapping[str, float]
    operators: Mapping[str, int]
    fed: Mapping[str, Sequence[Edit]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A graph before narrowing: each layer's observed inputs on the samples (feeds), how much its error counts
    (`sensitivities`), and the rows (N, D) of the graph's first output and of the others.

    A graph whose channels were turned takes adapters whose arrays were edited so: `fed`, by the input's name.
    """

    name: str
    model: ir.Model
    samples: Sequence[Arrays]
    seen: Mapping[str, Observation]
    weights: Mapping[str, float]
    wanted: NDArray[np.float32]
    others: Sequence[NDArray[np.float32]] = ()
    fed: Mapping[str, Sequence[Edit]] = field(default_factory=dict)

    @property
    def has_table(self) -> bool:
        """Whether tokens are gathered from a table."""
        return bool(token_tables(self.model.graph))


def turn_channels(model: ir.Model) -> tuple[ir.Model, Mapping[str, Sequence[Edit]]]:
    """Turn a graph's channels where that can be done; and what must become of an adapter's arrays (`Rotate.fed`)."""
    if not can_rotate(model):
        return model, {}
    rotate = Rotate()
    return common.TopologicalSortPass()(rotate(model).model).model, rotate.fed


def prepare(
    name: str,
    model: ir.Model,
    samples: Sequence[Arrays],
    folder: Path,
    progress: Progress,
    *,
    original: Path | None = None,
    lower: Callable[[ir.Model], ir.Model] | None = None,
) -> Prepared:
    """Turn the channels of a graph of `plain_graph` where that can be done, and observe it; `folder` holds a copy of
    it meanwhile. `lower` makes a trace, once it is turned, into what can be run.

    The turned graph must answer some samples as the graph at `original` does; PostconditionError where it does not.
    """
    is_turned = can_rotate(model)
    model, fed = turn_channels(model)
    weights = sensitivities(linear_layers(model.graph))
    if lower is not None:
        model = lower(model)
    before, samples = samples, [edit_fed(sample, fed) for sample in samples]

    def report(what: str, done: int, total: int) -> None:
        progress(f"{what}, {name}", done, total)

    seen, (wanted, *others) = observe(model, samples, folder, report)
    if is_turned and original is not None:
        _check_turned(original, before, (wanted, *others), progress)
    return Prepared(
        name=name, model=model, samples=samples, seen=seen, weights=weights, wanted=wanted, others=others, fed=fed
    )


class Narrowing(abc.ABC):
    """A graph on its way to integers. Each `write` goes on from the plans that the one before ended with.

    `plans` are those of each layer by name, the one to begin with first; of what is no layer, too. `weights` say how
    much an error counts beside others.
    """

    def __init__(
        self, source: Prepared, plans: Mapping[str, Sequence[Plan]], weights: Mapping[str, float], progress: Progress
    ) -> None:
        self._source, self._progress = replace(source, seen={}), progress
        self._wanted = (source.wanted, *source.others)
        self._layers = list(source.seen)
        self._plans, self._weights = plans, weights
        self._least = _FIRST
        self._operators: dict[str, int] | None = None
        # What each sample that was run lost (`_try`), and where its rows end among all samples' of each output.
        self._tried: list[tuple[float, float | None]] = []
        self._ends = [0] * len(self._wanted)

    def write(self, out: Path, cosine: float | None, token_cosine: float | None = None) -> Narrowed:
        """Write the graph to `out`, the same for every call; `cosine` is the least that is accepted of a vector,
        `token_cosine` of a token's, None any.
        """
        while True:
            if self._operators is None:
                self._operators, self._tried, self._ends = self._save(out), [], [0] * len(self._wanted)
            share = self._share_kept(out, cosine, token_cosine)
            if share >= 1 or not self._move(share):
                return Narrowed(
                    kernels=self._kernels(),
                    errors={layer: self._plans[layer][0].error for layer in self._layers},
                    operators=self._operators,
                    fed=self._source.fed,
                )
            self._operators = None

    def _kernels(self) -> dict[str, int]:
        return dict(Counter(self._plans[layer][0].kernel for layer in self._layers))

    @abc.abstractmethod
    def narrow(self, plans: Mapping[str, Plan]) -> ir.Model:
        """A copy of the source's graph by these plans."""

    def _save(self, out: Path) -> dict[str, int]:
        self._progress(f"writing the {self._source.name} graph", 0, 1)
        copy = self.narrow({name: some[0] for name, some in self._plans.items()})
        ir.save(copy, out, external_data=f"{out.name}_data")
        return count_operators(copy)

    def losses(self, out: Path) -> tuple[float, float | None]:
        """What the graph at `out`, as `write` left it, loses (1 - cosine) on the samples that it was tried on, on all
        where it was not: a vector at most, and a token's vector, None where it gives none.
        """
        singles, tokens = zip(*(self._tried or self._try(out)), strict=True)
        return max(singles), max((one for one in tokens if one is not None), default=None)

    def _share_kept(self, out: Path, cosine: float | None, token_cosine: float | None) -> float:
        """What the graph may lose as a share of what it loses on the first sample that loses too much, or 1."""
        bounds = [None if least is None else _USED_UP * (1 - least) for least in (cosine, token_cosine)]
        if bounds == [None, None]:
            return 1.0
        is_clear = True
        for count, some in enumerate(self._try(out), start=1):
            pairs = zip(bounds, some, strict=True)
            asked = [(most, lost) for most, lost in pairs if most is not None and lost is not None]
            if shares := [allowed / lost for allowed, lost in asked if lost > allowed]:
                return min(shares)
            is_clear = is_clear and all(lost <= _CLEAR * allowed for allowed, lost in asked)
            if is_clear and count >= _FEW:
                break
        return 1.0

    def _try(self, out: Path) -> Iterator[tuple[float, float | None]]:
        """What the worst vector and the worst token's vector lose, sample by sample, as in `losses`; a sample is run
        once for each graph that is written.
        """
        yield from self._tried
        source = self._source
        left = source.samples[len(self._tried) :]
        if not left:
            return
        run, what = open_run(out, self._kernels()), f"trying the {source.name} graph"
        for found in each_answer(run, left, what, self._progress):
            starts, self._ends = self._ends, [end + len(rows) for end, rows in zip(self._ends, found, strict=True)]
            wanted = [rows[start:] for rows, start in zip(self._wanted, starts, strict=True)]
            lost = [_loss(rows, some[: len(rows)]) for rows, some in zip(found, wanted, strict=True)]
            # An output of three dimensions has a row for each token.
            are_single = [len(value.shape or ()) == 2 for value in source.model.graph.outputs]
            worst = max((one for one, is_single in zip(lost, are_single, strict=True) if is_single), default=0.0)
            token = max((one for one, is_single in zip(lost, are_single, strict=True) if not is_single), default=None)
            self._tried.append((worst, token))
            yield worst, token

    def _move(self, share: float) -> bool:
        """Move the worst layers, or the table, on to what loses less, so that the graph loses that share of what it
        does; whether there is any that does.
        """
        least, self._least = min(self._least, 2 * (1 - share)), _THEN
        moved = max(least, share_to_raise(self._plans, _AIM * share, self._weights))
        before, self._plans = self._plans, raise_worst(self._plans, moved, self._weights)
        return self._plans != before


def _check_turned(
    original: Path, samples: Sequence[Arrays], turned: Sequence[NDArray[np.float32]], progress: Progress
) -> None:
    """PostconditionError unless what the turned graph gave for the first samples is what the original gives."""
    some = answers(open_run(original), samples[:_COMPARED], "comparing with the turned graph", progress)
    for wanted, rows in zip(some, turned, strict=True):
        difference = float(np.abs(rows[: len(wanted)] - wanted).max() / np.abs(wanted).max())
        if not difference <= TURNED:
            raise PostconditionError(f"turning channels changed an answer by {difference:.1e}, allowed {TURNED:.0e}")


def _loss(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """1 - the worst cosine; as of opposite vectors where one is no number."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        worst = float(((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())
    return 1 - worst if math.isfinite(worst) else 2.0
