"""What stands on a page, apart from how it is drawn and asked for: a topic, and facts in a chart, a list or a table.

Training, validation and test differ in the facts that they combine with a topic, not only in their draws
(`split_of`). Pages come in families whose members differ from the first in one particular, so that a vector has to
hold every particular to be found.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from edgeclip_bench.demo.families import Split, any_of, draw_families, other_than, split_of_cells

Kind = Literal["bars", "list", "table"]

KINDS: tuple[Kind, ...] = get_args(Kind)
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
    return split_of_cells(_cell(page, fact) for fact in page.facts)


def split_of_fact(page: Page, fact: Fact) -> Split:
    """The split of a combination of topic, label and value.

    Every label is trained with every value and under every topic.
    """
    return split_of_cells((_cell(page, fact),))


def _cell(page: Page, fact: Fact) -> int:
    return TOPICS.index(page.topic) + LABELS[page.kind].index(fact.label) + fact.value


def draw_pages(split: Split, draw: np.random.Generator, *, family: int) -> Iterator[Page]:
    """Yield pages without end, no two with the same facts, in families of `family` pages.

    The first of a family is drawn at random; each other one differs from it in its topic, a value or a label.
    """

    def known(page: Page) -> Page | None:
        if split_of(page) != split:
            return None
        return replace(page, language="", facts=tuple(sorted(page.facts, key=lambda fact: fact.label)))

    return draw_families(
        lambda: _draw_page(draw), lambda page: _vary(page, draw), known, size=family, most=MAX_FAMILY
    )


def _draw_page(draw: np.random.Generator) -> Page:
    kind = any_of(KINDS, draw)
    if kind == "table":
        rows = [ROWS[index] for index in draw.permutation(len(ROWS))[:ENTRIES]]
        labels = [f"{row} {column}" for row in rows for column in COLUMNS]
    else:
        labels = [LABELS[kind][index] for index in draw.permutation(len(LABELS[kind]))[:ENTRIES]]
    facts = tuple(Fact(label=label, value=_draw_value(kind, draw)) for label in labels)
    return Page(topic=any_of(TOPICS, draw), kind=kind, language=any_of(LANGUAGES, draw), facts=facts)


def _vary(page: Page, draw: np.random.Generator) -> Page:
    """The page with another topic, another value or, but for a table, another label; in any language."""
    page = replace(page, language=any_of(LANGUAGES, draw))
    what = int(draw.integers(4))
    if what == 0:
        return replace(page, topic=other_than(page.topic, TOPICS, draw))
    facts = list(page.facts)
    place = int(draw.integers(len(facts)))
    if what == 1 and page.kind != "table":
        free = [label for label in LABELS[page.kind] if all(fact.label != label for fact in facts)]
        facts[place] = replace(facts[place], label=any_of(free, draw))
    else:
        values = range(1, MAX_VALUE[page.kind] + 1)
        facts[place] = replace(facts[place], value=other_than(facts[place].value, values, draw))
    return replace(page, facts=tuple(facts))


def _draw_value(kind: Kind, draw: np.random.Generator) -> int:
    return int(draw.integers(MAX_VALUE[kind])) + 1
