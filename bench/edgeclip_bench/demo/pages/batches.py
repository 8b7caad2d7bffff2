"""Batches of drawn pages and questions, as the page model is trained and validated on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgeclip_bench.demo.families import Split
from edgeclip_bench.demo.pages.contents import (
    KINDS,
    LABELS,
    MAX_VALUE,
    TOPICS,
    Fact,
    Page,
    draw_pages,
)
from edgeclip_bench.demo.pages.drawing import Drawn, draw_page
from edgeclip_bench.demo.pages.questions import LANGUAGES, Question, ask, word, words
from edgeclip_export.families.jina_embeddings_v4.config import PROMPTS

# Columns and rows of pages in cells, which become image tokens (`layout.MAX_PIXELS`).
GRIDS = ((5, 5), (4, 6), (6, 5), (5, 6))
_MAX_ENLARGED = 2.0
# All that a page can be asked for: its topic, its kind, each label with each value.
PARTICULARS: Mapping[object, int] = {
    name: index
    for index, name in enumerate(
        (
            *TOPICS,
            *KINDS,
            *(
                Fact(label=label, value=value)
                for kind in KINDS
                for label in LABELS[kind]
                for value in range(1, MAX_VALUE[kind] + 1)
            ),
        )
    )
}
ALL_LABELS = tuple(label for kind in KINDS for label in LABELS[kind])
NOTHING = -100  # what torch's cross entropy leaves out


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Token ids (N, T) and a mask (N, T), 1 at tokens and 0 at padding."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Where particulars stand among the tokens of a batch, and which of PARTICULARS each is: (N,) both.

    `held` (B, all particulars) is True for those of a page or of a question.
    """

    places: Tensor
    particulars: Tensor
    held: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What stands at some image tokens, N in all: each's place among the tokens of the batch, and its classes.

    A class is an index into TOPICS, ALL_LABELS or the values from 1; NOTHING where there is none.
    """

    places: Tensor
    topics: Tensor
    labels: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pages (B, H, W, 3) uint8 and a question for each, in one language and in another.

    `misread` are the first ones behind the prompt of passages, where that of queries belongs.
    `told_by_pages` counts image tokens alone, `told_by_questions` the tokens of `questions`.
    `answers` (B, B) is True where a question (row) is answered by a page (column).
    """

    pages: Sequence[Page]
    asked: Sequence[Question]
    pixels: Tensor
    questions: Texts
    others: Texts
    misread: Texts
    answers: Tensor
    readings: Readings
    told_by_pages: Told
    told_by_questions: Told


def draw_batch(tokenizer: Tokenizer, split: Split, seed: Sequence[int], *, count: int, family: int) -> Batch:
    """A batch from its seed, whose last number chooses the size of its pages."""
    draw = np.random.default_rng(tuple(seed))
    source = draw_pages(split, draw, family=family)
    pages = [next(source) for _ in range(count)]
    columns, rows = GRIDS[seed[-1] % len(GRIDS)]
    drawn = [
        draw_page(page, draw, columns=columns, rows=rows, enlarged=float(draw.uniform(1, _MAX_ENLARGED)))
        for page in pages
    ]
    asked = [ask(page, draw) for page in pages]
    first, second, spoken = [], [], []
    for question in asked:
        names = [LANGUAGES[at] for at in draw.choice(len(LANGUAGES), 2, False)]
        spoken.append(names[0])
        first.append(word(question, names[0], draw))
        second.append(word(question, names[1], draw))
    return Batch(
        pages=pages,
        asked=asked,
        pixels=torch.from_numpy(np.stack([one.pixels for one in drawn])),
        questions=tokenize(tokenizer, first),
        others=tokenize(tokenizer, second),
        misread=tokenize(tokenizer, first, prompt="passage"),
        readings=_readings(pages, drawn, columns=columns, rows=rows),
        told_by_pages=_told_by_pages(pages, drawn, columns=columns, rows=rows),
        told_by_questions=_told_by_questions(tokenizer, asked, first, spoken),
        answers=torch.tensor([[question.is_answered_by(page) for page in pages] for question in asked]),
    )


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], *, prompt: str = "query") -> Texts:
    """Texts behind a prompt, padded on the right to the longest."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch([PROMPTS[prompt] + text for text in texts])]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros(ids.shape, np.float32)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return Texts(ids=torch.from_numpy(ids), mask=torch.from_numpy(mask))


def _told_by_pages(pages: Sequence[Page], drawn: Sequence[Drawn], *, columns: int, rows: int) -> Told:
    places, found = [], []
    for index, (page, picture) in enumerate(zip(pages, drawn, strict=True)):
        for mark in picture.marks:
            places.append((index * rows + int(mark.y * rows)) * columns + int(mark.x * columns))
            found.append(PARTICULARS[mark.fact or page.topic])
    return Told(places=torch.tensor(places), particulars=torch.tensor(found), held=_held(pages))


def _told_by_questions(
    tokenizer: Tokenizer, asked: Sequence[Question], texts: Sequence[str], languages: Sequence[str]
) -> Told:
    """A topic is told by the last token of its word, a fact by its value: the only digits of a question."""
    encodings = tokenizer.encode_batch([PROMPTS["query"] + text for text in texts])
    length, places, found = max(len(one.ids) for one in encodings), [], []
    for index, (question, text, encoding) in enumerate(zip(asked, texts, encodings, strict=True)):
        word = words(languages[index])["topics"][question.topic]
        end = len(PROMPTS["query"]) + text.index(word) + len(word)
        topic = next(place for place, (_, last) in enumerate(encoding.offsets) if last >= end)
        digits = [place for place, token in enumerate(encoding.tokens) if token.isascii() and token.isdigit()]
        places += [index * length + place for place in (topic, *digits)]
        found += [PARTICULARS[question.topic], *(PARTICULARS[fact] for fact in question.facts)]
    return Told(places=torch.tensor(places), particulars=torch.tensor(found), held=_held(asked))


def _held(ones: Sequence[Page | Question]) -> Tensor:
    held = torch.zeros(len(ones), len(PARTICULARS), dtype=torch.bool)
    for row, one in zip(held, ones, strict=True):
        row[[PARTICULARS[name] for name in (one.topic, one.kind, *one.facts)]] = True
    return held


def _readings(pages: Sequence[Page], drawn: Sequence[Drawn], *, columns: int, rows: int) -> Readings:
    found = []
    for index, (page, picture) in enumerate(zip(pages, drawn, strict=True)):
        for mark in picture.marks:
            place = (index * rows + int(mark.y * rows)) * columns + int(mark.x * columns)
            if mark.fact is None:
                found.append((place, TOPICS.index(page.topic), NOTHING, NOTHING))
            else:
                found.append((place, NOTHING, ALL_LABELS.index(mark.fact.label), mark.fact.value - 1))
    places, topics, labels, values = torch.tensor(found).unbind(1)
    return Readings(places=places, topics=topics, labels=labels, values=values)
