"""Published figures of models' quality, to stand beside a user's own.

The data are in published.toml (jina-clip-v2's) and published_models.toml (all others').

A figure of one's own is comparable if the data are: the same split, all its images and captions, R@5 counted by
`edgeclip_bench.quality.metrics.first_hit_ranks`.
"""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

Direction = Literal["text_to_image", "image_to_text"]

# The family and the width of the model whose figures these are.
PUBLISHED_MODEL = ("jina_clip", 1024)
ENGLISH_ONLY = ("flickr30k", "coco")
_JINA_CLIP_V2 = "jina-clip-v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One figure, 0 to 1. `language` None: the average over the languages of the data set."""

    dataset: str
    metric: str
    direction: Direction
    language: str | None
    value: float
    dim: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A figure, 0 to 1, over all `sets` of a benchmark at full width: no single set's can be held against it."""

    metric: str
    sets: str
    value: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptShare:
    """The share of the performance at 1024 dimensions that is kept at `dim`: at least `at_least`, on `tasks`."""

    dim: int
    at_least: float
    tasks: str
    source: str


def _read(name: str) -> dict[str, Any]:
    """A document in which each figure names its source by its whole address, and is a share instead of per cent."""
    document = tomllib.loads((files(__package__) / name).read_text(encoding="utf-8"))
    for one in (*document["recall_at_5"], *document.get("averages", ()), *document.get("kept_shares", ())):
        one["source"] = document["sources"][one["source"]]
        for field in ("value", "at_least"):
            if field in one:
                one[field] = _share(one[field])
    return document


def _share(percent: float) -> float:
    return round(percent / 100, 4)


_DATA, _OTHERS = _read("published.toml"), _read("published_models.toml")
AVERAGES = tuple(Average(**one) for one in _DATA["averages"])
KEPT_SHARES = tuple(KeptShare(**one) for one in _DATA["kept_shares"])
_NAMES: dict[tuple[str, int], str] = {(one["family"], one["dim"]): one["name"] for one in _OTHERS["models"]}
# Every model's, by its name.
OF_MODELS: dict[str, tuple[Published, ...]] = {
    name: tuple(
        Published(
            dataset=one["dataset"],
            metric="recall@5",
            direction=one["direction"],
            language=None if language == "mean" else language,
            value=_share(percent),
            dim=one["dim"],
            source=one["source"],
        )
        for one in (*_DATA["recall_at_5"], *_OTHERS["recall_at_5"])
        if one.get("model", _JINA_CLIP_V2) == name
        for language, percent in one["by_language"].items()
    )
    for name in _NAMES.values()
}
PUBLISHED = OF_MODELS[_JINA_CLIP_V2]


def model_of(family: str, dim: int) -> str | None:
    """The model that bundles of this family and width are made from; None for one that nothing is published of."""
    return _NAMES.get((family, dim))


def published_for(
    dataset: str, metric: str, direction: Direction, language: str | None, dim: int, model: str | None = _JINA_CLIP_V2
) -> Published | None:
    """The published figure of a model, or None. On Flickr30k and COCO, which are English, language None is "en"."""
    if dataset in ENGLISH_ONLY and language is None:
        language = "en"
    wanted = (dataset, metric, direction, language, dim)
    for one in OF_MODELS.get(model or "", ()):
        if (one.dataset, one.metric, one.direction, one.language, one.dim) == wanted:
            return one
    return None


def kept_share_for(dim: int) -> KeptShare | None:
    """The published share that is kept at this many dimensions, or None."""
    return next((share for share in KEPT_SHARES if share.dim == dim), None)
