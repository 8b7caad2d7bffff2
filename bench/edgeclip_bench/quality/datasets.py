"""The data sets that an evaluation judges, in one form for all layouts of files.

`layouts` reads files into these. Captions, queries and ids are held in memory (they are short beside
their embeddings); images stay files, and a corpus is read again each time it is iterated.
"""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


class Texts(Sized, Iterable[str], Protocol):
    """Texts that can be iterated any number of times, each time in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A text of one image, by the image's index."""

    text: str
    image: int
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTextData:
    """Images and their captions: retrieval in both directions.

    An image may have no caption, or none in some language: texts search it, it searches none. `benchmark` is the
    test that all these images are said to be, as `published` calls it; None where that is not said.
    """

    name: str
    images: tuple[Path, ...]
    captions: tuple[Caption, ...]
    benchmark: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRetrievalData:
    """Queries, a corpus, and grades (query, document, grade) of the pairs that were judged (BEIR, MTEB).

    A grade of 0 or less is of a document that was judged not to answer. A document past the end of the corpus
    is one that was judged but is not there (ArguAna has five): no ranking holds it, but the best possible one
    that nDCG divides by does, as in BEIR and MTEB.
    """

    name: str
    corpus_ids: tuple[str, ...]
    corpus: Texts
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    grades: tuple[tuple[int, int, int], ...]
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageImage:
    """The image of a page, as a file or as the bytes of one, and the text beside it where that is searched too.

    `where` names its place in messages.
    """

    where: str
    source: Path | bytes
    text: str = ""


class PageImages(Sized, Iterable[PageImage], Protocol):
    """Images that can be iterated any number of times, each time in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pages:
    """The pages that queries search: the documents' ids, and images, of which `documents` has each one's document.

    In the form "beir" each document has one image. In the form "qa" it has one or more, all that have its file name.
    """

    form: Literal["beir", "qa"]
    ids: tuple[str, ...]
    images: PageImages
    documents: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageQueries:
    """Queries of one language, the pages that they search, and grades as in `TextRetrievalData`."""

    language: str | None
    pages: Pages
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    grades: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageData:
    """Page retrieval: queries that search images of pages (ViDoRe, Jina-VDR), in one language or in several.

    Languages may share their pages: then these are the same object. `is_whole` unless a part of the test was chosen.
    """

    name: str
    parts: tuple[PageQueries, ...]
    is_whole: bool = True

    @property
    def corpora(self) -> tuple[Pages, ...]:
        """The different pages, in order."""
        return tuple({id(part.pages): part.pages for part in self.parts}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class StsData:
    """Pairs of sentences and how alike people found them."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationData:
    """Images, the class of each by index, the classes' names, and prompts with a `{}` for the name."""

    name: str
    images: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)


VectorData = ImageTextData | TextRetrievalData | StsData | ClassificationData  # judged by single vectors alone
Data = VectorData | PageData


def count_judged(*parts: Sequence[tuple[int, int, int]]) -> dict[str, int]:
    """The number of judged queries in the grades of all parts, and of those without an answer, if there are any.

    Such a query has an nDCG of 0, which counts in the mean, as in trec_eval and mteb.
    """
    judged = [{query for query, _, _ in grades} for grades in parts]
    answered = [{query for query, _, grade in grades if grade > 0} for grades in parts]
    counts = {"judged queries": sum(map(len, judged))}
    missing = counts["judged queries"] - sum(map(len, answered))
    return {**counts, "of them without an answer, which count as 0": missing} if missing else counts
