"""The front holds recipes that no other beats, and the pick is the fastest choice within all of a budget."""

import math
from collections.abc import Sequence

import pytest

from edgeclip_quant.budget import Budget, parse_budget
from edgeclip_quant.pick.pareto import (
    ALIKE_LOSS,
    ALIKE_SIZE,
    ALIKE_TIME,
    Candidate,
    format_cosine,
    front,
    nearest,
    pick,
)
from tests.scenes.compared import LOST, OTHER_BYTES, candidate, comparison

LOOSE = Budget(cosine=-1.0, recall_points=None, size_mb=None)


def text(recipe: str, **figures: float) -> Candidate:
    return candidate("text", recipe, **figures)  # type: ignore[arg-type]


def front_of(*texts: Candidate, is_made_up: bool = False) -> list[str]:
    """The names of the texts' recipes on the front."""
    return [one.recipe.name for one in front(comparison(*texts, is_made_up=is_made_up)) if one.modality == "text"]


@pytest.mark.parametrize(
    ("better", "names"),
    [
        ({"mb": 0.9}, ["int8"]),
        ({"time": 0.4}, ["int8"]),
        ({"cosine": 0.9999}, ["int8"]),
        ({"mb": 0.9, "time": 0.6}, ["int8", "int4"]),
        ({"time": 0.4, "cosine": 0.9}, ["int8", "int4"]),
        ({"mb": 1.1, "cosine": 0.9999}, ["int8", "int4"]),
        ({}, ["int8", "int4"]),
    ],
    ids=str,
)
def test_who_is_beaten_in_one_figure_and_better_in_none_is_off(better: dict[str, float], names: list[str]) -> None:
    assert front_of(text("int8", **better), text("int4")) == names


@pytest.mark.parametrize(
    ("figure", "alike", "better"),
    [
        ("mb", 1 / (1 + 0.9 * ALIKE_SIZE), 1 / (1 + 1.1 * ALIKE_SIZE)),
        ("time", 0.5 / (1 + 0.9 * ALIKE_TIME), 0.5 / (1 + 1.1 * ALIKE_TIME)),
        ("cosine", 1 - 0.001 / (1 + 0.9 * ALIKE_LOSS), 1 - 0.001 / (1 + 1.1 * ALIKE_LOSS)),
    ],
)
def test_what_is_alike_beats_nobody(figure: str, alike: float, better: float) -> None:
    assert front_of(text("int8", **{figure: alike}), text("int4")) == ["int8", "int4"]
    assert front_of(text("int8", **{figure: better}), text("int4")) == ["int8"]


def test_being_worse_by_less_than_alike_saves_nobody() -> None:
    """200 bytes less are no reason to be on the front."""
    assert front_of(text("int8", time=0.3, mb=1.0002), text("int4", mb=1.0)) == ["int8"]


def test_three_that_are_nearly_alike_do_not_beat_each_other_in_a_circle() -> None:
    """Each is better than the next by more than alike in one figure, and worse by less in the two others."""
    circle = {"int8": (0.0, 0.0, 0.0), "int8-blocks": (1.1, -0.55, -0.55), "int4": (0.55, 0.55, -1.1)}
    candidates = [
        text(
            name,
            mb=(1 + ALIKE_SIZE) ** size,
            time=0.5 * (1 + ALIKE_TIME) ** time,
            cosine=1 - 0.001 * (1 + ALIKE_LOSS) ** loss,
        )
        for name, (size, time, loss) in circle.items()
    ]
    assert front_of(*candidates)


def test_nan_is_beaten_and_beats_nobody() -> None:
    assert front_of(text("int8", cosine=math.nan), text("int4")) == ["int4"]


def test_graphs_do_not_beat_each_other() -> None:
    found = front(comparison(text("int8"), candidate("image", "int8", mb=9.0, time=0.9, cosine=0.5)))
    assert [one.modality for one in found] == ["text", "image"]


def test_recipes_that_no_bundle_is_made_by_neither_beat_nor_stand_on_the_front() -> None:
    best = {"mb": 0.1, "time": 0.1, "cosine": 0.9999}
    assert front_of(text("int8-dynamic", **best), text("int8")) == ["int8"]
    assert front_of(text("int8-static", **best), text("int8")) == ["int8-static"]
    assert front_of(text("int8-static", **best), text("int8"), is_made_up=True) == ["int8"]


def picked(budget: str | Budget, *candidates: Candidate, **how: bool | Sequence[int]) -> tuple[str, str] | None:
    """The names of the recipes for the text graph and the vision graph."""
    parsed = parse_budget(budget, "int8") if isinstance(budget, str) else budget
    found = pick(comparison(*candidates, **how), parsed)  # type: ignore[arg-type]
    if found is None:
        return None
    text_recipe, vision_recipe = (one.recipe.name for one in found.choice.candidates)
    return text_recipe, vision_recipe


TWO_EACH = (
    candidate("text", "int8", time=0.5, cosine=0.999, mb=2.0),
    candidate("text", "int4", time=0.3, cosine=0.95, mb=1.0),
    candidate("image", "int8", time=0.6, cosine=0.998, mb=2.0),
    candidate("image", "int4", time=0.9, cosine=0.96, mb=1.0),
)


@pytest.mark.parametrize(
    ("budget", "choice"),
    [
        ("cosine=0.9", ("int4", "int8")),
        ("cosine=0.99", ("int8", "int8")),
        ("cosine=0.9,size_mb=2.6", ("int4", "int4")),
        ("cosine=0.97,size_mb=4.5", ("int8", "int8")),
        ("cosine=0.97,size_mb=4.49", None),
        ("cosine=0.999", None),
        ("cosine=0.9,size_mb=2.4", None),
    ],
)
def test_the_fastest_choice_within_the_budget(budget: str, choice: tuple[str, str] | None) -> None:
    assert picked(budget, *TWO_EACH) == choice


def test_a_size_is_the_whole_bundles() -> None:
    graphs_mb, others_mb = 2.0, OTHER_BYTES / 1e6
    one = text("int8", mb=1.0)
    assert picked(f"size_mb={graphs_mb + others_mb}", one) is not None
    assert picked(f"size_mb={graphs_mb + others_mb - 0.001}", one) is None


def test_of_times_that_are_alike_the_best_cosine_is_taken() -> None:
    fast, near = text("int4", time=0.5, cosine=0.992), text("int8-blocks", time=0.5 * 1.04, cosine=0.999)
    assert picked("cosine=0.99", fast, near) == ("int8-blocks", "int8")
    far = text("int8-blocks", time=0.5 * 1.06, cosine=0.999)
    assert picked("cosine=0.99", fast, far) == ("int4", "int8")


def test_each_graph_must_be_alike_by_itself() -> None:
    """Else one graph pays with its time for what another is quicker by."""
    slower = candidate("image", "int8-blocks", time=0.5 * 1.06, cosine=0.9999)
    assert picked("cosine=0.99", text("int8"), candidate("image", "int8"), slower) == ("int8", "int8")


def test_of_what_loses_the_same_the_smallest_is_taken_and_then_the_first() -> None:
    assert picked(LOOSE, text("int8-blocks", time=0.51), text("int8", mb=0.9)) == ("int8", "int8")
    assert picked(LOOSE, text("int8", time=0.51), text("int8-per-row", time=0.5)) == ("int8", "int8")


def test_recipes_that_no_bundle_is_made_by_are_never_picked() -> None:
    assert picked(LOOSE, text("int8-dynamic", time=0.1), text("int8")) == ("int8", "int8")
    assert picked(LOOSE, text("int8-static", time=0.1), text("int8")) == ("int8-static", "int8")
    assert picked(LOOSE, text("int8-static", time=0.1), text("int8"), is_made_up=True) == ("int8", "int8")


def test_recall_is_that_of_both_graphs_together() -> None:
    """A choice that finds nothing any more is not taken, however fast and near its vectors are said to be."""
    lost = candidate("text", "int4", time=0.1, answers=LOST)
    assert picked("recall=100", text("int8"), lost) == ("int4", "int8")
    assert picked("recall=1", text("int8"), lost) == ("int8", "int8")
    assert picked("recall=1", text("int8"), lost, pairs=range(8)) == ("int8", "int8")


def test_a_pick_says_of_how_many() -> None:
    found = pick(comparison(*TWO_EACH), parse_budget("cosine=0.9,size_mb=4", "int8"))
    assert found is not None
    assert (found.choices, found.within) == (4, 3)
    assert str(found.choice) == "text int4, vision int8"


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("cosine=1", "the best worst cosine of text vectors is 0.9990 (int8), wanted 1"),
        ("cosine=0.9985", "the best worst cosine of image vectors is 0.9980 (int8), wanted 0.9985"),
        (
            "cosine=0.99,size_mb=3",
            "the smallest bundle that keeps a cosine of 0.99 has 4.50 MB (text int8, vision int8), wanted 3",
        ),
        (
            "cosine=0.9,size_mb=1",
            "the smallest bundle that keeps a cosine of 0.9 has 2.50 MB (text int4, vision int4), wanted 1",
        ),
    ],
)
def test_what_comes_nearest_is_said_of_the_bound_that_leaves_none(budget: str, told: str) -> None:
    assert nearest(comparison(*TWO_EACH), parse_budget(budget, "int8")) == told


def test_what_comes_nearest_in_recall_is_said() -> None:
    lost = (candidate("text", name, answers=LOST, time=time) for name, time in (("int8", 0.3), ("int4", 0.2)))
    found = comparison(*lost)
    budget = parse_budget("recall=1", "int8")
    assert pick(found, budget) is None
    told = nearest(found, budget)
    assert told.startswith(
        "text int8, vision int8 come nearest, and recall@5 of 8 texts that search images on photos"
    )
    assert told.endswith("wanted 1 at most")


def test_nan_is_within_no_budget() -> None:
    found = comparison(text("int8", cosine=math.nan))
    assert pick(found, LOOSE) is None
    assert nearest(found, LOOSE) == "the best worst cosine of text vectors is nan (int8), wanted -1"


@pytest.mark.parametrize(
    ("cosine", "told"),
    [(1.0, "1.0000"), (0.99985, "0.99985"), (0.999999, "0.9999990"), (0.978, "0.9780"), (-0.5, "-0.5000")],
)
def test_a_cosine_that_is_not_1_does_not_look_like_it(cosine: float, told: str) -> None:
    assert format_cosine(cosine) == told


@pytest.mark.parametrize("words", ["cosine=0.99,recall=0.5", "cosine=-1,recall=12.5,size_mb=900"])
def test_a_budget_is_said_as_it_is_read(words: str) -> None:
    assert str(parse_budget(words, "int8")) == words
