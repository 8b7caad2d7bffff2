"""Each kernel computes in onnxruntime what `product` says in numpy, whatever stands before and behind the layer."""

import math
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError

from edgeclip_graph.linear import linear_layers
from edgeclip_quant.kernels import (
    GELU_LOWEST,
    Kernel,
    Plan,
    ReplaceLayers,
    lowest,
    product,
    quantize_columns,
    replace_layer,
)
from tests.scenes.layer_graphs import SOURCES, Source, layer_model, only_layer, operators, run_model

Array = NDArray[np.float32]

# Integers are summed exactly, so what is left are a few roundings of fp32: measured 5e-7 of the largest output.
# With AVX2 onnxruntime sums blocks in another order, which makes 3.05e-6.
SAME = 4e-6
# That of 8-bit blocks and of 4-bit ones for Gaussian inputs and weights: measured 0.009 and 0.12.
ERROR_8, ERROR_4 = 0.02, 0.2
KERNELS = get_args(Kernel)
INT8 = [kernel for kernel in KERNELS if kernel.startswith("int8")]
# Inputs and outputs; the last three do not fill a block of 128, nor one of two.
WIDTHS = [(128, 24), (256, 96), (5, 3), (64, 16), (130, 40)]


def drawn(inputs: int, outputs: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Rows of lengths from 0.01 to 20, a weight, and a bias."""
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((7, inputs)) * np.geomspace(0.01, 20, 7)[:, None]
    weight = draw.standard_normal((inputs, outputs)) / math.sqrt(inputs)
    return rows.astype(np.float32), weight.astype(np.float32), draw.standard_normal(outputs).astype(np.float32)


def computed(plan: Plan, rows: Array, weight: Array, bias: Array, source: Source = "input") -> Array:
    model = layer_model(weight, bias, source)
    replace_layer(model.graph, only_layer(model), plan)
    return run_model(model, rows)[0]


def read_by_layer(rows: Array, source: Source) -> Array:
    """What stands before the layer makes of the rows."""
    width = rows.shape[1]
    return run_model(layer_model(np.eye(width, dtype=np.float32), np.zeros(width, np.float32), source), rows)[0]


def largest_difference(found: Array, wanted: Array) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_layer_computes_what_numpy_does(kernel: Kernel, widths: tuple[int, int]) -> None:
    rows, weight, bias = drawn(*widths)
    plan = Plan(kernel=kernel, largest=float(np.abs(rows).max()))
    found, wanted = computed(plan, rows, weight, bias), product(kernel, rows, weight, largest=plan.largest) + bias
    assert largest_difference(found, wanted) < SAME
    assert (np.abs(wanted - (rows @ weight + bias)).max() > SAME) == (kernel != "fp32")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_whatever_gives_its_input(kernel: Kernel, source: Source) -> None:
    rows, weight, bias = drawn(64, 16)
    read = read_by_layer(rows, source)
    plan = Plan(kernel=kernel, largest=float(np.abs(read).max()))
    wanted = product(kernel, read, weight, largest=plan.largest) + bias
    assert largest_difference(computed(plan, rows, weight, bias, source), wanted) < SAME


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kernel", ["int8 per row", "int8 per call", "int8 blocks", "int4 blocks"])
def test_smoothing_goes_into_the_norm_or_into_a_multiplication(kernel: Kernel, source: Source) -> None:
    rows, weight, bias = drawn(64, 16)
    factors = np.geomspace(0.25, 4, 64).astype(np.float32)
    draw = np.random.default_rng(3)
    gain, shift = (draw.standard_normal(64).astype(np.float32) for _ in range(2))
    model = layer_model(weight, bias, source, gain=gain, shift=shift)
    identity = layer_model(np.eye(64, dtype=np.float32), np.zeros(64, np.float32), source, gain=gain, shift=shift)
    read, *residual = run_model(identity, rows)
    replace_layer(model.graph, only_layer(model), Plan(kernel=kernel, factors=factors))
    found, *others = run_model(model, rows)
    assert largest_difference(found, product(kernel, read / factors, weight * factors[:, None]) + bias) < SAME
    multiplications = int(source != "norm") + int(kernel == "int8 per row")  # the factors', and the row's largest
    assert operators(model).get("Mul", 0) == multiplications
    # Whoever else reads the norm still gets what it gave.
    for one, other in zip(others, residual, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kernel", INT8)
def test_the_error_is_that_of_8_bits(kernel: Kernel) -> None:
    rows, weight, _ = drawn(256, 96)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    exact = rows @ weight
    found = product(kernel, rows, weight, largest=float(np.abs(rows).max()))
    assert 0.001 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < ERROR_8
    coarse = product("int4 blocks", rows, weight)
    assert ERROR_8 < np.linalg.norm(coarse - exact) / np.linalg.norm(exact) < ERROR_4


@pytest.mark.parametrize("shift", [0.0, GELU_LOWEST])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_of_zeros_gives_the_bias_alone(kernel: Kernel, shift: float) -> None:
    rows, weight, bias = drawn(130, 40)
    rows = np.abs(rows)  # as the shift wants them
    rows[3] = 0
    plan = Plan(kernel=kernel, largest=20.0, shift=shift if kernel == "int8 per row" else 0.0)
    found = computed(plan, rows, weight, bias)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[3], bias, atol=SAME)
    assert np.isfinite(product(kernel, rows, weight, largest=20.0, shift=plan.shift)).all()
    np.testing.assert_allclose(computed(plan, np.zeros_like(rows), weight, bias)[0], bias, atol=SAME)


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "int8 per call"])
def test_a_row_does_not_depend_on_its_company(kernel: Kernel) -> None:
    rows, weight, bias = drawn(256, 96)
    plan = Plan(kernel=kernel, largest=float(np.abs(rows).max()))
    together = computed(plan, rows, weight, bias)
    alone = np.concatenate([computed(plan, row[None], weight, bias) for row in rows])
    assert largest_difference(together, alone) < SAME


def test_per_call_a_row_does_depend_on_its_company() -> None:
    """Which is why no bundle is made of it."""
    rows, weight, bias = drawn(256, 96)
    plan = Plan(kernel="int8 per call")
    together, alone = computed(plan, rows, weight, bias)[0], computed(plan, rows[:1], weight, bias)[0]
    assert np.abs(together - alone).max() > 0.01


def test_a_fixed_scale_cuts_off_what_lies_beyond_it() -> None:
    weight, bias = np.eye(5, dtype=np.float32), np.zeros(5, np.float32)
    rows = np.array([[1.0, -1.0, 50.0, -50.0, 0.5]], np.float32)
    plan = Plan(kernel="int8 static", largest=1.0)
    found = computed(plan, rows, weight, bias)
    np.testing.assert_allclose(found, [[1.0, -1.0, 1.0, -128 / 127, 64 / 127]], rtol=1e-6)
    np.testing.assert_allclose(product("int8 static", rows, weight, largest=1.0), found, rtol=1e-6)


@pytest.mark.parametrize("widths", WIDTHS)
def test_behind_a_gelu_a_row_is_shifted(widths: tuple[int, int]) -> None:
    rows, weight, bias = drawn(*widths)
    shift = lowest(only_layer(layer_model(weight, bias, "gelu")).x)
    assert shift == GELU_LOWEST
    found = computed(Plan(kernel="int8 per row", shift=shift), rows, weight, bias, "gelu")
    wanted = product("int8 per row", read_by_layer(rows, "gelu"), weight, shift=shift) + bias
    assert largest_difference(found, wanted) < SAME


def test_so_all_256_levels_are_used() -> None:
    """Weights of 1 are exact in 8 bits, so what is left is the input's error: half as large."""
    rows, _, _ = drawn(256, 96)
    read, identity = read_by_layer(rows * 10, "gelu"), np.eye(256, dtype=np.float32)
    shifted, plain = (product("int8 per row", read, identity, shift=shift) for shift in (GELU_LOWEST, 0.0))
    assert np.linalg.norm(shifted - read) < 0.6 * np.linalg.norm(plain - read)


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "gelu"])
def test_of_nothing_else_it_is_known_how_low_it_goes(source: Source) -> None:
    assert lowest(only_layer(layer_model(np.eye(4, dtype=np.float32), np.zeros(4, np.float32), source)).x) == 0


def test_a_gelu_goes_no_lower() -> None:
    x = np.linspace(-0.80, -0.70, 100_001).astype(np.float32)[:, None]
    assert -0.16998 < read_by_layer(x, "gelu").min() < -0.1699
    assert read_by_layer(x, "gelu").min() > -GELU_LOWEST
    exact = [float(one) * 0.5 * (1 + math.erf(float(one) / math.sqrt(2))) for one in x[::100, 0]]
    assert min(exact) > -GELU_LOWEST


def test_the_bias_takes_the_shift_back_exactly() -> None:
    """Rows that the 256 levels hold as they are, so only the weights are rounded."""
    draw = np.random.default_rng(4)
    _, weight, bias = drawn(64, 16)
    levels = draw.integers(0, 256, (9, 64))
    levels[:, 0] = 255
    rows = (levels / 255 * np.geomspace(0.5, 80, 9)[:, None] - GELU_LOWEST).astype(np.float32)
    columns, scales = quantize_columns(weight)
    wanted = rows.astype(np.float64) @ (columns.astype(np.float64) * scales) + bias
    found = computed(Plan(kernel="int8 per row", shift=GELU_LOWEST), rows, weight, bias)
    assert np.abs(found - wanted).max() < SAME * np.abs(wanted).max()
    without = computed(Plan(kernel="int8 per row"), rows, weight, bias)
    assert np.abs(without - wanted).max() > 1000 * SAME


@pytest.mark.parametrize(
    "plan",
    [
        Plan(kernel="int8 per row"),
        Plan(kernel="int8 static", largest=9.0),
        Plan(kernel="int8 per row", factors=np.geomspace(0.1, 10, 64).astype(np.float32)),
        Plan(kernel="int8 per row", shift=GELU_LOWEST),
    ],
    ids=["per row", "static", "smoothed", "shifted"],
)
def test_parts_of_an_output_are_products_of_one_rounded_input(plan: Plan) -> None:
    rows, weight, bias = drawn(64, 24)
    source: Source = "gelu" if plan.shift else "input"
    kept, separated = (layer_model(weight, bias, source, parts=(8, 12, 4)) for _ in range(2))
    replace_layer(kept.graph, only_layer(kept), plan)
    replace_layer(separated.graph, only_layer(separated), plan, separates=True)
    found, wanted = run_model(separated, rows), run_model(kept, rows)
    assert [part.shape for part in found] == [(7, 8), (7, 12), (7, 4)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert operators(kept)["Split"] == 1 and operators(kept)["MatMulIntegerToFloat"] == 1
    assert "Split" not in operators(separated)
    assert operators(separated)["MatMulIntegerToFloat"] == 3 and operators(separated)["QuantizeLinear"] == 1


@pytest.mark.parametrize("kernel", ["int8 per row", "int8 blocks"])
def test_a_split_of_rows_is_left_alone(kernel: Kernel) -> None:
    rows, weight, bias = drawn(64, 24)
    model = layer_model(weight, bias, parts=(3, 4), axis=0)
    replace_layer(model.graph, only_layer(model), Plan(kernel=kernel), separates=True)
    found = np.concatenate(run_model(model, rows))
    assert operators(model)["Split"] == 1
    assert largest_difference(found, product(kernel, rows, weight) + bias) < SAME


def test_rounding_is_symmetric_and_to_the_nearest() -> None:
    weight = np.array([[1.0, 0.0], [-2.0, 0.0], [0.5, 0.0]], np.float32)
    levels, scales = quantize_columns(weight)
    assert levels.tolist() == [[64, 0], [-127, 0], [32, 0]]
    assert scales.tolist() == pytest.approx([2 / 127, 1.0])


def test_every_layer_must_have_a_plan_and_those_of_fp32_stay() -> None:
    weight, bias = np.ones((8, 4), np.float32), np.ones(4, np.float32)
    model = layer_model(weight, bias)
    with pytest.raises(PreconditionError, match="no plan for weight"):
        ReplaceLayers({}, separates=False)(model)
    ReplaceLayers({"weight": Plan(kernel="fp32")}, separates=False)(model)
    assert [layer.name for layer in linear_layers(model.graph)] == ["weight"]
    ReplaceLayers({"weight": Plan(kernel="int8 blocks")}, separates=False)(model)
    assert not linear_layers(model.graph)
    with pytest.raises(PreconditionError, match="no linear layer in the graph"):
        ReplaceLayers({}, separates=False)(model)
