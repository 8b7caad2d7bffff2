"""Questions for pages in eight languages, each in several wordings.

A question names the topic, the kind of page and two of its facts, in another language than the page's or in the same.
Every page with these facts answers it (`Question.is_answered_by`). Each language's words are a file in `languages`.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from edgeclip.errors import InputError
from edgeclip_bench.demo.pages.contents import Fact, Kind, Page, split_of, split_of_fact

LANGUAGES = ("en", "de", "fr", "es", "ru", "el", "ar", "zh")
_ASKED = 2  # facts in a question
_LABELS: Mapping[Kind, str] = {"bars": "colours", "list": "items", "table": "rows"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked for, apart from its language and wording."""

    topic: str
    kind: Kind
    facts: tuple[Fact, ...]

    def is_answered_by(self, page: Page) -> bool:
        """Whether the page has the topic, the kind and all facts."""
        return (self.topic, self.kind) == (page.topic, page.kind) and set(self.facts) <= set(page.facts)


def ask(page: Page, draw: np.random.Generator) -> Question:
    """A question for some facts of a page; of a page that training cannot have, one is a fact that it cannot."""
    order = [page.facts[index] for index in draw.permutation(len(page.facts))]
    # A stable sort: held-out facts first.
    order.sort(key=lambda fact: split_of_fact(page, fact) != split_of(page))
    asked = order[:_ASKED]
    return Question(
        topic=page.topic, kind=page.kind, facts=tuple(asked[index] for index in draw.permutation(len(asked)))
    )


def wordings(question: Question, language: str) -> tuple[str, ...]:
    """Every wording of a question in a language, the plainest first."""
    known = words(language)
    facts = (
        known["fact"].format(label=label_word(question.kind, fact.label, language), value=fact.value)
        for fact in question.facts
    )
    fields = {
        "topic": known["topics"][question.topic],
        "kind": known["kinds"][question.kind],
        "which": known["which"][question.kind],
        "facts": known["join"].join(facts),
    }
    return tuple(wording.format(**fields) for wording in known["wordings"])


def word(question: Question, language: str, draw: np.random.Generator) -> str:
    """One of `wordings(question, language)`, each as likely as the others; one integer is drawn."""
    found = wordings(question, language)
    return found[int(draw.integers(len(found)))]


def label_word(kind: Kind, label: str, language: str) -> str:
    """A label in a language; a table's column has the same letter in all."""
    name, _, column = label.partition(" ")
    return f"{words(language)[_LABELS[kind]][name]} {column}".strip()


@functools.cache
def words(language: str) -> Mapping[str, Any]:
    """The words of a language's file."""
    if language not in LANGUAGES:
        raise InputError(f"questions are asked for in language {language!r}, wanted one of {', '.join(LANGUAGES)}")
    return tomllib.loads((files(__package__) / "languages" / f"{language}.toml").read_text(encoding="utf-8"))
