"""Embed a data set, and search it in each of its directions.

In an image-text set a caption searches all images. An image searches the captions of one language at a time,
as in XTD10 and Crossmodal-3600, and is found with any caption of its own, as in Flickr30k and COCO. A query does
not find the document of its own id (`own_documents`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip.manifest import Manifest, Modality
from edgeclip_bench.quality.datasets import (
    ClassificationData,
    Data,
    ImageTextData,
    PageData,
    StsData,
    TextRetrievalData,
    VectorData,
)
from edgeclip_bench.quality.embeddings import Counts, Embedder, Vectors
from edgeclip_bench.quality.languages import ENGLISH, codes_of, speaks_by_task
from edgeclip_bench.quality.metrics import NEVER, Positives, class_vectors, first_hit_ranks, top_k, truncate
from edgeclip_bench.quality.published import model_of
from edgeclip_bench.quality.tasks import PAIR, QUERY, chooses_adapters, default_task, document_task

Direction = Literal["text_to_image", "image_to_text", "query_to_document", "query_to_page", "image_to_class"]
Indices = NDArray[np.int64]

# What is kept of a search's results: BEIR's recall looks at 100 documents, all else at 10.
_DOCUMENTS, _OTHERS = 100, 10
# What `Embedded.queries` and `items` of a data set are.
_INPUTS: dict[type[VectorData], tuple[str, str]] = {
    ImageTextData: ("captions", "images"),
    TextRetrievalData: ("queries", "documents"),
    StsData: ("first sentences", "second sentences"),
    ClassificationData: ("prompts", "images"),
}
_NONE = -1  # among a query's own items, for one that has none
# The language of a caption that has none, beside captions that have one (ISO 639-2).
UNDETERMINED = "und"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """The tasks of `Embedded.queries`, each (of pages each part) with its own where tasks are `languages`, and of
    `Embedded.items`.
    """

    queries: str | None = None
    items: str | None = None
    languages: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedded:
    """A data set's inputs as unit vectors of the bundle's full width.

    `queries` are the captions, the queries, the first sentences, or the prompts (class by class); `items` are
    the images, the documents or the second sentences. `model` is that whose published figures are of its kind.
    """

    data: VectorData
    queries: Vectors
    items: Vectors
    counts: Counts
    tasks: Tasks = Tasks()
    model: str | None = "jina-clip-v2"

    @property
    def item_modality(self) -> Modality:
        """The modality of `items`; `queries` are always texts."""
        return "image" if isinstance(self.data, ImageTextData | ClassificationData) else "text"


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """Rows of one matrix search rows of another, at one truncate_dim.

    `pairs` (P, 2) are the right ones, by their place among `rows` and `item_rows`. Queries of one group are of one
    image. `languages` tell the queries' languages apart where they have several; `language` is the one they have.
    `own` (Q,) is the place of the item that is the query itself, -1 for none: it is not searched.
    """

    direction: Direction
    query_vectors: Vectors
    item_vectors: Vectors
    rows: Indices
    item_rows: Indices
    pairs: Indices
    groups: Indices
    language: str | None = None
    languages: NDArray[np.str_] | None = None
    own: Indices | None = None

    @cached_property
    def ranks(self) -> Indices:
        """The rank from 0 of each query's best right item, (Q,); NEVER where none is right."""
        of_query, items = self.pairs.T
        has_right = np.bincount(of_query, minlength=len(self.rows)) > 0  # (Q,)
        place = np.cumsum(has_right) - 1
        positives = Positives.from_pairs(place[of_query], items, int(has_right.sum()))
        ranks = np.full(len(self.rows), NEVER)
        ranks[has_right] = first_hit_ranks(
            _take(self.query_vectors, self.rows[has_right]),
            _take(self.item_vectors, self.item_rows),
            positives,
            without=None if self.own is None else self.own[has_right],
        )
        return ranks

    @cached_property
    def top(self) -> Indices:
        """The places in `item_rows` of what each query finds, best first, (Q, 100 documents or 10 others)."""
        k = _DOCUMENTS if self.direction == "query_to_document" else _OTHERS
        queries, items = _take(self.query_vectors, self.rows), _take(self.item_vectors, self.item_rows)
        return top_k(queries, items, k, without=self.own)[0]


def embed(embedder: Embedder, data: VectorData, task: str | None) -> Embedded:
    """Embed all of a data set's inputs, with the tasks that `tasks_of` gives."""
    manifest = embedder.encoder.manifest
    name, tasks = label_of(data), tasks_of(data, task, manifest)
    what, others = _INPUTS[type(data)]
    queries = _queries(embedder, data, tasks, f"{name}: {what}")
    if isinstance(data, ImageTextData | ClassificationData):
        known = manifest.tasks_of("image")  # a language is a task of texts alone
        its = tasks.items if tasks.items in known else None
        items = embedder.images(data.images, task=its, label=f"{name}: {others}")
    else:
        texts = data.corpus if isinstance(data, TextRetrievalData) else data.second
        items = embedder.texts(texts, len(texts), task=tasks.items, label=f"{name}: {others}")
    return Embedded(
        data=data,
        queries=queries,
        items=items,
        tasks=tasks,
        counts=embedder.take_counts(),
        model=model_of(manifest.family, manifest.embedding_dim),
    )


def _queries(embedder: Embedder, data: VectorData, tasks: Tasks, label: str) -> Vectors:
    """Unit vectors of the queries; captions of each language have its own task where tasks are languages."""
    if isinstance(data, ImageTextData):
        queries: Sequence[str] = [caption.text for caption in data.captions]
    elif isinstance(data, ClassificationData):
        queries = class_prompts(data)
    else:
        queries = data.queries if isinstance(data, TextRetrievalData) else data.first
    if len(set(tasks.languages)) < 2:
        return embedder.texts(queries, len(queries), task=tasks.queries, label=label)
    vectors = np.empty((len(queries), embedder.encoder.manifest.embedding_dim), np.float32)
    for code in dict.fromkeys(tasks.languages):
        rows = [row for row, one in enumerate(tasks.languages) if one == code]
        spoken = [queries[row] for row in rows]
        vectors[rows] = embedder.texts(spoken, len(rows), task=code, label=f"{label} in {code}")
    return vectors


def _languages(data: Data, task: str | None, manifest: Manifest) -> Tasks:
    """The languages of a data set's texts, as tasks. Classes are named in English unless `task` says otherwise."""
    benchmark = data.benchmark if isinstance(data, ImageTextData) else None
    if isinstance(data, ImageTextData):
        named: list[str | None] = [caption.language for caption in data.captions]
    elif isinstance(data, PageData):
        named = [part.language for part in data.parts]
    else:
        named = [ENGLISH if isinstance(data, ClassificationData) else data.language]
    codes = codes_of(named, task, manifest, label=label_of(data), benchmark=benchmark)
    names = ", ".join(dict.fromkeys(codes))
    return Tasks(queries=names, items=None if len(set(codes)) > 1 else names, languages=codes)


def tasks_of(data: Data, task: str | None, manifest: Manifest) -> Tasks:
    """The tasks of a data set's inputs, where the user asks for `task` or, with None, for none.

    A task is for captions and queries. Documents, images, classes and pairs of sentences have one where tasks choose
    adapters (`edgeclip_bench.quality.tasks`). Where tasks are languages, each text has its own.
    """
    if speaks_by_task(manifest):
        return _languages(data, task, manifest)
    if isinstance(data, TextRetrievalData):
        return Tasks(queries=task or default_task(manifest, QUERY), items=document_task(manifest, task))
    if isinstance(data, StsData):
        pair = task if task and chooses_adapters(manifest) else default_task(manifest, PAIR)
        return Tasks(queries=pair, items=pair)
    items = document_task(manifest, task, "image")
    if isinstance(data, ImageTextData | PageData) or manifest.task_required:
        return Tasks(queries=task or default_task(manifest, QUERY), items=items)
    return Tasks()


def class_prompts(data: ClassificationData) -> list[str]:
    """Every template with every class's name, class by class."""
    return [template.replace("{}", name) for name in data.classes for template in data.templates]


def takes_task(data: Data, manifest: Manifest) -> bool:
    """Say whether a task that the user asks for is used for any of a data set's texts."""
    if isinstance(data, ImageTextData | TextRetrievalData | PageData) or speaks_by_task(manifest):
        return True
    return manifest.task_required if isinstance(data, ClassificationData) else chooses_adapters(manifest)


def languages_of(data: Data) -> tuple[str, ...]:
    """The languages of a data set in the order they come in; none where none is named."""
    if isinstance(data, ImageTextData):
        found = dict.fromkeys(caption.language for caption in data.captions)
        return () if set(found) <= {None} else tuple(language or UNDETERMINED for language in found)
    if isinstance(data, PageData):
        return tuple(part.language for part in data.parts if part.language is not None)
    if isinstance(data, ClassificationData) or data.language is None:
        return ()
    return (data.language,)


def label_of(data: Data) -> str:
    """The name of a data set, with its language where it has one: sentence pairs come as a set for each."""
    languages = languages_of(data)
    return f"{data.name} ({languages[0]})" if len(languages) == 1 else data.name


def searches(embedded: Embedded, dim: int) -> list[Search]:
    """The searches of a data set at one truncate_dim; none for pairs of sentences."""
    data = embedded.data
    if isinstance(data, StsData):
        return []
    queries, items = cut(embedded.queries, dim), cut(embedded.items, dim)
    if isinstance(data, ImageTextData):
        return list(_image_text_searches(data, queries, items))
    if isinstance(data, TextRetrievalData):
        return [_document_search(data, queries, items)]
    return [_class_search(data, queries, items)]


def cut(vectors: Vectors, dim: int) -> Vectors:
    """The first `dim` columns, normalised; the vectors themselves at their full width."""
    return vectors if vectors.shape[1] == dim else truncate(vectors, dim)


def _image_text_searches(data: ImageTextData, captions: Vectors, images: Vectors) -> Iterator[Search]:
    languages = languages_of(data)
    of_caption = np.array([caption.image for caption in data.captions], np.int64)
    spoken = np.array([caption.language or UNDETERMINED for caption in data.captions])
    rows = np.arange(len(of_caption))
    yield Search(
        direction="text_to_image",
        query_vectors=captions,
        item_vectors=images,
        rows=rows,
        item_rows=np.arange(len(images)),
        pairs=np.column_stack((rows, of_caption)),
        groups=of_caption,
        language=languages[0] if len(languages) == 1 else None,
        languages=spoken if len(languages) > 1 else None,
    )
    for language in languages or (None,):
        candidates = rows if language is None else np.flatnonzero(spoken == language)
        described, place = np.unique(of_caption[candidates], return_inverse=True)
        yield Search(
            direction="image_to_text",
            query_vectors=images,
            item_vectors=captions,
            rows=described,
            item_rows=candidates,
            pairs=np.column_stack((place, np.arange(len(candidates)))),
            groups=described,
            language=language,
        )


def own_documents(data: TextRetrievalData) -> Indices:
    """The document of each query's own id, which it does not search, or -1: (queries,).

    ArguAna and Quora take their queries from the corpus, where each finds itself first: BEIR leaves the document of
    the query's id out (ignore_identical_ids), MTEB does so on these. One that is judged right for its query is no
    such copy and stays: there ids coincide because both are numbered.
    """
    number = {query: index for index, query in enumerate(data.query_ids)}  # not of the corpus, which is large
    own = np.full(len(number), _NONE)
    for index, document in enumerate(data.corpus_ids):
        if document in number:
            own[number[document]] = index
    for row, item, grade in data.grades:
        if grade > 0 and own[row] == item:
            own[row] = _NONE
    return own


def _document_search(data: TextRetrievalData, queries: Vectors, documents: Vectors) -> Search:
    """The search of the queries that were judged; the others do not count (`metrics.ndcg_at`)."""
    grades = np.array(data.grades, np.int64).reshape(-1, 3)
    judged, place = np.unique(grades[:, 0], return_inverse=True)
    is_right = (grades[:, 2] > 0) & (grades[:, 1] < len(documents))
    return Search(
        direction="query_to_document",
        query_vectors=queries,
        item_vectors=documents,
        rows=judged,
        item_rows=np.arange(len(documents)),
        pairs=np.column_stack((place, grades[:, 1]))[is_right],
        groups=judged,
        language=data.language,
        own=own_documents(data)[judged],
    )


def _class_search(data: ClassificationData, prompts: Vectors, images: Vectors) -> Search:
    rows = np.arange(len(images))
    return Search(
        direction="image_to_class",
        query_vectors=images,
        item_vectors=class_vectors(prompts.reshape(len(data.classes), len(data.templates), -1)),  # (C, T, D)
        rows=rows,
        item_rows=np.arange(len(data.classes)),
        pairs=np.column_stack((rows, np.array(data.labels, np.int64))),
        groups=rows,
    )


def _take(vectors: Vectors, rows: Indices) -> Vectors:
    """The rows of these indices, which are sorted and distinct; no copy where they are all rows."""
    return vectors if len(rows) == len(vectors) else vectors[rows]
