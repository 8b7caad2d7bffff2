"""A layer goes to the fastest kernel that it bears on what it saw; the worst ones move on when that is not enough."""

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeclip_graph.frame import constant
from edgeclip_quant.inputs.layer_inputs import Observation
from edgeclip_quant.kernels import Kernel, Plan, product
from edgeclip_quant.pick.kernel_plan import plan_layer, raise_worst, relative_error, share_to_raise
from edgeclip_quant.recipes import COMPARED, INT4, INT8, Recipe
from tests.scenes.layer_graphs import SOURCES, Source, layer_model, only_layer

Array = NDArray[np.float32]

STATIC: Recipe = next(one for one in COMPARED if one.name == "int8-static")
DYNAMIC: Recipe = next(one for one in COMPARED if one.name == "int8-dynamic")
WIDTH = 256


def gaussian(rows: int = 64, width: int = WIDTH, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


WEIGHT = gaussian(WIDTH, 48, seed=1)


def seen(rows: Array) -> Observation:
    return Observation(largest=np.abs(rows).max(axis=0), rows=rows)


def plan(
    rows: Array,
    source: Source = "norm",
    recipe: Recipe = INT8,
    *,
    may_fix: bool = True,
    weight: Array = WEIGHT,
    bias: Array | None = None,
) -> list[Plan]:
    bias = np.zeros(weight.shape[1], np.float32) if bias is None else bias
    return plan_layer(only_layer(layer_model(weight, bias, source)), seen(rows), recipe, may_fix=may_fix)


def kernels(plans: list[Plan]) -> list[Kernel]:
    return [one.kernel for one in plans]


def outlying(factor: float, channels: int = 3) -> Array:
    rows = gaussian()
    rows[:, :channels] *= factor
    return rows


@pytest.mark.parametrize("may_fix", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_only_what_a_norm_gives_and_only_a_users_samples_fix_a_scale(source: Source, may_fix: bool) -> None:
    is_fixed = may_fix and source in ("norm", "shared norm", "norm without shift")
    wanted = [*(["int8 static"] if is_fixed else []), "int8 per row", "int8 blocks", "fp32"]
    assert kernels(plan(gaussian(), source, may_fix=may_fix)) == wanted


@pytest.mark.parametrize("source", SOURCES)
def test_a_recipe_may_fix_the_scale_of_anything(source: Source) -> None:
    assert kernels(plan(gaussian(), source, STATIC, may_fix=False)) == ["int8 static", "fp32"]


def test_a_fixed_scale_reaches_to_the_largest_that_was_seen_in_any_sample() -> None:
    """Not only in the rows that were kept."""
    rows = gaussian()
    observation = Observation(largest=np.full(WIDTH, 7.0, np.float32), rows=rows)
    layer = only_layer(layer_model(WEIGHT, np.zeros(48, np.float32), "norm"))
    (static, _) = plan_layer(layer, observation, STATIC, may_fix=True)
    assert static.largest == 7
    exact = rows @ WEIGHT
    assert static.error == pytest.approx(
        relative_error(product("int8 static", rows, WEIGHT, largest=7.0), exact), rel=1e-6
    )


def test_a_fixed_scale_is_never_smoothed() -> None:
    """Though that would lower its error as it does the others'."""
    (static, fp32) = plan(outlying(30), recipe=replace(STATIC, smooths=True))
    assert static.factors is None and fp32.factors is None
    assert static.error > 0.05
    assert all(one.factors is not None for one in plan(outlying(30))[:-1])
    assert all(one.factors is None for one in plan(outlying(30), recipe=replace(INT8, smooths=False)))


def test_a_fixed_scale_may_cost_a_quarter_more_than_a_rows_own() -> None:
    """Rows of one length, as a norm gives them, and rows of lengths between a half and one."""
    alike = gaussian()
    alike /= np.linalg.norm(alike, axis=1, keepdims=True)
    unlike = alike * np.linspace(0.3, 1, len(alike), dtype=np.float32)[:, None]
    for rows, is_first in ((alike, True), (unlike, False)):
        largest = float(np.abs(rows).max())
        exact = rows @ WEIGHT
        static, per_row = (
            relative_error(product(kernel, rows, WEIGHT, largest=largest), exact)
            for kernel in ("int8 static", "int8 per row")
        )
        assert (static < 1.25 * per_row) == is_first
        assert (kernels(plan(rows, recipe=replace(INT8, smooths=False)))[0] == "int8 static") == is_first


def test_an_error_is_that_of_the_plan() -> None:
    rows = outlying(30)
    exact = rows @ WEIGHT
    for one in plan(rows, "gelu", replace(INT8, max_error=math.inf)):
        smooth = np.ones(WIDTH, np.float32) if one.factors is None else one.factors
        found = product(one.kernel, rows / smooth, WEIGHT * smooth[:, None], largest=one.largest, shift=one.shift)
        assert one.error == pytest.approx(relative_error(found, exact), rel=1e-5)


@pytest.mark.parametrize(
    ("max_error", "wanted"),
    [
        (0.1, ["int8 per row", "int8 blocks", "fp32"]),
        (0.03, ["int8 blocks", "fp32"]),
        (0.001, ["fp32"]),
    ],
)
def test_a_layer_that_a_kernel_spoils_goes_to_the_next(max_error: float, wanted: list[Kernel]) -> None:
    """Outliers in the first block of two: a row's scale spoils both, a block's own only the first."""
    rows = outlying(20)
    rows[:, 3:128] = 0
    recipe = replace(INT8, smooths=False, max_error=max_error)
    weight = WEIGHT.copy()
    weight[:3] /= 20
    assert kernels(plan(rows, recipe=recipe, may_fix=False, weight=weight)) == wanted


def test_4_bits_go_to_8_and_then_to_fp32() -> None:
    assert kernels(plan(gaussian(), recipe=INT4)) == ["int4 blocks", "int8 per row", "int8 blocks", "fp32"]
    assert kernels(plan(gaussian(), recipe=replace(INT4, max_error=0.05))) == ["int8 per row", "int8 blocks", "fp32"]
    errors = [one.error for one in plan(gaussian(), recipe=INT4)]
    assert 0.05 < errors[0] < 0.2 and 0.005 < errors[2] < errors[1] < 0.02 and errors[3] == 0


def test_some_columns_of_a_weight_give_an_error_within_3_in_100() -> None:
    """Columns of very different sizes, as trained weights have them."""
    draw = np.random.default_rng(3)
    weight = draw.normal(0, 0.02, (WIDTH, 4096)).astype(np.float32)
    weight *= np.exp(draw.normal(0, 0.7, 4096)).astype(np.float32)
    rows = gaussian()
    for one in plan(rows, recipe=replace(INT4, max_error=math.inf), weight=weight)[:-1]:
        whole = relative_error(product(one.kernel, rows, weight), rows @ weight)
        assert one.error == pytest.approx(whole, rel=0.03) and one.error != whole


def test_a_recipe_that_is_compared_as_it_is_keeps_its_kernel() -> None:
    assert kernels(plan(outlying(1000), recipe=DYNAMIC)) == ["int8 per call", "fp32"]


@pytest.mark.parametrize(
    ("factor", "gain", "smoothed"),
    [(2, 0.92, "norm"), (4, 0.69, "norm, input"), (20, 0.31, "norm, input, made-up")],
)
def test_smoothing_must_be_worth_what_it_costs(factor: float, gain: float, smoothed: str) -> None:
    """Free in a norm, a multiplication elsewhere; made-up samples promise more than they keep."""
    rows = outlying(factor)
    plain = relative_error(product("int8 per row", rows, WEIGHT), rows @ WEIGHT)
    cases: dict[str, tuple[Source, bool]] = {
        "norm": ("norm", True),
        "input": ("shared norm", True),
        "made-up": ("norm", False),
    }
    for case, (source, may_fix) in cases.items():
        (one,) = (one for one in plan(rows, source, may_fix=may_fix) if one.kernel == "int8 per row")
        assert (one.factors is not None) == (case in smoothed)
        assert one.error / plain == pytest.approx(gain if case in smoothed else 1, abs=0.01)


@pytest.mark.parametrize("kernel", ["int8 per row", "int8 blocks"])
@pytest.mark.parametrize("may_fix", [False, True])
def test_a_channel_that_is_huge_in_the_first_rows_alone_is_brought_down(kernel: Kernel, may_fix: bool) -> None:
    """As a class token has it: 8 of 264 rows, so that all rows together hardly show it. Where a norm does it free."""
    rows, leading = gaussian(256), gaussian(8, seed=3)
    leading[:, 7] = 40
    looked_at = Observation(largest=np.abs([*rows, *leading]).max(axis=0), rows=rows, leading=leading)

    def planned(source: Source, observation: Observation) -> Plan:
        layer = only_layer(layer_model(WEIGHT, np.zeros(48, np.float32), source))
        recipe = replace(INT8, kernels=(kernel,))
        return plan_layer(layer, observation, recipe, may_fix=may_fix)[0]

    levelled = planned("norm", looked_at)
    assert levelled.factors is not None and levelled.factors.min() == 1
    assert levelled.factors[7] > 3 * np.delete(levelled.factors, 7).max()
    # Not elsewhere, and not where no channel stands out; smoothed those may be.
    common = replace(looked_at, largest=np.abs(rows).max(axis=0), leading=rows[:8])
    others: list[tuple[Source, Observation]] = [("shared norm", looked_at), ("norm", common)]
    for source, observation in (*others, ("norm", replace(looked_at, leading=None))):
        plain = planned(source, observation).factors
        assert plain is None or plain.min() < 1
    exact = leading @ WEIGHT
    left = product(kernel, leading / levelled.factors, WEIGHT * levelled.factors[:, None])
    assert relative_error(left, exact) < 0.6 * relative_error(product(kernel, leading, WEIGHT), exact)


def test_behind_a_gelu_a_row_is_shifted_unless_it_is_smoothed() -> None:
    rows = np.maximum(gaussian(), -0.16)
    shifts = {one.kernel: one.shift for one in plan(rows, "gelu", may_fix=False)}
    assert shifts == {"int8 per row": 0.17, "int8 blocks": 0.0, "fp32": 0.0}
    assert {one.shift for one in plan(rows, "norm", may_fix=False)} == {0.0}
    rows[:, :2] *= 200
    (first, *_) = plan(rows, "gelu", may_fix=False)
    assert first.kernel == "int8 per row" and first.factors is not None and first.shift == 0


def test_what_is_far_from_zero_in_every_row_hides_no_error() -> None:
    """A channel that is always 100 makes the product large, and the bias takes it back."""
    rows = gaussian()
    rows[:, 9] = 100
    bias = -100 * WEIGHT[9]
    recipe = replace(INT8, smooths=False)
    (told, *_) = plan(rows, recipe=replace(recipe, max_error=math.inf), may_fix=False, bias=bias)
    exact = rows @ WEIGHT + bias
    assert told.error == pytest.approx(relative_error(product("int8 per row", rows, WEIGHT) + bias, exact), rel=1e-5)
    assert told.error > 0.2
    assert kernels(plan(rows, recipe=recipe, may_fix=False, bias=bias)) == ["fp32"]
    # Nor does a large bias.
    (other, *_) = plan(outlying(3), recipe=recipe, may_fix=False, bias=np.full(48, 1e4, np.float32))
    assert other.error == pytest.approx(
        relative_error(product("int8 per row", outlying(3), WEIGHT), outlying(3) @ WEIGHT), rel=1e-5
    )


def test_an_input_of_zeros_has_a_plan() -> None:
    for recipe in COMPARED:
        plans = plan(np.zeros((4, WIDTH), np.float32), recipe=recipe)
        assert plans[0].kernel == recipe.kernels[0] and plans[0].error == 0
        assert all(one.factors is None or np.isfinite(one.factors).all() for one in plans)


def test_one_row_is_enough() -> None:
    plans = plan(gaussian(1))
    assert kernels(plans) == ["int8 static", "int8 per row", "int8 blocks", "fp32"]
    assert 0.005 < plans[0].error < 0.03


def ladder(*errors: float) -> list[Plan]:
    rungs: tuple[Kernel, ...] = ("int8 per row", "int8 blocks", "fp32")
    return [Plan(kernel=kernel, error=error) for kernel, error in zip(rungs[-len(errors) :], errors, strict=True)]


LADDERS = {
    "a": ladder(0.03, 0.02, 0),
    "b": ladder(0.02, 0.01, 0),
    "c": ladder(0.04, 0.001, 0),
    "d": ladder(0.01, 0.009, 0),
}


@pytest.mark.parametrize(
    ("share", "raised"),
    [(0.0, "c"), (0.2, "c"), (0.25, "c"), (0.5, "ca"), (0.74, "cab"), (1.0, "cabd")],
)
def test_the_worst_share_of_the_layers_moves_on(share: float, raised: str) -> None:
    """One at least."""
    before = {name: list(left) for name, left in LADDERS.items()}
    found = raise_worst(LADDERS, share)
    assert {name: len(left) for name, left in found.items()} == {name: 3 - (name in raised) for name in LADDERS}
    assert all(found[name] == before[name][name in raised :] for name in LADDERS)
    assert before == LADDERS


@pytest.mark.parametrize(("left", "share"), [(0.9, 0.25), (0.5, 0.25), (0.4, 0.5), (0.21, 0.75), (0.05, 1.0)])
def test_as_many_layers_move_on_as_their_squared_errors_say(left: float, share: float) -> None:
    """Of 16 + 9 + 4 + 1, c leaves 14.01, then a 9.01, b 6.01 and d 5.82."""
    assert share_to_raise(LADDERS, left) == share
    heavy = share_to_raise(LADDERS, left, {"a": 1.0, "b": 100.0, "c": 1.0, "d": 1.0})
    assert heavy == (0.25 if left >= 0.4 else 1.0)


def test_fp32_is_the_end() -> None:
    plans = {"a": ladder(0.03, 0), "b": ladder(0), "c": ladder(0.02, 0.01, 0)}
    once = raise_worst(plans, 1.0)
    assert {name: left[0].kernel for name, left in once.items()} == {"a": "fp32", "b": "fp32", "c": "int8 blocks"}
    twice = raise_worst(once, 0.34)  # of three, the one that is not fp32 yet
    assert {left[0].kernel for left in twice.values()} == {"fp32"}
    assert raise_worst(twice, 1.0) == twice


def test_an_error_is_relative_and_nothing_has_none() -> None:
    exact = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(exact * np.float32(1.1), exact) == pytest.approx(0.1)
    assert relative_error(exact, np.zeros_like(exact)) == 0.0


def test_a_layers_bias_may_come_first() -> None:
    """An Add has no order."""
    model = layer_model(WEIGHT, np.arange(48, dtype=np.float32))
    layer = only_layer(model)
    layer.add.replace_input_with(0, constant(model.graph, "bias", np.zeros(1, np.float32)))
    layer.add.replace_input_with(1, layer.matmul.outputs[0])
    assert isinstance(only_layer(model).bias_value, ir.Value)
    np.testing.assert_array_equal(only_layer(model).bias, np.arange(48))
