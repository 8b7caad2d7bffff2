"""A question names what it asks for in every language, and is answered by the pages that have it."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip_bench.demo.pages.contents import (
    COLOURS,
    ITEMS,
    KINDS,
    ROWS,
    TOPICS,
    Fact,
    Page,
    draw_pages,
    split_of_fact,
)
from edgeclip_bench.demo.pages.contents import LANGUAGES as WRITTEN
from edgeclip_bench.demo.pages.questions import LANGUAGES, Question, ask, label_word, word, wordings, words

QUESTION = Question(
    topic="water", kind="table", facts=(Fact(label="north A", value=3), Fact(label="west B", value=7))
)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_wording_names_topic_kind_labels_and_values(language: str) -> None:
    known = words(language)
    found = wordings(QUESTION, language)
    assert len(set(found)) == len(found) >= 3
    for text in found:
        assert known["topics"]["water"] in text
        assert known["kinds"]["table"] in text or known["which"]["table"] in text
        assert known["rows"]["north"] + " A" in text and known["rows"]["west"] + " B" in text
        assert text.index("3") < text.index("7")
        assert "{" not in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_a_word_of_its_own_for_everything(language: str) -> None:
    known = words(language)
    for table, names in (
        ("topics", TOPICS),
        ("colours", COLOURS),
        ("items", ITEMS),
        ("rows", ROWS),
        ("kinds", KINDS),
    ):
        assert tuple(known[table]) == names
        assert len(set(known[table].values())) == len(names), table


def test_pages_are_written_in_languages_that_have_words() -> None:
    assert set(WRITTEN) <= set(LANGUAGES)
    assert label_word("bars", "red", "de") == "Rot"
    assert label_word("table", "east B", "ru") == "восток B"


def test_a_question_is_answered_by_pages_with_all_of_its_facts() -> None:
    page = Page(topic="water", kind="table", language="el", facts=(*QUESTION.facts, Fact(label="east A", value=1)))
    assert QUESTION.is_answered_by(page)
    assert QUESTION.is_answered_by(replace(page, language="en", facts=page.facts[::-1]))
    assert not QUESTION.is_answered_by(replace(page, topic="wind"))
    assert not QUESTION.is_answered_by(replace(page, facts=(Fact(label="north A", value=4), *page.facts[1:])))
    assert not QUESTION.is_answered_by(replace(page, kind="list"))


def test_a_page_that_is_tested_is_asked_for_a_fact_that_is_held_out() -> None:
    draw = np.random.default_rng(0)
    for page in islice(draw_pages("test", draw, family=4), 200):
        question = ask(page, draw)
        assert question.is_answered_by(page) and len(question.facts) == 2
        assert any(split_of_fact(page, fact) == "test" for fact in question.facts)


def test_a_wording_is_drawn_from_all() -> None:
    draw = np.random.default_rng(0)
    assert {word(QUESTION, "fr", draw) for _ in range(50)} == set(wordings(QUESTION, "fr"))


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(InputError, match="language 'xx'"):
        wordings(QUESTION, "xx")
