"""Two small products show how onnxruntime multiplies here; the faults of known processors are told apart."""

import platform

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine import products
from edgeclip.engine.products import Products, probe_products, read_products

INPUTS, WEIGHTS = products._INPUTS.astype(np.int64), products._WEIGHTS
FUSED, ROUNDED = np.full((1, 16), 2.0**-24, np.float32), np.zeros((1, 16), np.float32)


def x86_without_vnni(inputs: NDArray[np.int64], weights: NDArray[np.int64], distance: int = 1) -> NDArray[np.int64]:
    """vpmaddubsw: two products, of rows that are `distance` apart, are added in 16 bits, which saturate."""
    found = np.zeros((len(inputs), weights.shape[1]), np.int64)
    for first in range(len(weights)):
        if first // distance % 2 == 0:
            pair = [first, first + distance]
            found += np.clip(inputs[:, pair] @ weights[pair], -(2**15), 2**15 - 1)
    return found


def arm64_without_dotprod(inputs: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """smull and smlal: inputs less 128, two products, 8 rows apart, are added in 16 bits, which wrap around."""
    signed = inputs - 128
    found = 128 * weights.sum(axis=0) + np.zeros((len(inputs), 1), np.int64)
    for first in range(len(weights)):
        if first // 8 % 2 == 0:
            pair = [first, first + 8]
            found += (signed[:, pair] @ weights[pair]).astype(np.int16)
    return found


def test_a_right_product_has_no_fault() -> None:
    exact = INPUTS @ WEIGHTS
    none = Products(adds_in_16_bits=False, pairs_overflow=False, wraps_beside_zero=False, fuses=True)
    assert read_products(exact, FUSED) == none
    assert not read_products(exact, ROUNDED).fuses


def test_x86_without_vnni_overflows_beside_the_largest_input() -> None:
    found = read_products(x86_without_vnni(INPUTS, WEIGHTS), FUSED)
    assert found == Products(adds_in_16_bits=True, pairs_overflow=False, wraps_beside_zero=False, fuses=True)


def test_other_pairs_than_neighbours_are_found() -> None:
    """Then weights of 7 bits, whose neighbours have 128 together, are no safer than others."""
    assert read_products(x86_without_vnni(INPUTS, WEIGHTS, distance=2), FUSED).pairs_overflow


def test_arm64_without_dotprod_wraps_beside_an_input_of_zero() -> None:
    """Which a full input does not show, nor weights of -127."""
    found = read_products(arm64_without_dotprod(INPUTS, WEIGHTS), FUSED)
    assert found == Products(adds_in_16_bits=False, pairs_overflow=False, wraps_beside_zero=True, fuses=True)
    held = np.maximum(WEIGHTS, -127)
    np.testing.assert_array_equal(arm64_without_dotprod(INPUTS, held), INPUTS @ held)


def test_this_processor_is_of_a_known_kind() -> None:
    """The model's bytes are what the judge takes them for, or everything would look wrong."""
    found = probe_products()
    assert not found.pairs_overflow
    if platform.machine() == "x86_64":
        assert not found.wraps_beside_zero
        assert found.fuses or not found.adds_in_16_bits  # SSE and AVX widen to 32 bits
    else:
        assert not found.adds_in_16_bits
