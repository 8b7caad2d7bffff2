"""Texts of one length go together, the longest first, within the budget; every input goes exactly once."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.batching import IMAGES_AT_ONCE, TOKEN_BUDGET, TextBatch, is_oversized, plan_images, plan_texts

PAD = 1


def make_rows(count: int, longest: int, seed: int) -> list[NDArray[np.int64]]:
    """Random ids, a padding token among them in about one text of four."""
    random = np.random.default_rng(seed)
    rows = [random.integers(2, 100, random.integers(2, longest + 1)) for _ in range(count)]
    for row in rows:
        if random.random() < 0.25:
            row[random.integers(len(row))] = PAD
    return rows


def plan(rows: list[NDArray[np.int64]], batch_size: int | None = None) -> list[TextBatch]:
    return list(plan_texts(rows, PAD, batch_size))


@pytest.mark.parametrize("batch_size", [None, 1, 3, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_every_text_goes_once_with_its_own_ids(seed: int, batch_size: int | None) -> None:
    rows = make_rows(200, 20, seed)
    batches = plan(rows, batch_size)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(200))
    for batch in batches:
        assert batch.input_ids.dtype == np.int64
        assert batch.input_ids.shape[0] == len(batch.indices)
        for index, ids in zip(batch.indices, batch.input_ids, strict=True):
            np.testing.assert_array_equal(ids, rows[index])


def test_texts_with_a_literal_padding_token_go_with_their_like() -> None:
    """They need a mask, and no other text pays for it."""
    batches = plan(make_rows(200, 6, seed=0))
    padded = [(batch.input_ids == PAD).any(axis=1) for batch in batches]
    assert all(rows.all() or not rows.any() for rows in padded)
    assert {bool(rows.all()) for rows in padded} == {True, False}


def test_the_longest_go_first() -> None:
    lengths = [batch.input_ids.shape[1] for batch in plan(make_rows(200, 20, seed=1))]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_as_few_batches_as_the_rules_allow() -> None:
    """Everything of one length, and with or without padding, is one batch while the budget lasts."""
    rows = make_rows(200, 4, seed=2)
    kinds = {(len(row), bool((row == PAD).any())) for row in rows}
    assert len(plan(rows)) == len(kinds)


@pytest.mark.parametrize(
    ("length", "size"),
    [(2, TOKEN_BUDGET // 2), (16, TOKEN_BUDGET // 16), (300, TOKEN_BUDGET // 300), (TOKEN_BUDGET, 1), (8192, 1)],
)
def test_a_batch_keeps_to_the_budget_of_tokens(length: int, size: int) -> None:
    """A text above the budget still goes, alone."""
    count = size + 1
    batches = plan([np.full(length, 5)] * count)
    assert [len(batch.indices) for batch in batches] == ([size, 1] if size > 1 else [1, 1])
    assert all(batch.input_ids.size <= TOKEN_BUDGET or len(batch.indices) == 1 for batch in batches)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (9, [4, 1])])
def test_a_batch_size_caps_and_the_budget_does_too(batch_size: int, sizes: list[int]) -> None:
    batches = plan([np.full(TOKEN_BUDGET // 4, 5)] * 5, batch_size)
    assert [len(batch.indices) for batch in batches] == sizes
    assert [index for batch in batches for index in batch.indices] == list(range(5))


def test_no_texts_are_no_batches() -> None:
    assert plan([]) == []


@pytest.mark.parametrize(
    ("count", "batch_size", "batches"),
    [
        (0, None, []),
        (3, None, [range(start, start + IMAGES_AT_ONCE) for start in range(0, 3, IMAGES_AT_ONCE)]),
        (0, 4, []),
        (5, 2, [range(0, 2), range(2, 4), range(4, 5)]),
        (4, 2, [range(0, 2), range(2, 4)]),
        (2, 9, [range(0, 2)]),
    ],
)
def test_images_go_in_their_order(count: int, batch_size: int | None, batches: list[range]) -> None:
    assert list(plan_images(count, batch_size)) == batches


def test_another_device_has_its_own_sizes() -> None:
    rows = [np.full(10, 5)] * 10 + [np.full(20, 5)] * 3
    batches = list(plan_texts(rows, PAD, None, at_once=lambda length: 40 // length))
    assert [len(batch.indices) for batch in batches] == [2, 1, 4, 4, 2]
    assert list(plan_images(5, None, at_once=2)) == [range(0, 2), range(2, 4), range(4, 5)]
    assert list(plan_images(5, 4, at_once=2)) == [range(0, 4), range(4, 5)]


def test_no_batch_size_asks_for_any_amount_of_memory() -> None:
    assert list(plan_images(70, 10**9)) == [range(0, 32), range(32, 64), range(64, 70)]


def test_what_is_planned_is_never_oversized() -> None:
    """So the memory that it takes may be kept."""
    for batch in plan(make_rows(500, 60, seed=3)):
        assert not is_oversized("text", batch.input_ids.shape)
    assert not is_oversized("vision", (IMAGES_AT_ONCE, 512, 512, 3))
    assert is_oversized("text", (1, TOKEN_BUDGET + 1))
    assert is_oversized("text", (2, TOKEN_BUDGET // 2 + 1))
    assert is_oversized("vision", (IMAGES_AT_ONCE + 1, 512, 512, 3))
