"""Measure what quantising does to searches: recall@5 before and after, on the same queries.

A cosine of 0.99 says how far a vector moved, not whether the order of search results changed. So every text searches
the images and every image the texts, with the source's vectors and with the narrowed ones. A bundle that takes texts
alone is searched with texts: queries search documents where the samples say which text is which, else every text
searches the other texts. Where the right results are unknown, the source's first result is the one that must still
be found.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.manifest import Modality, RetrievalChange
from edgeclip.multi_vectors import MultiVectors

CAPTIONS, DOCUMENTS, FIRST_ANSWERS = "captions", "documents", "the source's first answers"
RANKING = "the source's ranking"
RECALL_AT = 5
# Similarities closer than this are a tie: float64 sums of 1024 products differ by 1e-16, other vectors by 1e-8.
_TIE = 1e-12
_BLOCK = 256
_Z95 = statistics.NormalDist().inv_cdf(0.975)

Indices = NDArray[np.intp]
# The single vectors of each modality (N, D).
Vectors = Mapping[Modality, NDArray[np.float32]]


def retrieval_changes(
    source: Vectors, narrowed: Vectors, pairs: Sequence[int] | None = None
) -> Mapping[Modality, RetrievalChange | None]:
    """Recall@5 of the searches whose queries are the vectors of each modality, and how it changed.

    `pairs` gives for each text the index of its image; of an image with several texts, any is right, and one without
    is not asked for. Of texts alone it gives the index of a query's document; a document has its own index. None: the
    source's first result is right. A direction with fewer than 6 candidates is None, because everything is among the
    first 5 there. So are images alone. Queries that share an image are counted as independent. Raises InputError for
    pairs that do not fit.
    """
    if "text" not in source:
        return dict.fromkeys(source)
    if "image" not in source:
        return {"text": _texts_among_texts(source["text"], narrowed["text"], pairs)}
    texts, images = len(source["text"]), len(source["image"])
    image_of, every_text, every_image = _check_pairs(pairs, texts, images), np.arange(texts), np.arange(images)
    to_images = [_Search(queries=one["text"], candidates=one["image"]) for one in (source, narrowed)]
    to_texts = [_Search(queries=one["image"], candidates=one["text"]) for one in (source, narrowed)]
    if image_of is None:
        return {
            "text": _change(to_images, to_images[0].first(), every_image, FIRST_ANSWERS),
            "image": _change(to_texts, to_texts[0].first(), every_text, FIRST_ANSWERS),
        }
    asked = np.unique(image_of)
    of_asked = [_Search(queries=one.queries[asked], candidates=one.candidates) for one in to_texts]
    return {
        "text": _change(to_images, image_of, every_image, CAPTIONS),
        "image": _change(of_asked, asked, image_of, CAPTIONS),
    }


def page_changes(
    source: Mapping[Modality, MultiVectors], narrowed: Mapping[Modality, MultiVectors]
) -> Mapping[Modality, RetrievalChange | None]:
    """nDCG@5 of texts that search images by MaxSim, where the source's own ranking is right: its first five images
    have gains of 5 to 1.

    Empty without both modalities, or with fewer than 6 images.
    """
    if "text" not in source or "image" not in source or len(source["image"]) <= RECALL_AT:
        return {}
    before, after = (one["text"].maxsim(one["image"]).astype(np.float64) for one in (source, narrowed))
    gains = np.arange(RECALL_AT, 0, -1.0)
    discounts = 1 / np.log2(np.arange(2, RECALL_AT + 2))
    scores = np.empty(len(before))
    for query, (wanted, found) in enumerate(zip(before, after, strict=True)):
        gain_of = np.zeros(len(wanted))
        gain_of[np.argsort(-wanted, kind="stable")[:RECALL_AT]] = gains
        order = np.lexsort((gain_of, -found))  # of a tie, like of NaN, the worse comes first
        scores[query] = gain_of[order[:RECALL_AT]] @ discounts / (gains @ discounts)
    low, high = _interval(scores - 1)
    return {
        "text": RetrievalChange(
            metric=f"ndcg@{RECALL_AT}",
            truth=RANKING,
            queries=len(scores),
            recall=float(scores.mean()),
            reference=1.0,
            points=100 * float(scores.mean() - 1),
            low=100 * low,
            high=100 * high,
        )
    }


def paired_interval(gained: int, lost: int, queries: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions: `gained` queries found only now, `lost` found only
    before.

    Wald's interval with half a query added to each of the four cells (Agresti and Min 2005, "Simple improved
    confidence intervals for comparing matched proportions", Statistics in Medicine 24). Not a bootstrap: where no
    answer changed, no resample would show a change, and 8 queries would prove as much as 8000.
    """
    return _interval(np.repeat([1.0, -1.0, 0.0], [gained, lost, queries - gained - lost]))


def _interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """`paired_interval` for the difference of each query, from -1 to 1."""
    size, total = len(differences) + 2, float(differences.sum())
    middle = total / size
    half = _Z95 * math.sqrt(float(np.square(differences).sum()) + 1 - total**2 / size) / size
    return max(-1.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Search:
    """Queries (Q, D) among candidates (C, D). `own` (Q,) says which candidate a query is itself, to be left out."""

    queries: NDArray[np.float32]
    candidates: NDArray[np.float32]
    own: Indices | None = None

    def first(self) -> Indices:
        """The index of the nearest candidate to each query."""
        if not len(self.candidates):
            return np.zeros(len(self.queries), np.intp)
        blocks = [similarity.argmax(axis=1) for _, similarity in self.blocks()]
        return np.concatenate(blocks) if blocks else np.zeros(0, np.intp)

    def is_found(self, wanted: Indices, labels: Indices) -> NDArray[np.bool_]:
        """Whether fewer than 5 wrong candidates are as near as the nearest right one; a tie, like NaN, counts as
        nearer. Right for query i is each candidate whose label is wanted[i].

        So a bundle whose answers are all equal finds nothing.
        """
        found = np.empty(len(self.queries), np.bool_)
        for rows, similarity in self.blocks():
            is_own = np.zeros(similarity.shape, np.bool_)
            if self.own is not None:
                is_own[np.arange(len(similarity)), self.own[rows]] = True
            is_right = (labels == wanted[rows, None]) & ~is_own
            best = np.where(is_right, similarity, -np.inf).max(axis=1, keepdims=True)
            found[rows] = (~is_right & ~is_own & ~(similarity < best - _TIE)).sum(axis=1) < RECALL_AT
        return found

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Some queries after the other, and their similarities (q, C); what a query is itself is farthest."""
        among = _unit(self.candidates)
        for start in range(0, len(self.queries), _BLOCK):
            rows = slice(start, start + _BLOCK)
            similarity = _unit(self.queries[rows]) @ among.T
            if self.own is not None:
                similarity[np.arange(len(similarity)), self.own[rows]] = -np.inf
            yield rows, similarity


def _texts_among_texts(
    source: NDArray[np.float32], narrowed: NDArray[np.float32], pairs: Sequence[int] | None
) -> RetrievalChange | None:
    every = np.arange(len(source))
    if pairs is None:
        searches = [_Search(queries=one, candidates=one, own=every) for one in (source, narrowed)]
        return _change(searches, searches[0].first(), every, FIRST_ANSWERS)
    document_of = np.asarray(pairs, dtype=np.intp)
    is_sound = document_of.shape == every.shape and ((document_of >= 0) & (document_of < len(every))).all()
    if not is_sound or (document_of[document_of] != document_of).any():
        raise InputError(f"pairs {document_of.shape} of {len(every)} texts, wanted a document among them for each")
    is_document = document_of == every
    documents, queries = every[is_document], every[~is_document]
    searches = [_Search(queries=one[queries], candidates=one[documents]) for one in (source, narrowed)]
    return _change(searches, document_of[queries], documents, DOCUMENTS)


def _check_pairs(pairs: Sequence[int] | None, texts: int, images: int) -> Indices | None:
    if pairs is None:
        return None
    image_of = np.asarray(pairs, dtype=np.intp)
    if image_of.shape != (texts,) or (texts and not 0 <= image_of.min() <= image_of.max() < images):
        raise InputError(
            f"pairs {image_of.shape} of {texts} texts and {images} images, wanted an image for each text"
        )
    return image_of


def _change(searches: Sequence[_Search], wanted: Indices, labels: Indices, truth: str) -> RetrievalChange | None:
    """The change of recall from the source's search to the narrowed bundle's; `wanted` and `labels` as in
    `_Search.is_found`.
    """
    before, after = searches
    others = len(labels) - (before.own is not None)
    if others <= RECALL_AT or not len(before.queries):
        return None
    was_found, is_found = (search.is_found(wanted, labels) for search in (before, after))
    gained, lost = int((is_found & ~was_found).sum()), int((was_found & ~is_found).sum())
    count = len(before.queries)
    low, high = paired_interval(gained, lost, count)
    return RetrievalChange(
        metric=f"recall@{RECALL_AT}",
        truth=truth,
        queries=count,
        recall=float(is_found.mean()),
        reference=float(was_found.mean()),
        points=100 * (gained - lost) / count,
        low=100 * low,
        high=100 * high,
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows of length 1; NaN for a row of zeros."""
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore"):
        unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit
