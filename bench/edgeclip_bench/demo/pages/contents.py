"""What stands on a page, apart from how it is drawn and asked for: a topic, and facts in a chart, a list or a table.

Training, validation and test differ in the facts that they combine with a topic, not only in their draws
(`split_of`). Pages come in families whose members differ from the first in one particular, so that a vector has to
hold every particular to be found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np

from edgeclip.errors import BuildError

Kind = Literal["bars", "list", "table"]
Split = Literal["train", "validation", "test"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS: tuple[Split, ...] = get_args(Split)
TOPICS = (
    *("water", "energy", "sport", "music", "school", "city"),
    *("bread", "forest", "money", "road", "milk", "wind"),
)
COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
ITEMS = ("price", "weight", "length", "count", "speed", "area")
ROWS, COLUMNS = ("north", "south", "east", "west"), ("A", "B")
# What a value belongs to: a bar's colour, an item of a list, the row and the column of a table.
LABELS: Mapping[Kind, tuple[str, ...]] = {
    "bars": COLOURS,
    "list": ITEMS,
    "table": tuple(f"{row} {column}" for row in ROWS for column in COLUMNS),
}
MAX_VALUE: Mapping[Kind, int] = {"bars": 5, "list": 8, "table": 8}
ENTRIES = 3  # bars, items, rows of a table
# The languages that pages are written in, in three scripts.
LANGUAGES = ("en", "de", "ru", "el")
MAX_FAMILY = 12
_CELLS = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A value, from 1, and what it belongs to."""

    label: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`facts` are in the order in which they are drawn, those of a table row by row; `language` is the page's."""

    topic: str
    kind: Kind
    language: str
    facts: tuple[Fact, ...]


def split_of(page: Page) -> Split:
    """Where a page belongs: to test when one of its facts is held out for test under its topic."""
    splits = {split_of_fact(page, fact) for fact in page.facts}
    return "test" if "test" in splits else "validation" if "validation" in splits else "train"


def split_of_fact(page: Page, fact: Fact) -> Split:
    """An eighth of all combinations of topic, label and value is held out for test, an eighth for validation.

    They are spread like a Latin square: every label is trained with every value and under every topic.
    """
    cell = (TOPICS.index(page.topic) + LABELS[page.kind].index(fact.label) + fact.value) % _CELLS
    return "test" if cell == 0 else "validation" if cell == 3 else "train"


def draw_pages(split: Split, draw: np.random.Generator, *, family: int) -> Iterator[Page]:
    """Yield pages without end, no two with the same facts, in families of `family` pages.

    The first of a family is drawn at random; each other one differs from it in its topic, a value or a label.
    """
    if not 1 <= family <= MAX_FAMILY:
        raise BuildError(f"a family of {family}: wanted 1 to {MAX_FAMILY}")
    seen: set[Page] = set()

    def is_new(page: Page) -> bool:
        known = replace(page, language="", facts=tuple(sorted(page.facts, key=lambda fact: fact.label)))
        if split_of(page) != split or known in seen:
            return False
        seen.add(known)
        return True

    while True:
        first = _draw_page(draw)
        if not is_new(first):
            continue
        yield first
        members = 1
        while members < family:
            other = _vary(first, draw)
            if is_new(other):
                members += 1
                yield other


def _draw_page(draw: np.random.Generator) -> Page:
    kind = _any(KINDS, draw)
    if kind == "table":
        rows = [ROWS[index] for index in draw.permutation(len(ROWS))[:ENTRIES]]
        labels = [f"{row} {column}" for row in rows for column in COLUMNS]
    else:
        labels = [LABELS[kind][index] for index in draw.permutation(len(LABELS[kind]))[:ENTRIES]]
    facts = tuple(Fact(label=label, value=_draw_value(kind, draw)) for label in labels)
    return Page(topic=_any(TOPICS, draw), kind=kind, language=_any(LANGUAGES, draw), facts=facts)


def _vary(page: Page, draw: np.random.Generator) -> Page:
    """The page with another topic, another value or, but for a table, another label; in any language."""
    page = replace(page, language=_any(LANGUAGES, draw))
    what = int(draw.integers(4))
    if what == 0:
        return replace(page, topic=_other(TOPICS, page.topic, draw))
    facts = list(page.facts)
    place = int(draw.integers(len(facts)))
    if what == 1 and page.kind != "table":
        free = [label for label in LABELS[page.kind] if all(fact.label != label for fact in facts)]
        facts[place] = replace(facts[place], label=_any(free, draw))
    else:
        values = range(1, MAX_VALUE[page.kind] + 1)
        facts[place] = replace(facts[place], value=_other(values, facts[place].value, draw))
    return replace(page, facts=tuple(facts))


def _draw_value(kind: Kind, draw: np.random.Generator) -> int:
    return int(draw.integers(MAX_VALUE[kind])) + 1


def _any(values: Sequence[_T], draw: np.random.Generator) -> _T:
    return values[int(draw.integers(len(values)))]


def _other(values: Sequence[_T], value: _T, draw: np.random.Generator) -> _T:
    return _any([other for other in values if other != value], draw)
