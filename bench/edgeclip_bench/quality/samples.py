"""Turn searches into one value per query, of which scores, intervals and comparisons are made.

"Overall" is all captions together where captions search images. Where images search captions it is the mean
over the languages: the captions of all languages at once would be an easier task, with more of them right.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.manifest import Space
from edgeclip_bench.quality.datasets import ImageTextData, StsData, TextRetrievalData
from edgeclip_bench.quality.intervals import Interval, bootstrap_difference, bootstrap_mean, bootstrap_statistic
from edgeclip_bench.quality.metrics import ndcg_at, recall_of_relevant_at, spearman, top_k_agreement
from edgeclip_bench.quality.searches import Direction, Embedded, Indices, Search, cut

Values = NDArray[np.float64]

RECALL_AT = (1, 5, 10)
TOP_CLASSES = (1, 5)
NDCG_AT = 10
RELEVANT_AT = (10, 100)
AGREEMENT_AT = 10


class Searched(Protocol):
    """The part of a search that names its samples: `languages` where its queries have several, else `language`."""

    @property
    def direction(self) -> Direction: ...  # noqa: D102
    @property
    def groups(self) -> Indices: ...  # noqa: D102
    @property
    def language(self) -> str | None: ...  # noqa: D102
    @property
    def languages(self) -> NDArray[np.str_] | None: ...  # noqa: D102
    @property
    def top(self) -> Indices: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The facts that name a figure, over `samples` queries; `language` is None for several and for an unnamed one.

    `max_pixels` (None: the model's own) and the factor by which multi vectors were `pooled` are those of pages.
    """

    metric: str
    direction: Direction | None
    language: str | None
    is_overall: bool
    dim: int
    samples: int
    space: Space = "single"
    max_pixels: int | None = None
    pooled: int = 1


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

            def difference(values: Values, others: Values, targets: Values) -> float:
                return spearman(values, targets) - spearman(others, targets)

            return bootstrap_statistic(difference, self.values, other.values, self.targets)
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
        yield from samples_of(f"ndcg@{NDCG_AT}", found, [ndcg_at(one.top, judged, NDCG_AT) for one in found])
        for k in RELEVANT_AT:
            yield from samples_of(f"recall@{k}", found, [recall_of_relevant_at(one.top, judged, k) for one in found])
    else:
        metric, first_k = ("recall@", RECALL_AT) if isinstance(data, ImageTextData) else ("top-", TOP_CLASSES)
        for k in first_k:
            yield from samples_of(f"{metric}{k}", found, [(one.ranks < k).astype(np.float64) for one in found])


def agree(found: Sequence[Searched], others: Sequence[Searched]) -> Iterator[Sample]:
    """The share of what each query finds first that both find: of ten, and of one where it finds classes."""
    if not found:
        return
    k = 1 if found[0].direction == "image_to_class" else AGREEMENT_AT
    both = zip(found, others, strict=True)
    shares = [top_k_agreement(one.top[:, :k], other.top[:, :k]) for one, other in both]
    yield from samples_of(f"agreement@{k}", found, shares)


def samples_of(metric: str, found: Sequence[Searched], values: Sequence[Values]) -> Iterator[Sample]:
    """Yield the sample over all queries of each direction, and one for each language."""
    for direction in dict.fromkeys(search.direction for search in found):
        of_direction = [pair for pair in zip(found, values, strict=True) if pair[0].direction == direction]
        sample = partial(Sample, metric=metric, direction=direction)
        if len(of_direction) > 1:
            parts = [
                sample(language=search.language, is_overall=False, values=its, groups=search.groups)
                for search, its in of_direction
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
        ((search, its),) = of_direction
        groups = search.groups
        yield sample(language=search.language, is_overall=True, values=its, groups=groups)
        if search.languages is not None:
            for language in dict.fromkeys(search.languages.tolist()):
                is_its = search.languages == language
                yield sample(language=language, is_overall=False, values=its[is_its], groups=groups[is_its])
