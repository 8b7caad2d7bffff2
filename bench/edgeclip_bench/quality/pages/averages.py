"""Averages over the tasks of a collection: each task counts once, however many languages and queries it has.

The figure of a task in several languages is their mean already (`pages.scoring`), so the average is that of the paper
of Jina-VDR, over 43 tasks. Its interval is made of theirs: queries of two tasks are drawn apart, so the squares
of their distances to each end add up. It is of the queries, the tasks are taken as given.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeclip.manifest import Space
from edgeclip_bench.quality.pages.published import METRIC, average_of, find_task, tasks_of
from edgeclip_bench.quality.pages.search import Setting
from edgeclip_bench.quality.samples import Figure
from edgeclip_bench.quality.scores import DataScores

AVERAGED = (METRIC, "ndcg@10")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAverage:
    """The average of a metric over `tasks` of the `all_tasks` of a collection (None: tasks of no known one).

    `published` is the average of the figures published of the same tasks, `published_all` that of all of them.
    """

    collection: str | None
    metric: str
    space: Space
    dim: int
    max_pixels: int | None
    pooled: int
    tasks: int
    all_tasks: int | None
    value: float
    low: float
    high: float
    published: float | None
    published_all: float | None


def average_pages(data: Sequence[DataScores], model: str | None) -> tuple[PageAverage, ...]:
    """The averages at each setting of each collection that has two tasks or more among the data."""
    by_collection: dict[str | None, list[DataScores]] = {}
    for one in data:
        if any(score.direction == "query_to_page" for score in one.scores):
            task = find_task(one.name)
            by_collection.setdefault(task.collection if task else None, []).append(one)
    return tuple(
        average
        for collection, its_data in by_collection.items()
        if len(its_data) > 1
        for average in _averages(collection, its_data, model)
    )


def setting_of(figure: Figure | PageAverage) -> Setting:
    """The setting that a figure or an average was measured at."""
    return Setting(space=figure.space, dim=figure.dim, max_pixels=figure.max_pixels, pooled=figure.pooled)


def _averages(collection: str | None, data: Sequence[DataScores], model: str | None) -> Iterator[PageAverage]:
    overall = [score for one in data for score in one.scores if score.is_overall]
    for setting in dict.fromkeys(map(setting_of, overall)):
        for metric in AVERAGED:
            scores = [one for one in overall if one.metric == metric and setting_of(one) == setting]
            published = [one.published for one in scores if one.published is not None]
            is_all = len(published) == len(scores)
            value = sum(one.value for one in scores) / len(scores)
            below, above = (
                math.hypot(*(one.value - getattr(one, end) for one in scores)) / len(scores)
                for end in ("low", "high")
            )
            yield PageAverage(
                collection=collection,
                metric=metric,
                space=setting.space,
                dim=setting.dim,
                max_pixels=setting.max_pixels,
                pooled=setting.pooled,
                tasks=len(scores),
                all_tasks=len(tasks_of(collection)) if collection else None,
                value=value,
                low=value - below,
                high=value + above,
                published=sum(published) / len(scores) if is_all else None,
                published_all=average_of(collection, model, setting.space) if collection and is_all else None,
            )
