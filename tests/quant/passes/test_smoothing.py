"""Smoothing changes no product, evens the channels out, and reaches nobody but the layer it was meant for."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip_quant.kernels import product
from edgeclip_quant.passes.smoothing import (
    fold_into_norm,
    is_fed_by_norm,
    levelling_factors,
    smoothing_factors,
    stems_from_norm,
)
from tests.scenes.layer_graphs import SOURCES, Source, layer_model, only_layer, run_model

Array = NDArray[np.float32]


def outlying(seed: int = 2) -> tuple[Array, Array]:
    """Rows with a channel 80 times as large as the rest and one that is always 0, and a weight."""
    draw = np.random.default_rng(seed)
    rows, weight = draw.standard_normal((50, 16)).astype(np.float32), draw.standard_normal((16, 8)).astype(np.float32)
    rows[:, 3] *= 80
    rows[:, 5] = 0
    return rows, weight


def test_factors_leave_the_product_and_even_out_the_channels() -> None:
    rows, weight = outlying()
    factors = smoothing_factors(np.abs(rows).max(axis=0), weight)
    assert (factors > 0).all() and np.isfinite(factors).all() and factors.dtype == np.float32
    exact = rows @ weight
    np.testing.assert_allclose((rows / factors) @ (weight * factors[:, None]), exact, rtol=1e-4, atol=1e-3)
    smoothed = product("int8 per row", rows / factors, weight * factors[:, None])
    assert np.linalg.norm(smoothed - exact) < np.linalg.norm(product("int8 per row", rows, weight) - exact) / 2


def test_half_of_the_spread_goes_over_and_none_of_the_size() -> None:
    """s_j = max|x_j|^1/2 / max|W_j|^1/2 but for a common factor; a channel that is always 0 keeps its weights."""
    largest, weight = np.array([4.0, 1.0, 0.0, 9.0], np.float32), np.array([[1], [-4], [1], [1]], np.float32)
    factors = smoothing_factors(largest, weight)
    assert factors[2] == 1
    assert factors[0] / factors[1] == pytest.approx(2 / 0.5) and factors[3] / factors[0] == pytest.approx(1.5)
    once, thrice = smoothing_factors(largest[:2], weight[:2]), smoothing_factors(3 * largest[:2], weight[:2])
    assert np.prod(once) == pytest.approx(1) and thrice == pytest.approx(once)
    weak = smoothing_factors(largest[:2], weight[:2], 0.25)
    assert weak[0] / weak[1] == pytest.approx((4 / 1) ** 0.25 / (1 / 4) ** 0.75)


@pytest.mark.parametrize(("halvings", "wanted"), [(0, [1, 1, 1, 1]), (1, [2, 1, 1, 1]), (3, [8, 1.5, 1, 1])])
def test_levelling_brings_down_the_largest_and_leaves_the_rest(halvings: int, wanted: list[float]) -> None:
    leading = np.array([[16, -3, 1, 0], [-12, 1, 2, 0]], np.float32)
    assert levelling_factors(leading, halvings).tolist() == wanted
    assert levelling_factors(np.zeros_like(leading), halvings).tolist() == [1] * 4


def test_which_inputs_a_norm_gives_and_which_norms_can_be_changed() -> None:
    def layer_x(source: Source) -> tuple[bool, bool]:
        x = only_layer(layer_model(np.eye(4, dtype=np.float32), np.zeros(4, np.float32), source)).x
        return stems_from_norm(x), is_fed_by_norm(x)

    assert {source: layer_x(source) for source in SOURCES} == {
        "input": (False, False),
        "norm": (True, True),
        "shared norm": (True, False),
        "norm without shift": (True, False),
        "gelu": (False, False),
        "slice": (False, False),
    }


def test_a_norm_gives_what_it_gave_over_the_factors() -> None:
    draw = np.random.default_rng(0)
    gain, shift, rows = (draw.standard_normal(shape).astype(np.float32) for shape in (6, 6, (9, 6)))
    factors = np.array([1, 2, 0.5, 30, 0.01, 1], np.float32)
    model = layer_model(np.eye(6, dtype=np.float32), np.zeros(6, np.float32), "norm", gain=gain, shift=shift)
    (before,) = run_model(model, rows)
    fold_into_norm(model.graph, only_layer(model).x, factors)
    np.testing.assert_allclose(run_model(model, rows)[0], before / factors, rtol=1e-5, atol=1e-6)
