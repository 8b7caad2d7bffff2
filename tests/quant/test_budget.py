"""A budget is what was asked for, and what breaks it is said with figures."""

import math
from typing import Any

import pytest

from edgeclip.errors import InputError
from edgeclip.manifest import RetrievalChange
from edgeclip_quant.budget import DEFAULT_BUDGETS, Budget, is_loss, judge, parse_budget, share_to_keep, token_bound
from edgeclip_quant.proof.retrieval import paired_interval
from tests.scenes.measurements import measured

LOOSE = Budget(cosine=None, recall_points=None, size_mb=None)


def change(lost: int, queries: int, gained: int = 0) -> RetrievalChange:
    """Of searches that all found what they wanted, but for those that only now do."""
    low, high = paired_interval(gained, lost, queries)
    reference = 1 - gained / queries
    return RetrievalChange(
        metric="recall@5",
        truth="captions",
        queries=queries,
        recall=reference + (gained - lost) / queries,
        reference=reference,
        points=100 * (gained - lost) / queries,
        low=100 * low,
        high=100 * high,
    )


def test_without_words_a_precision_has_its_own() -> None:
    for precision in ("fp16", "int8", "int4"):
        assert parse_budget(None, precision) == DEFAULT_BUDGETS[precision]
    assert DEFAULT_BUDGETS["int8"] == Budget(cosine=0.99, recall_points=0.5, size_mb=None)
    assert DEFAULT_BUDGETS["fp16"] == Budget(cosine=0.9995, recall_points=0.5, size_mb=None)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("cosine=0.995", Budget(cosine=0.995, recall_points=0.5, size_mb=None)),
        ("recall=0", Budget(cosine=0.99, recall_points=0.0, size_mb=None)),
        ("size_mb=900,recall=1.5", Budget(cosine=0.99, recall_points=1.5, size_mb=900.0)),
        (" cosine = -1 , recall = 100 ", Budget(cosine=-1.0, recall_points=100.0, size_mb=None)),
        ("token=0.9", Budget(cosine=0.99, recall_points=0.5, size_mb=None, token_cosine=0.9)),
        ("cosine=0.98,recall=2,size_mb=1e3", Budget(cosine=0.98, recall_points=2.0, size_mb=1000.0)),
    ],
)
def test_what_is_named_replaces_the_default(text: str, budget: Budget) -> None:
    assert parse_budget(text, "int8") == budget


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "budget: '' is no bound; wanted some of cosine=C, token=C, recall=POINTS, size_mb=MB, "),
        ("0.99", "budget: '0.99' is no bound"),
        ("cosine", "budget: 'cosine' is no bound"),
        ("cosine=0.99,", "budget: '' is no bound"),
        ("Cosine=0.99", "budget: 'Cosine=0.99' is no bound"),
        ("speed=2", "budget: 'speed=2' is no bound"),
        ("cosine=0.99;recall=1", "budget: cosine is '0.99;recall=1', wanted a number"),
        ("cosine=0.9,recall=1,cosine=0.8", "budget: cosine stands there twice"),
        ("cosine=", "budget: cosine is '', wanted a number"),
        ("cosine=none", "budget: cosine is 'none', wanted a number"),
        ("recall=50%", "budget: recall is '50%', wanted a number"),
        ("cosine=nan", "budget: cosine is nan, wanted -1 to 1"),
        ("cosine=1.01", "budget: cosine is 1.01, wanted -1 to 1"),
        ("recall=-0.5", "budget: recall is -0.5, wanted 0 to 100"),
        ("recall=101", "budget: recall is 101, wanted 0 to 100"),
        ("size_mb=-1", "budget: size_mb is -1, wanted 0 to 1e+06"),
        ("size_mb=inf", "budget: size_mb is inf, wanted 0 to 1e+06"),
    ],
)
def test_what_is_no_budget_is_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_budget(text, "int8")
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_a_budget_in_python_is_checked_too() -> None:
    with pytest.raises(InputError, match="cosine is 99, wanted -1 to 1"):
        Budget(cosine=99, recall_points=None, size_mb=None)


def test_what_holds_says_nothing() -> None:
    good = [measured(0.99, retrieval=change(1, 200)), measured(0.995, "image")]
    assert judge(Budget(cosine=0.99, recall_points=0.5, size_mb=1), good, 1_000_000) == []
    assert judge(LOOSE, [measured(-1.0, retrieval=change(9, 9))], 10**15) == []
    assert judge(DEFAULT_BUDGETS["int8"], [], 0) == []


def test_each_broken_bound_is_a_sentence_with_its_figures() -> None:
    bad = [measured(0.98761, retrieval=change(3, 200)), measured(0.5, "image", change(40, 100, gained=5))]
    assert judge(Budget(cosine=0.99, recall_points=0.5, size_mb=899.5), bad, 899_600_000) == [
        "text vectors have a worst cosine of 0.9876 on photos, wanted 0.99",
        "recall@5 of 200 texts that search images on photos fell by 1.50 points (100.0% to 98.5%), "
        "wanted 0.5 at most",
        "image vectors have a worst cosine of 0.5000 on photos, wanted 0.99",
        "recall@5 of 100 images that search texts on photos fell by 35.00 points (95.0% to 60.0%), "
        "wanted 0.5 at most",
        "the bundle has 899.6 MB, wanted 899.5 at most",
    ]


def test_tokens_of_a_deep_graph_may_lose_more_in_int8_alone() -> None:
    """Where no budget bounds them."""
    assert [token_bound("int8", layers) for layers in (1, 140, 141)] == [0.98, 0.98, 0.95]
    assert [token_bound("int4", 141), token_bound("fp16", 141)] == [0.7, 0.998]


def test_how_much_less_must_be_lost_follows_from_what_broke() -> None:
    """A fall of 35 points where 5 are allowed: a 49th. Of 8 queries one is always allowed."""
    budget = Budget(cosine=0.9, recall_points=5, size_mb=None)
    assert share_to_keep(budget, [measured(0.95), measured(0.9, "image")]) == 1
    assert share_to_keep(budget, [measured(0.6), measured(0.8, "image")]) == pytest.approx(0.25)
    assert share_to_keep(budget, [measured(0.99, retrieval=change(35, 100))]) == pytest.approx(1 / 49)
    assert share_to_keep(budget, [measured(0.99, retrieval=change(3, 8))]) == pytest.approx(1 / 9)
    assert share_to_keep(budget, [measured(0.99, retrieval=change(1, 8))]) == 1
    assert share_to_keep(budget, [measured(math.nan)]) == 0


@pytest.mark.parametrize(("worst", "shown"), [(0.98, "0.9800"), (0.99996, "0.9999600"), (1 - 1e-9, "0.999999999")])
def test_a_cosine_has_digits_enough_to_be_seen_below_its_bound(worst: float, shown: str) -> None:
    (told,) = judge(Budget(cosine=1, recall_points=None, size_mb=None), [measured(worst)], 0)
    assert told == f"text vectors have a worst cosine of {shown} on photos, wanted 1"


@pytest.mark.parametrize("budget", [LOOSE, DEFAULT_BUDGETS["int8"]])
def test_nan_breaks_every_budget(budget: Budget) -> None:
    assert judge(budget, [measured(math.nan, "image")], 0) == ["image vectors are NaN or zeros on photos"]


@pytest.mark.parametrize(
    ("searches", "points", "is_broken"),
    [
        # Queries enough: one is no more than the budget, and the figure itself is held to it.
        ({"lost": 1, "queries": 200}, 0.5, False),
        ({"lost": 2, "queries": 200}, 0.5, True),
        ({"lost": 2, "gained": 1, "queries": 200}, 0.5, False),
        ({"lost": 5, "queries": 1000}, 0.5, False),
        ({"lost": 6, "queries": 1000}, 0.5, True),
        ({"lost": 3, "queries": 1000}, 0.3, False),
        # Fewer: a near-tie or two that turned over say nothing, a tenth of all do.
        ({"lost": 1, "queries": 199}, 0.5, False),
        ({"lost": 1, "queries": 8}, 0.5, False),
        ({"lost": 3, "queries": 100}, 0.5, False),
        ({"lost": 10, "queries": 100}, 0.5, True),
        ({"lost": 10, "gained": 9, "queries": 100}, 0.5, False),
        ({"lost": 8, "queries": 8}, 0.5, True),
        ({"lost": 2, "queries": 8}, 5.0, True),
        ({"lost": 2, "gained": 1, "queries": 8}, 5.0, False),
        ({"lost": 2, "queries": 19}, 0.5, True),
        ({"lost": 2, "queries": 8}, 30.0, False),
        # A budget of nothing: no number of queries is enough, so a fall must be beyond chance.
        ({"lost": 1, "queries": 10_000}, 0.0, False),
        ({"lost": 20, "queries": 10_000}, 0.0, True),
        # What is found more often is never a loss.
        ({"lost": 0, "gained": 50, "queries": 1000}, 0.5, False),
    ],
)
def test_a_fall_counts_as_far_as_so_many_queries_can_tell(
    searches: dict[str, Any], points: float, is_broken: bool
) -> None:
    assert is_loss(change(**searches), points) is is_broken
