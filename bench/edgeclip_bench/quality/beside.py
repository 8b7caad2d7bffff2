"""Evaluate bundles of several models on one's own pictures: one table, with what each model's authors published.

Vectors of two models cannot be compared, but what is found with them can. Published figures are of other pictures;
they say whether one's own are as hard, and whether the models come in the same order on them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack, get_args

from edgeclip import Encoder
from edgeclip.bundle.files import open_manifest
from edgeclip_bench.measure.report_table import Table
from edgeclip_bench.quality.datasets import Data
from edgeclip_bench.quality.evaluate import Documented, Evaluation, Opening, check_data, evaluate
from edgeclip_bench.quality.pages.report import beside_table
from edgeclip_bench.quality.percent import percent, with_interval
from edgeclip_bench.quality.published import OF_MODELS, Direction, Published, model_of
from edgeclip_bench.quality.report import WAYS, Report, make_report

_METRIC = "recall@5"
_BENCHMARKS = {"coco": "COCO", "flickr30k": "Flickr30k", "xm3600": "XM3600", "xtd10": "XTD10"}
_NOTE = "COCO to XTD10: recall@5 that the model's authors published, the mean over languages, of other pictures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside(Documented):
    """Evaluations of several bundles on the same data, in the order in which they were named."""

    evaluations: tuple[Evaluation, ...]


def evaluate_beside(
    bundles: Sequence[Path | Encoder],
    data: Sequence[Data],
    *,
    truncate_dims: Sequence[int] | None = None,
    task: str | None = None,
    max_pixels: Sequence[int] = (),
    pooled: Sequence[int] = (),
    **opening: Unpack[Opening],
) -> Beside:
    """Evaluate the bundles, one after the other, as `evaluate` does; without `truncate_dims` at full width alone."""
    for bundle in bundles:
        check_data(data, task, bundle.manifest if isinstance(bundle, Encoder) else open_manifest(Path(bundle)))
    of_pages: dict[str, Sequence[int]] = {"max_pixels": max_pixels, "pooled": pooled}
    found = (
        evaluate(one, data, truncate_dims=truncate_dims or (), task=task, **of_pages, **opening) for one in bundles
    )
    return Beside(evaluations=tuple(found))


def report_beside(found: Beside) -> Report:
    """The report of the first bundle, after the tables that have all of them."""
    first, *others = found.evaluations
    own = make_report(first)
    names = ", ".join(other.bundle.name for other in others)
    return Report(
        title=f"{own.title} beside {names}",
        facts=own.facts,
        tables=(*_tables(found), *own.tables),
        notes=own.notes,
    )


def _tables(found: Beside) -> Iterator[Table]:
    """Yield a table for each data set of images with captions, and each direction; and one for each of pages."""
    for place, data in enumerate(found.evaluations[0].data):
        if data.scores[0].direction == "query_to_page":
            yield beside_table([(one.bundle.name, one.data[place]) for one in found.evaluations])
            continue
        for direction in get_args(Direction):
            rows = []
            sources: dict[str, None] = {}
            for evaluation in found.evaluations:
                full = evaluation.dims[-1]
                published = _published(evaluation.bundle.family, full, direction)
                for score in evaluation.data[place].scores:
                    if (score.metric, score.direction, score.dim) == (_METRIC, direction, full) and score.is_overall:
                        here = with_interval(score.value, score.low, score.high)
                        theirs = (published[name].value if name in published else None for name in _BENCHMARKS)
                        rows.append((evaluation.bundle.name, here, *map(percent, theirs)))
                        sources |= dict.fromkeys(one.source for one in published.values())
            if rows:
                yield Table(
                    title=f"{data.label}, {WAYS[direction]}: {_METRIC}, per cent",
                    header=("bundle", "here", *_BENCHMARKS.values()),
                    rows=tuple(rows),
                    notes=(_NOTE, f"published: {', '.join(sources)}") if sources else (),
                )


def _published(family: str, dim: int, direction: Direction) -> dict[str, Published]:
    """The published figures of a model at its full width, by the benchmark: English, or the mean over languages."""
    figures = OF_MODELS.get(model_of(family, dim) or "", ())
    return {
        one.dataset: one
        for one in figures
        if (one.direction, one.dim) == (direction, dim)
        and one.language == ("en" if one.dataset in ("coco", "flickr30k") else None)
    }
