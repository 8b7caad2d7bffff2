"""Turn searches into one value per query, of which scores, intervals and comparisons are made.

"Overall" is all captions together where captions search images. Where images search captions it is the mean
over the languages: the captions of all languages at once would be an easier task, with more of them right.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip_bench.quality.datasets import ImageTextData, StsData, TextRetrievalData
from edgeclip_bench.quality.intervals import Interval, bootstrap_difference, bootstrap_mean, bootstrap_statistic
from edgeclip_bench.quality.metrics import Grades, ndcg_at, recall_of_relevant_at, spearman, top_k_agreement
from edgeclip_bench.quality.searches import Direction, Embedded, Indices, Search, cut

Values = NDArray[np.float64]

RECALL_AT = (1, 5, 10)
TOP_CLASSES = (1, 5)
NDCG_AT = 10
RELEVANT_AT = (10, 100)
AGREEMENT_AT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The facts that name a figure: its metric, its direction and its truncate_dim, over `samples` queries.

    `language` is None over several languages or where none is named.
    """

    metric: str
    direction: Direction | None
    language: str | None
    is_overall: bool
    dim: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One value per query. The figure is their mean, or with `targets` their Spearman correlation with them.

    Values of one group are of one image and resampled together. With `weight`, 1 on average, the mean is one
    over languages of unequal size; the interval takes these sizes as given.
    """

    metric: str
    direction: Direction | None
    language: str | None
    is_overall: bool
    values: Values
    groups: Indices
    weight: Values | None = None
    targets: Values | None = None

    def facts(self, dim: int) -> dict[str, Any]:
        """The fields of a `Figure` at one truncate_dim."""
        names = ("metric", "direction", "language", "is_overall")
        return {**{name: getattr(self, name) for name in names}, "dim": dim, "samples": len(self.values)}

    def figure(self) -> float:
        """The mean, from 0 to 1, or the correlation, from -1 to 1."""
        if self.targets is not None:
            return spearman(self.values, self.targets)
        return float(np.average(self.values, weights=self.weight))

    def interval(self) -> Interval:
        """The 95 % interval of the figure."""
        if self.targets is not None:
            return bootstrap_statistic(spearman, self.values, self.targets)
        values, scale = self._shares()
        found = bootstrap_mean(values, self.groups)
        return Interval(low=found.low * scale, high=min(1.0, found.high * scale))

    def difference(self, other: "Sample") -> Interval:
        """The 95 % interval of figure() - other.figure(), paired, because both are of the same queries."""
        if self.targets is not None:
            return bootstrap_statistic(_spearman_difference, self.values, other.values, self.targets)
        (values, scale), (others, _) = self._shares(), other._shares()
        found = bootstrap_difference(values, others, self.groups)
        return Interval(low=max(-1.0, found.low * scale), high=min(1.0, found.high * scale))

    def _shares(self) -> tuple[Values, float]:
        """Values from 0 to 1, and what their mean must be multiplied with."""
        if self.weight is None:
            return self.values, 1.0
        scale = float(self.weight.max())
        return self.values * (self.weight / scale), scale


def judge(embedded: Embedded, dim: int, found: Sequence[Search]) -> Iterator[Sample]:
    """Every metric of a data set at one truncate_dim; `found` is what `searches` gave for it."""
    data = embedded.data
    if isinstance(data, StsData):
        first, second = (cut(vectors, dim).astype(np.float64) for vectors in (embedded.queries, embedded.items))
        yield Sample(
            metric="spearman",
            direction=None,
            language=data.language,
            is_overall=True,
            values=(first * second).sum(axis=1),
            groups=np.arange(len(first)),
            targets=np.array(data.scores, np.float64),
        )
    elif isinstance(data, TextRetrievalData):
        grades: dict[int, dict[int, int]] = {}
        for query, item, grade in data.grades:
            grades.setdefault(query, {})[item] = grade
        judged = [grades[int(row)] for row in found[0].rows]
        yield from _samples(f"ndcg@{NDCG_AT}", found, partial(_ndcg, grades=judged))
        for k in RELEVANT_AT:
            yield from _samples(f"recall@{k}", found, partial(_share_of_relevant, grades=judged, k=k))
    else:
        metric, first_k = ("recall@", RECALL_AT) if isinstance(data, ImageTextData) else ("top-", TOP_CLASSES)
        for k in first_k:
            yield from _samples(f"{metric}{k}", found, partial(_hits, k=k))


def agree(found: Sequence[Search], others: Sequence[Search]) -> Iterator[Sample]:
    """The share of what each query finds first that both find: of ten, and of one where it finds classes."""
    if not found:
        return
    k = 1 if found[0].direction == "image_to_class" else AGREEMENT_AT
    other_of = dict(zip(map(id, found), others, strict=True))

    def share(search: Search) -> Values:
        return top_k_agreement(search.top[:, :k], other_of[id(search)].top[:, :k])

    yield from _samples(f"agreement@{k}", found, share)


def _hits(search: Search, k: int) -> Values:
    return (search.ranks < k).astype(np.float64)


def _ndcg(search: Search, grades: Grades) -> Values:
    return ndcg_at(search.top, grades, NDCG_AT)


def _share_of_relevant(search: Search, grades: Grades, k: int) -> Values:
    return recall_of_relevant_at(search.top, grades, k)


def _samples(metric: str, found: Sequence[Search], value: Callable[[Search], Values]) -> Iterator[Sample]:
    """Yield the sample over all queries of each direction, and one for each language.

    Several searches of one direction are one for each language.
    """
    for direction in dict.fromkeys(search.direction for search in found):
        of_direction = [search for search in found if search.direction == direction]
        sample = partial(Sample, metric=metric, direction=direction)
        if len(of_direction) > 1:
            parts = [
                sample(language=search.language, is_overall=False, values=value(search), groups=search.groups)
                for search in of_direction
            ]
            sizes = np.array([len(part.values) for part in parts])
            yield sample(
                language=None,
                is_overall=True,
                values=np.concatenate([part.values for part in parts]),
                groups=np.concatenate([part.groups for part in parts]),
                weight=np.repeat(sizes.sum() / (len(sizes) * sizes), sizes),
            )
            yield from parts
            continue
        (search,) = of_direction
        values, groups = value(search), search.groups
        yield sample(language=search.language, is_overall=True, values=values, groups=groups)
        if search.languages is not None:
            for language in dict.fromkeys(search.languages.tolist()):
                is_its = search.languages == language
                yield sample(language=language, is_overall=False, values=values[is_its], groups=groups[is_its])


def _spearman_difference(values: Values, others: Values, targets: Values) -> float:
    return spearman(values, targets) - spearman(others, targets)
