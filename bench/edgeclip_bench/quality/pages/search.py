"""Search pages by their queries: exact scores of every query with every page, and what each query finds first.

Scores are cosines of single vectors, and MaxSim of multi vectors in float32 over the tokens that there are: nothing
is padded, so a negative best product stays negative. The multi vectors of a page are compared with all queries as
they are computed, and given up, so a corpus takes no more memory than its single vectors and its scores. An image
that comes twice is scored once, so that its scores are equal to the last bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip import MultiVectors
from edgeclip.manifest import PatchFacts, Space
from edgeclip_bench.quality.datasets import PageData, PageQueries, Pages
from edgeclip_bench.quality.embeddings import Counts, Embedder, Vectors
from edgeclip_bench.quality.metrics import best_columns
from edgeclip_bench.quality.published import model_of
from edgeclip_bench.quality.searches import Direction, Indices, Tasks, cut, label_of, tasks_of

TOP = 10
_PAGES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions:
    """The settings to search with: each of the `dims` of single vectors, `max_pixels`, and factors of pooling."""

    dims: tuple[int, ...]
    max_pixels: tuple[int | None, ...] = (None,)
    pooled: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a search: multi vectors have one dimension, single vectors are not pooled."""

    space: Space
    dim: int
    max_pixels: int | None
    pooled: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageSearch:
    """What the queries of one language find first: indices of documents, (Q, 10), best first, and their grades."""

    language: str | None
    groups: Indices
    top: Indices
    grades: Sequence[Mapping[int, int]]
    direction: Direction = "query_to_page"
    languages: None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundPages:
    """The searches of a data set at every setting, in each of its languages, and single vectors of all inputs."""

    data: PageData
    tasks: Tasks
    counts: Counts
    model: str | None
    has_max_pixels: bool
    searches: Mapping[Setting, Sequence[PageSearch]]
    queries: Vectors
    pages: Vectors


def search_pages(embedder: Embedder, data: PageData, task: str | None, options: PageOptions) -> FoundPages:
    """Embed and search a data set at every setting; raises what the encoder raises for a page or an option."""
    manifest, label = embedder.encoder.manifest, label_of(data)
    tasks = tasks_of(data, task, manifest)
    known: dict[str, int] = {}  # a query that has the same id in other languages is their translation
    found: dict[Setting, list[PageSearch]] = {}
    vectors: list[Vectors] = []
    pages: list[Vectors] = []
    for corpus in data.corpora:
        places = [place for place, part in enumerate(data.parts) if part.pages is corpus]
        parts = [data.parts[place] for place in places]
        single, multi = _embed_queries(embedder, data, places, tasks, label)
        vectors.append(single)
        for max_pixels in options.max_pixels:
            scorer = _Scorer.make(corpus, single, multi, options.pooled)
            its = tasks.items if tasks.items in manifest.tasks_of("image") else None
            images = embedder.pages(
                corpus.images,
                len(corpus.images),
                task=its,
                text_task=tasks.languages[places[0]] if tasks.languages else tasks.queries,
                max_pixels=max_pixels,
                label=f"{label}: pages" + (f" at {max_pixels} pixels" if max_pixels else ""),
            )
            for row, first, entries in images:
                scorer.add(row, first, [entry.vector for entry in entries])
            for setting, scores in scorer.scores(options.dims, max_pixels):
                ranked = rank(merge(scores, corpus), corpus.ids, TOP)
                ends = np.cumsum([len(part.queries) for part in parts])[:-1]
                for part, top in zip(parts, np.split(ranked, ends), strict=True):
                    found.setdefault(setting, []).append(_judged(part, top, known))
            pages.append(scorer.pages)
    return FoundPages(
        data=data,
        tasks=tasks,
        counts=embedder.take_counts(),
        model=model_of(manifest.family, manifest.embedding_dim),
        has_max_pixels=isinstance(manifest.image, PatchFacts),
        searches=found,
        queries=np.concatenate(vectors),
        pages=np.concatenate(pages),
    )


def merge(scores: NDArray[np.float32], pages: Pages) -> NDArray[np.float32]:
    """Scores of documents (Q, documents) from scores of their images (Q, images).

    In the form "beir" they are the same. In the form "qa" a document's score is the highest of its images', and at
    least 0 unless the first image is its own: vidore-benchmark begins each but the first with 0.
    """
    if pages.form == "beir":
        return scores
    merged = np.zeros((len(scores), len(pages.ids)), np.float32)
    merged[:, pages.documents[0]] = -np.inf
    np.maximum.at(merged.T, np.array(pages.documents), scores.T)
    return merged


def rank(scores: NDArray[np.float32], ids: Sequence[str], k: int) -> Indices:
    """The k documents with the highest scores of each query, best first, (Q, k); -1 where there are fewer.

    Of equal scores the one whose id is later in the order of its characters goes first, as in trec_eval.
    """
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True))
    top = np.full((len(scores), k), -1)
    some = min(k, len(ids))
    top[:, :some] = order[best_columns(scores[:, order], some)]
    return top


def _embed_queries(
    embedder: Embedder, data: PageData, places: Sequence[int], tasks: Tasks, label: str
) -> tuple[Vectors, MultiVectors | None]:
    """The vectors of the queries of these parts, one after the other, each with the task of its language."""
    single: list[Vectors] = []
    multi: list[MultiVectors] = []
    for place in places:
        part = data.parts[place]
        task = tasks.languages[place] if tasks.languages else tasks.queries
        name = f"{label}: queries" + (f" in {part.language}" if part.language else "")
        vectors, matrices = embedder.texts_in_spaces(part.queries, task=task, label=name)
        single.append(vectors)
        multi += [] if matrices is None else [matrices]
    if not multi:
        return np.concatenate(single), None
    return np.concatenate(single), MultiVectors.of((one for each in multi for one in each), dim=multi[0].dim)


def _judged(part: PageQueries, top: Indices, known: dict[str, int]) -> PageSearch:
    """The search of the queries that were judged; the others do not count."""
    grades: dict[int, dict[int, int]] = {}
    for query, document, grade in part.grades:
        grades.setdefault(query, {})[document] = grade
    rows = sorted(grades)
    groups = [known.setdefault(part.query_ids[row], len(known)) for row in rows]
    return PageSearch(
        language=part.language, groups=np.array(groups), top=top[rows], grades=[grades[row] for row in rows]
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Scorer:
    """Scores of queries with images, added an image at a time: rows of images, columns of queries."""

    queries: Vectors
    multi_queries: MultiVectors | None
    pages: Vectors
    multi: Mapping[int, NDArray[np.float32]]  # by the factor of pooling

    @classmethod
    def make(cls, corpus: Pages, queries: Vectors, multi: MultiVectors | None, pooled: Sequence[int]) -> "_Scorer":
        shape = len(corpus.images), len(queries)
        return cls(
            queries,
            multi,
            np.empty((shape[0], queries.shape[1]), np.float32),
            {} if multi is None else {factor: np.empty(shape, np.float32) for factor in pooled},
        )

    def add(self, row: int, first: int, vectors: Sequence[Vectors]) -> None:
        """Add the image of a row: its vectors, or those of the `first` row with this image where there are none."""
        self.pages[row] = vectors[0] if vectors else self.pages[first]
        for factor, scores in self.multi.items():
            if not vectors:
                scores[row] = scores[first]
            elif self.multi_queries is not None:
                scores[row] = self.multi_queries.maxsim(MultiVectors.of([vectors[1]]).pooled(factor))[:, 0]

    def scores(self, dims: Sequence[int], max_pixels: int | None) -> Iterator[tuple[Setting, NDArray[np.float32]]]:
        """Yield each setting with its scores, (queries, images)."""
        for dim in dims:
            queries = cut(self.queries, dim).astype(np.float64)
            scores = np.empty((len(queries), len(self.pages)), np.float32)
            for start in range(0, len(self.pages), _PAGES_AT_ONCE):
                part = slice(start, start + _PAGES_AT_ONCE)
                scores[:, part] = queries @ cut(self.pages[part], dim).astype(np.float64).T
            yield Setting(space="single", dim=dim, max_pixels=max_pixels), scores
        for factor, of_pages in self.multi.items():
            assert self.multi_queries is not None
            yield (
                Setting(space="multi", dim=self.multi_queries.dim, max_pixels=max_pixels, pooled=factor),
                of_pages.T,
            )
