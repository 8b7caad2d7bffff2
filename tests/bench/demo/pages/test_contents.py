"""Pages of one split are never of another, all values are trained, and a family differs in one particular."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from edgeclip.errors import BuildError
from edgeclip_bench.demo.families import SPLITS, Split
from edgeclip_bench.demo.pages.contents import (
    KINDS,
    LABELS,
    LANGUAGES,
    MAX_FAMILY,
    MAX_VALUE,
    TOPICS,
    Page,
    draw_pages,
    split_of,
)


def drawn(split: Split, count: int, family: int, seed: int = 0) -> list[Page]:
    return list(islice(draw_pages(split, np.random.default_rng(seed), family=family), count))


def facts_of(pages: list[Page]) -> set[tuple[str, str, int]]:
    return {(page.topic, fact.label, fact.value) for page in pages for fact in page.facts}


@pytest.mark.parametrize("split", SPLITS)
def test_every_page_belongs_to_its_split(split: Split) -> None:
    assert {split_of(page) for page in drawn(split, 300, 6)} == {split}


def test_every_test_page_has_a_fact_that_training_cannot_have() -> None:
    trained = facts_of(drawn("train", 20_000, 1))
    pages = drawn("test", 600, 6)
    assert all(any((page.topic, fact.label, fact.value) not in trained for fact in page.facts) for page in pages)


def test_every_topic_label_and_value_is_trained_with_each_other() -> None:
    """Else a test page would show something new, not only a new combination."""
    trained = facts_of(drawn("train", 20_000, 1))
    for kind in KINDS:
        values = range(1, MAX_VALUE[kind] + 1)
        pairs = {(label, value) for _, label, value in trained if label in LABELS[kind]}
        assert pairs == {(label, value) for label in LABELS[kind] for value in values}
        assert {(topic, label) for topic, label, _ in trained if label in LABELS[kind]} == {
            (topic, label) for topic in TOPICS for label in LABELS[kind]
        }


def test_pages_differ_from_the_first_of_their_family_in_one_particular() -> None:
    pages = drawn("test", 120, MAX_FAMILY)
    for start in range(0, len(pages), MAX_FAMILY):
        first, *others = pages[start : start + MAX_FAMILY]
        for other in others:
            assert other.kind == first.kind
            changed = len(set(first.facts) - set(other.facts)) + (first.topic != other.topic)
            assert changed == 1


def test_no_two_pages_have_the_same_facts() -> None:
    pages = drawn("validation", 600, 6)
    assert len({(page.topic, frozenset(page.facts)) for page in pages}) == len(pages)


def test_pages_are_of_every_kind_and_language_and_follow_their_seed() -> None:
    pages = drawn("train", 400, 1)
    assert set(Counter(page.kind for page in pages)) == set(KINDS)
    assert {page.language for page in pages} == set(LANGUAGES)
    assert pages == drawn("train", 400, 1)
    assert pages != drawn("train", 400, 1, seed=1)


@pytest.mark.parametrize("family", [0, MAX_FAMILY + 1])
def test_a_family_that_cannot_be_is_refused(family: int) -> None:
    with pytest.raises(BuildError, match=f"a family of {family}"):
        drawn("test", 1, family)
