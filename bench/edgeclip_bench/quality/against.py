"""Compare two bundles of one model on the same data: the loss of the smaller one, and the inputs that lose most.

Figures of two runs differ by chance too, so queries are paired: the interval is of the difference on the same
queries. A figure that stayed may hide that other things are found (agreement), and a mean cosine hides the
inputs that went wrong: the worst are named, with what became of their ranks.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from edgeclip import Encoder, InputError
from edgeclip.bundle.closeness import row_cosines
from edgeclip.bundle.files import open_manifest
from edgeclip.manifest import Modality
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.measure.cosines import CosineSummary, summarize_cosines
from edgeclip_bench.quality.datasets import Data, ImageTextData, PageData, StsData, TextRetrievalData, VectorData
from edgeclip_bench.quality.embeddings import Embedder
from edgeclip_bench.quality.evaluate import (
    Documented,
    Evaluation,
    Opening,
    check_data,
    choose_dims,
    evaluation_of,
    open_embedder,
    page_options,
    score_data,
    warn_of_cut,
)
from edgeclip_bench.quality.metrics import NEVER
from edgeclip_bench.quality.pages.scoring import check_options, judge_pages, score_pages
from edgeclip_bench.quality.pages.search import FoundPages, PageOptions, search_pages
from edgeclip_bench.quality.samples import Figure, Sample, Values, agree, judge
from edgeclip_bench.quality.scores import DataScores
from edgeclip_bench.quality.searches import Direction, Embedded, Search, class_prompts, embed, label_of, searches

# How many of each modality's inputs, those with the lowest cosines, are named.
WORST = 10


class CheckpointWarning(UserWarning):
    """The bundles were made from two checkpoints: their difference is not what export or precision costs alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(Figure):
    """A figure of the bundle less the reference's, in points (hundredths), with its paired 95 % interval."""

    data: str
    value: float
    reference: float
    points: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement(Figure):
    """The share of what a query finds first that both bundles find, as a mean over the queries."""

    data: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCloseness(CosineSummary):
    """The cosines between both bundles' full-width vectors of each input of a modality."""

    data: str
    modality: Modality


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstInput:
    """An input that the bundles disagree about most, and the ranks (from 1) of its best right item, if it has one."""

    data: str
    modality: Modality
    input: str
    cosine: float
    direction: Direction | None
    language: str | None
    rank: int | None
    reference_rank: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Documented):
    """`evaluation` is the bundle's, `reference` the other's, which it is held against."""

    evaluation: Evaluation
    reference: Evaluation
    differences: tuple[Difference, ...]
    agreements: tuple[Agreement, ...]
    closeness: tuple[DataCloseness, ...]
    worst: tuple[WorstInput, ...]

    @property
    def is_one_checkpoint(self) -> bool:
        """Whether both bundles were made from the same weights."""
        return self.evaluation.bundle.checkpoint_sha256 == self.reference.bundle.checkpoint_sha256

    def as_dict(self) -> dict[str, Any]:
        """The document, as JSON has it."""
        return {"is_one_checkpoint": self.is_one_checkpoint, **asdict(self)}


def compare(
    bundle: Path | Encoder,
    other: Path | Encoder,
    data: Sequence[Data],
    *,
    truncate_dims: Sequence[int] | None = None,
    task: str | None = None,
    max_pixels: Sequence[int] = (),
    pooled: Sequence[int] = (),
    **opening: Unpack[Opening],
) -> Comparison:
    """Evaluate both bundles on the same data, one after the other; arguments and errors are those of `evaluate`.

    InputError also for vectors of two widths: they are of two models. Bundles of two checkpoints are a
    CheckpointWarning; the texts that either cut are one TruncationWarning.
    """
    manifests = [
        side.manifest if isinstance(side, Encoder) else open_manifest(Path(side)) for side in (bundle, other)
    ]
    widths = [manifest.embedding_dim for manifest in manifests]
    if widths[0] != widths[1]:
        raise InputError(f"vectors of {widths[0]} and of {widths[1]} dimensions: wanted two bundles of one model")
    for manifest in manifests:
        check_data(data, task, manifest)
    dims = choose_dims(manifests[0], truncate_dims)
    options = page_options(dims, max_pixels, pooled)
    for manifest in manifests:
        check_options(manifest, data, options)
    encoders: list[Encoder] = []
    embedded: list[list[Embedded | FoundPages]] = []
    for side in (bundle, other):
        with open_embedder(side, **opening) as embedder:
            encoders.append(embedder.encoder)
            embedded.append([_embed(embedder, one, task, options) for one in data])
    is_shown = is_wanted(opening.get("progress"))
    pairs = [_pair(mine, its, dims, is_shown=is_shown) for mine, its in zip(*embedded, strict=True)]
    found = Comparison(
        evaluation=evaluation_of(bundle, encoders[0], dims, tuple(pair.mine for pair in pairs)),
        reference=evaluation_of(other, encoders[1], dims, tuple(pair.its for pair in pairs)),
        differences=tuple(difference for pair in pairs for difference in pair.differences),
        agreements=tuple(agreement for pair in pairs for agreement in pair.agreements),
        closeness=tuple(closeness for pair in pairs for closeness in pair.closeness),
        worst=tuple(worst for pair in pairs for worst in pair.worst),
    )
    sides = found.evaluation, found.reference
    if not found.is_one_checkpoint:
        sources = " and ".join(f"{side.bundle.name} ({side.bundle.source})" for side in sides)
        warnings.warn(CheckpointWarning(f"two checkpoints are compared: {sources}"), stacklevel=2)
    warn_of_cut(*sides)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """The scores of both bundles on one data set, and how they differ."""

    mine: DataScores
    its: DataScores
    differences: list[Difference]
    agreements: list[Agreement]
    closeness: list[DataCloseness]
    worst: list[WorstInput]


def _embed(embedder: Embedder, data: Data, task: str | None, options: PageOptions) -> Embedded | FoundPages:
    if isinstance(data, PageData):
        return search_pages(embedder, data, task, options)
    return embed(embedder, data, task)


def _pair(mine: Embedded | FoundPages, its: Embedded | FoundPages, dims: tuple[int, ...], *, is_shown: bool) -> _Pair:
    if isinstance(mine, FoundPages) and isinstance(its, FoundPages):
        return _pair_pages(mine, its, is_shown=is_shown)
    if isinstance(mine, Embedded) and isinstance(its, Embedded):
        return _pair_vectors(mine, its, dims, is_shown=is_shown)
    raise AssertionError("both sides have the same data")


def _pair_pages(mine: FoundPages, its: FoundPages, *, is_shown: bool) -> _Pair:
    """Differences and agreement at every setting, and the cosines of single vectors; no input is named."""
    label = label_of(mine.data)
    differences, agreements = [], []
    for setting, searched in mine.searches.items():
        others, named = its.searches[setting], asdict(setting)
        for one, other in zip(judge_pages(searched), judge_pages(others), strict=True):
            differences.append(_difference(label, {**one.facts(setting.dim), **named}, one, other))
        agreements += [
            Agreement(data=label, **{**sample.facts(setting.dim), **named}, share=sample.figure())
            for sample in agree(searched, others)
        ]
    cosines: dict[Modality, Values] = {
        "text": row_cosines(mine.queries, its.queries),
        "image": row_cosines(mine.pages, its.pages),
    }
    return _Pair(
        mine=score_pages(mine, is_shown=is_shown),
        its=score_pages(its),
        differences=differences,
        agreements=agreements,
        closeness=_closeness(label, cosines),
        worst=[],
    )


def _closeness(label: str, cosines: Mapping[Modality, Values]) -> list[DataCloseness]:
    return [
        DataCloseness(data=label, modality=modality, **asdict(summarize_cosines(found)))
        for modality, found in cosines.items()
    ]


def _pair_vectors(mine: Embedded, its: Embedded, dims: tuple[int, ...], *, is_shown: bool) -> _Pair:
    label = label_of(mine.data)
    samples: list[tuple[int, Sample, Sample]] = []
    agreements = []
    found: list[Search] = []
    others: list[Search] = []
    with ProgressBar(f"{label}: judging, dims", len(dims), is_shown=is_shown) as bar:
        for dim in dims:  # the full width comes last, and its ranks are asked for again below
            found, others = searches(mine, dim), searches(its, dim)
            both = zip(judge(mine, dim, found), judge(its, dim, others), strict=True)
            samples += ((dim, one, other) for one, other in both)
            agreements += [
                Agreement(data=label, **sample.facts(dim), share=sample.figure()) for sample in agree(found, others)
            ]
            bar.advance()
    # Of each modality; of texts alone, those of `queries` before those of `items`.
    of_queries, of_items = row_cosines(mine.queries, its.queries), row_cosines(mine.items, its.items)
    cosines: dict[Modality, Values] = {"text": of_queries, "image": of_items}
    if mine.item_modality == "text":
        cosines = {"text": np.concatenate((of_queries, of_items))}
    return _Pair(
        mine=score_data(mine, ((dim, one) for dim, one, _ in samples)),
        its=score_data(its, ((dim, other) for dim, _, other in samples)),
        differences=[_difference(label, one.facts(dim), one, other) for dim, one, other in samples],
        agreements=agreements,
        closeness=_closeness(label, cosines),
        worst=[
            worst
            for modality, of_modality in cosines.items()
            for worst in _worst(mine, modality, of_modality, list(zip(found, others, strict=True)))
        ],
    )


def _difference(label: str, facts: Mapping[str, Any], mine: Sample, its: Sample) -> Difference:
    value, reference, interval = mine.figure(), its.figure(), mine.difference(its)
    return Difference(
        data=label,
        **facts,
        value=value,
        reference=reference,
        points=100 * (value - reference),
        low=100 * interval.low,
        high=100 * interval.high,
    )


def _worst(
    embedded: Embedded, modality: Modality, cosines: Values, pairs: Sequence[tuple[Search, Search]]
) -> list[WorstInput]:
    """The inputs with the lowest cosines, each once."""
    found: dict[str, WorstInput] = {}
    for place in np.argsort(cosines, kind="stable").tolist():
        if len(found) == WORST:
            break
        is_item = modality == "image" or place >= len(embedded.queries)
        row = place - len(embedded.queries) if is_item and modality == "text" else place
        name = _name(embedded.data, row, is_item)
        if name not in found:
            search, rank, reference_rank = _most_moved(pairs, row, is_item)
            languages = search.languages if search else None
            found[name] = WorstInput(
                data=label_of(embedded.data),
                modality=modality,
                input=name,
                cosine=float(cosines[place]),
                direction=search.direction if search else None,
                language=str(languages[row]) if languages is not None else search.language if search else None,
                rank=rank,
                reference_rank=reference_rank,
            )
    return list(found.values())


def _name(data: VectorData, row: int, is_item: bool) -> str:
    if isinstance(data, ImageTextData):
        return str(data.images[row]) if is_item else data.captions[row].text
    if isinstance(data, TextRetrievalData):
        return f"document {data.corpus_ids[row]}" if is_item else data.queries[row]
    if isinstance(data, StsData):
        return data.second[row] if is_item else data.first[row]
    return str(data.images[row]) if is_item else class_prompts(data)[row]


def _most_moved(
    pairs: Sequence[tuple[Search, Search]], row: int, is_item: bool
) -> tuple[Search | None, int | None, int | None]:
    """The search with this input in which its rank moved most, and both ranks from 1."""
    ranks = []
    for mine, its in pairs:
        place = int(np.searchsorted(mine.rows, row))
        is_in_it = mine.direction.startswith("image_") == is_item and place < len(mine.rows)
        if is_in_it and mine.rows[place] == row:
            ranks.append((mine, int(mine.ranks[place]), int(its.ranks[place])))
    if not ranks:
        return None, None, None
    search, *both = max(ranks, key=lambda found: abs(found[1] - found[2]))
    rank, reference_rank = (None if place == NEVER else place + 1 for place in both)
    return search, rank, reference_rank
