"""Judge searches of pages: nDCG and recall of each query, their means with intervals, and what was published.

nDCG is trec_eval's `ndcg_cut`: linear gain by the grades as they are, ideal over all judged pages. The figure of a
task in several languages is the mean over the languages, as mteb and the paper of Jina-VDR have it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from edgeclip.errors import InputError
from edgeclip.inputs.patches import check_max_pixels
from edgeclip.manifest import Manifest, PatchFacts
from edgeclip.progress import ProgressBar
from edgeclip_bench.quality.datasets import PageData, count_judged
from edgeclip_bench.quality.metrics import ndcg_at, recall_of_relevant_at
from edgeclip_bench.quality.pages.published import MAX_PIXELS, METRIC, SOURCE, find_task
from edgeclip_bench.quality.pages.search import FoundPages, PageOptions, PageSearch, Setting
from edgeclip_bench.quality.samples import Sample, samples_of
from edgeclip_bench.quality.scores import DataScores, Score
from edgeclip_bench.quality.searches import label_of, languages_of

NDCG_AT = (5, 10)
RECALL_AT = (1, 5, 10)


def check_options(manifest: Manifest, data: Sequence[object], options: PageOptions) -> None:
    """InputError for a setting that the model or the data do not have."""
    asked = [f"--max-pixels {one}" for one in options.max_pixels if one is not None]
    asked += [f"--pooled {one}" for one in options.pooled if one != 1]
    if asked and not all(isinstance(one, PageData) for one in data):
        raise InputError(f"{asked[0]} is for pages with queries; evaluate other data without it")
    for factor in options.pooled:
        if type(factor) is not int or factor < 1:
            raise InputError(f"--pooled is {factor!r}, wanted an int of 1 or more")
    if any(factor != 1 for factor in options.pooled):
        manifest.need_multi()
    for pixels in options.max_pixels:
        if pixels is not None and not isinstance(manifest.image, PatchFacts):
            raise InputError(f"--max-pixels {pixels}: {manifest.source.name} makes all images one size")
        if isinstance(manifest.image, PatchFacts):
            check_max_pixels(pixels, manifest.image)


def page_sizes(data: PageData) -> dict[str, int]:
    """The numbers of a data set's pages (each corpus once), queries and judged queries."""
    return {
        "pages": sum(len(pages.ids) for pages in data.corpora),
        "queries": sum(len(part.queries) for part in data.parts),
        **count_judged(*(part.grades for part in data.parts)),
    }


def judge_pages(searches: Sequence[PageSearch]) -> Iterator[Sample]:
    """Every metric of the searches of one setting."""
    for k in NDCG_AT:
        yield from samples_of(f"ndcg@{k}", searches, [ndcg_at(one.top, one.grades, k) for one in searches])
    for k in RECALL_AT:
        values = [recall_of_relevant_at(one.top, one.grades, k) for one in searches]
        yield from samples_of(f"recall@{k}", searches, values)


def score_pages(found: FoundPages, *, is_shown: bool = False) -> DataScores:
    """The scores of a data set at every setting. `kept` is the share of the full width, not pooled, of that space."""
    data = found.data
    scores: list[Score] = []
    with ProgressBar(f"{label_of(data)}: judging, settings", len(found.searches), is_shown=is_shown) as bar:
        for setting, searches in found.searches.items():
            scores += [_score(found, setting, sample) for sample in judge_pages(searches)]
            bar.advance()
    whole = {_kind(score): score.value for score in scores if score.pooled == 1 and score.dim == _full(found, score)}
    scores = [replace(score, kept=score.value / of if (of := whole[_kind(score)]) > 0 else None) for score in scores]
    return DataScores(
        name=data.name,
        label=label_of(data),
        kind=f"page retrieval, form {data.parts[0].pages.form}",
        sizes=page_sizes(data),
        languages=languages_of(data),
        task=found.tasks.queries,
        item_task=found.tasks.items,
        embedded=found.counts,
        scores=tuple(scores),
    )


def _full(found: FoundPages, score: Score) -> int:
    return max(setting.dim for setting in found.searches if setting.space == score.space)


def _kind(score: Score) -> tuple[object, ...]:
    return score.metric, score.language, score.is_overall, score.space, score.max_pixels


def _score(found: FoundPages, setting: Setting, sample: Sample) -> Score:
    value, interval, known = sample.figure(), sample.interval(), _published(found, setting, sample)
    is_same_size = setting.max_pixels == MAX_PIXELS or not found.has_max_pixels
    return Score(
        **sample.facts(setting.dim),
        space=setting.space,
        max_pixels=setting.max_pixels,
        pooled=setting.pooled,
        value=value,
        low=interval.low,
        high=interval.high,
        kept=None,
        published=known,
        published_source=SOURCE if known is not None else None,
        difference=value - known if known is not None and is_same_size else None,
    )


def _published(found: FoundPages, setting: Setting, sample: Sample) -> float | None:
    """The published figure of the same kind: of the whole test, at full width, with one right page for each query.

    Judgements of the form "beir" have more for some queries of some tasks; then a figure over all is another one.
    """
    data, task = found.data, find_task(found.data.name)
    full = max(other.dim for other in found.searches if other.space == setting.space)
    if task is None or not data.is_whole or sample.metric != METRIC or (setting.dim, setting.pooled) != (full, 1):
        return None
    if any(part.pages.form == "beir" and not _has_single_answers(part.grades) for part in data.parts):
        return None
    published = task.find(found.model, setting.space, sample.language)
    if sample.language is None and len(task.figures) > 1:  # the mean over other languages is another one
        return published if set(languages_of(data)) == set(task.figures) - {None} else None
    return published


def _has_single_answers(grades: Sequence[tuple[int, int, int]]) -> bool:
    right = np.array([query for query, _, grade in grades if grade > 0], np.int64)
    return len(np.unique(right)) == len(right)
