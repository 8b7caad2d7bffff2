"""What an evaluation is asked to judge, whatever files it came from.

`layouts` reads files into these. Captions, queries and ids are held in memory (they are short beside
their embeddings); images stay files, and a corpus is read again each time it is iterated.
"""

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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
    """Images and their captions: retrieval in both directions."""

    name: str
    images: tuple[Path, ...]
    captions: tuple[Caption, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRetrievalData:
    """Queries, a corpus, and grades (query, document, grade) of the pairs that were judged (BEIR, MTEB)."""

    name: str
    corpus_ids: tuple[str, ...]
    corpus: Texts
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    grades: tuple[tuple[int, int, int], ...]
    language: str | None = None


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


Data = ImageTextData | TextRetrievalData | StsData | ClassificationData
