"""Measure what quantising does to searches: recall@5 before and after, on the same queries.

A cosine of 0.99 says how far a vector moved, not whether the order of search results changed. So every text searches
the images and every image the texts, with the source's vectors and with the narrowed ones. Where the right results
are unknown, the source's first result is the one that must still be found.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.manifest import TOWERS, RetrievalChange, TowerName

CAPTIONS, FIRST_ANSWERS = "captions", "the source's first answers"
RECALL_AT = 5
# Similarities closer than this are a tie: float64 sums of 1024 products differ by 1e-16, other vectors by 1e-8.
_TIE = 1e-12
_BLOCK = 256
_Z95 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vectors:
    """The vectors of both towers: `text` (T, D) and `vision` (I, D)."""

    text: NDArray[np.float32]
    vision: NDArray[np.float32]

    def of(self, tower: TowerName) -> NDArray[np.float32]:
        """The vectors of one tower."""
        return self.text if tower == "text" else self.vision


def retrieval_changes(
    source: Vectors, narrowed: Vectors, pairs: Sequence[int] | None = None
) -> tuple[RetrievalChange | None, RetrievalChange | None]:
    """Recall@5 of texts that search images, then of images that search texts, and how it changed.

    `pairs` gives for each text the index of its image; of an image with several texts, any is right, and one without
    is not asked for. None: the source's first result is right. A direction with fewer than 6 candidates is None,
    because everything is among the first 5 there. Queries that share an image are counted as independent. Raises
    InputError for pairs that do not fit.
    """
    texts, images = len(source.text), len(source.vision)
    image_of, every_text, every_image = _check_pairs(pairs, texts, images), np.arange(texts), np.arange(images)
    if image_of is None:
        answers = _first(source.text, source.vision), _first(source.vision, source.text)
        return (
            _change(source, narrowed, "text", every_text, answers[0], every_image, FIRST_ANSWERS),
            _change(source, narrowed, "vision", every_image, answers[1], every_text, FIRST_ANSWERS),
        )
    asked = np.unique(image_of)
    return (
        _change(source, narrowed, "text", every_text, image_of, every_image, CAPTIONS),
        _change(source, narrowed, "vision", asked, asked, image_of, CAPTIONS),
    )


def paired_interval(gained: int, lost: int, queries: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions: `gained` queries found only now, `lost` found only
    before.

    Wald's interval with half a query added to each of the four cells (Agresti and Min 2005, "Simple improved
    confidence intervals for comparing matched proportions", Statistics in Medicine 24). Not a bootstrap: where no
    answer changed, no resample would show a change, and 8 queries would prove as much as 8000.
    """
    size = queries + 2
    middle = (gained - lost) / size
    half = _Z95 * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / size) / size
    return max(-1.0, middle - half), min(1.0, middle + half)


def _check_pairs(pairs: Sequence[int] | None, texts: int, images: int) -> NDArray[np.intp] | None:
    if pairs is None:
        return None
    image_of = np.asarray(pairs, dtype=np.intp)
    if image_of.shape != (texts,) or (texts and not 0 <= image_of.min() <= image_of.max() < images):
        raise InputError(
            f"pairs {image_of.shape} of {texts} texts and {images} images, wanted an image for each text"
        )
    return image_of


def _change(
    source: Vectors,
    narrowed: Vectors,
    tower: TowerName,
    queries: NDArray[np.intp],
    wanted: NDArray[np.intp],
    labels: NDArray[np.intp],
    truth: str,
) -> RetrievalChange | None:
    """The change of recall. Right for query i is each candidate of the other tower whose label is wanted[i]."""
    (other,) = (name for name in TOWERS if name != tower)
    if len(labels) <= RECALL_AT or not len(queries):
        return None
    before, now = (
        _is_found(vectors.of(tower)[queries], vectors.of(other), wanted, labels) for vectors in (source, narrowed)
    )
    gained, lost, count = int((now & ~before).sum()), int((before & ~now).sum()), len(queries)
    low, high = paired_interval(gained, lost, count)
    return RetrievalChange(
        metric=f"recall@{RECALL_AT}",
        truth=truth,
        queries=count,
        recall=float(now.mean()),
        reference=float(before.mean()),
        points=100 * (gained - lost) / count,
        low=100 * low,
        high=100 * high,
    )


def _first(queries: NDArray[np.float32], candidates: NDArray[np.float32]) -> NDArray[np.intp]:
    """The index of the nearest candidate to each query."""
    if not len(candidates):
        return np.zeros(len(queries), np.intp)
    among = _unit(candidates)
    blocks = [_unit(queries[start : start + _BLOCK]) @ among.T for start in range(0, len(queries), _BLOCK)]
    return np.concatenate([block.argmax(axis=1) for block in blocks]) if blocks else np.zeros(0, np.intp)


def _is_found(
    queries: NDArray[np.float32], candidates: NDArray[np.float32], wanted: NDArray[np.intp], labels: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Whether fewer than 5 wrong candidates are as near as the nearest right one; a tie, like NaN, counts as nearer.

    So a tower whose answers are all equal finds nothing.
    """
    among = _unit(candidates)
    found = np.empty(len(queries), np.bool_)
    for start in range(0, len(queries), _BLOCK):
        rows = slice(start, start + _BLOCK)
        similarity = _unit(queries[rows]) @ among.T  # (Q, C)
        is_right = labels == wanted[rows, None]
        best = np.where(is_right, similarity, -np.inf).max(axis=1, keepdims=True)
        found[rows] = (~is_right & ~(similarity < best - _TIE)).sum(axis=1) < RECALL_AT
    return found


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows of length 1; NaN for a row of zeros."""
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore"):
        unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit
