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


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((files(__package__) / name).read_text(encoding="utf-8"))


_DATA, _OTHERS = _read("published.toml"), _read("published_models.toml")
_SOURCES: dict[str, str] = _DATA["sources"]


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


def _share(percent: float) -> float:
    return round(percent / 100, 4)


def _recalls(document: dict[str, Any], model: str | None) -> tuple[Published, ...]:
    """The figures in a document, all of them or one model's."""
    return tuple(
        Published(
            dataset=one["dataset"],
            metric="recall@5",
            direction=one["direction"],
            language=None if language == "mean" else language,
            value=_share(percent),
            dim=one["dim"],
            source=document["sources"][one["source"]],
        )
        for one in document["recall_at_5"]
        if one.get("model") == model
        for language, percent in one["by_language"].items()
    )


# jina-clip-v2's.
PUBLISHED = _recalls(_DATA, None)
_NAMES: dict[tuple[str, int], str] = {(one["family"], one["dim"]): one["name"] for one in _OTHERS["models"]}
# Every model's, by its name.
OF_MODELS: dict[str, tuple[Published, ...]] = {
    name: PUBLISHED if name == _JINA_CLIP_V2 else _recalls(_OTHERS, name) for name in _NAMES.values()
}
AVERAGES: tuple[Average, ...] = tuple(
    Average(metric=one["metric"], sets=one["sets"], value=_share(one["value"]), source=_SOURCES[one["source"]])
    for one in _DATA["averages"]
)
KEPT_SHARES: tuple[KeptShare, ...] = tuple(
    KeptShare(dim=one["dim"], at_least=_share(one["at_least"]), tasks=one["tasks"], source=_SOURCES[one["source"]])
    for one in _DATA["kept_shares"]
)


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
    return next((one for one in OF_MODELS.get(model or "", ()) if _key(one) == wanted), None)


def kept_share_for(dim: int) -> KeptShare | None:
    """The published share that is kept at this many dimensions, or None."""
    return next((share for share in KEPT_SHARES if share.dim == dim), None)


def _key(figure: Published) -> tuple[str, str, Direction, str | None, int]:
    return figure.dataset, figure.metric, figure.direction, figure.language, figure.dim
