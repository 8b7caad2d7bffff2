"""The scores of a data set, as the report and its JSON document have them."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgeclip_bench.quality.embeddings import Counts
from edgeclip_bench.quality.samples import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(Figure):
    """One figure with its 95 % interval.

    `kept` is the share of the full width's figure. Where the model's authors published one of the same kind,
    `difference` is ours less theirs.
    """

    value: float
    low: float
    high: float
    kept: float | None
    published: float | None
    published_source: str | None
    difference: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataScores:
    """The scores of one data set, and how its inputs were embedded.

    `label` is its name, with its language where it has one. `task` is that of its queries, captions or pairs,
    `item_task` that of its documents.
    """

    name: str
    label: str
    kind: str
    sizes: Mapping[str, int]
    languages: tuple[str, ...]
    task: str | None
    item_task: str | None
    embedded: Counts
    scores: tuple[Score, ...]
