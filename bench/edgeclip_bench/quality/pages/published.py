"""Published figures of page retrieval (published.tsv): nDCG@5 of a task, and of all tasks of its collection."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from edgeclip.manifest import Space

METRIC = "ndcg@5"
SOURCE = "https://arxiv.org/abs/2506.18902"
# The `max_pixels` of the published runs of jina-embeddings-v4, whose own limit is 602112.
MAX_PIXELS = 37_788_800
_SUFFIXES = ("_beir", "_mteb_format", ".v2")
_MEAN = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTask:
    """A task of a collection: its figures by language (None: the mean over its languages), then by column."""

    collection: str
    dataset: str
    figures: Mapping[str | None, Mapping[str, float]]

    def find(self, model: str | None, space: Space, language: str | None = None) -> float | None:
        """The figure of a model in a space, 0 to 1; None where nothing was published."""
        return self.figures.get(language, {}).get(_column(model, space))


def find_task(name: str) -> PageTask | None:
    """The task that a data set of this name is, by its name on the Hub or in mteb; None for any other."""
    plain = name.lower().replace("ocrretrieval", "retrieval")
    for suffix in _SUFFIXES:
        plain = plain.removesuffix(suffix)
    return _TASKS.get(plain)


def tasks_of(collection: str) -> set[str]:
    """The data sets of a collection, by their names."""
    return {task.dataset for task in _TASKS.values() if task.collection == collection}


def average_of(collection: str, model: str | None, space: Space) -> float | None:
    """The published average of a model over all tasks of a collection, 0 to 1, or None."""
    return _AVERAGES.get(collection, {}).get(_column(model, space))


def _column(model: str | None, space: Space) -> str:
    return f"{model}{' multi' if space == 'multi' else ''}"


def _read() -> tuple[dict[str, PageTask], dict[str, Mapping[str, float]]]:
    text = (files(__package__) / "published.tsv").read_text(encoding="utf-8")
    averages: dict[str, Mapping[str, float]] = {}
    figures: dict[tuple[str, str, str], dict[str | None, Mapping[str, float]]] = {}
    for row in csv.DictReader((line for line in text.splitlines() if line[0] != "#"), delimiter="\t"):
        collection, dataset, other, language = (row.pop(name) for name in tuple(row)[:4])
        its = {column: round(float(value) / 100, 4) for column, value in row.items() if value}
        if dataset:
            figures.setdefault((collection, dataset, other), {})[
                language if language not in ("", _MEAN) else None
            ] = its
        else:
            averages[collection] = its
    tasks: dict[str, PageTask] = {}
    for (collection, dataset, other), its_figures in figures.items():
        task = PageTask(collection=collection, dataset=dataset, figures=its_figures)
        tasks |= {dataset.lower(): task, other.lower(): task}
    return tasks, averages


_TASKS, _AVERAGES = _read()
