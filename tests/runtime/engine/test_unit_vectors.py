"""A row is a fault when its length is further than the tolerance from 1, is no number, or is 0 where it is cut."""

import numpy as np
import pytest

from edgeclip.engine.unit_vectors import LENGTH_TOLERANCE, find_fault

DIM = 1024
DIRECTION = np.random.default_rng(0).standard_normal(DIM)
UNIT = (DIRECTION / np.linalg.norm(DIRECTION)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("share", [-0.99, -0.6, 0.0, 0.6, 0.99])
def test_lengths_within_the_tolerance_are_no_fault(rows: int, share: float) -> None:
    vectors = np.stack([UNIT] * (rows - 1) + [UNIT * np.float32(1 + share * LENGTH_TOLERANCE)])
    assert find_fault(vectors, DIM) is None


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("length", "words"),
    [
        (1 + 1.01 * LENGTH_TOLERANCE, "a vector of length 1.001, wanted 1"),
        (1 - 1.01 * LENGTH_TOLERANCE, "a vector of length 0.999, wanted 1"),
        (-2.0, "a vector of length 2, wanted 1"),
        (0.0, "a vector of length 0, wanted 1"),
        (np.nan, "NaN or infinity"),
        (np.inf, "NaN or infinity"),
        (3e38, "NaN or infinity"),  # finite numbers whose squares are not
    ],
)
def test_one_wrong_row_among_right_ones_is_found(place: int, length: float, words: str) -> None:
    vectors = np.stack([UNIT] * 3)
    vectors[place] *= np.float32(length)
    assert find_fault(vectors, DIM) == words


def test_rows_whose_squares_sum_to_their_number_are_found() -> None:
    vectors = np.stack([UNIT * np.float32(np.sqrt(0.5)), UNIT * np.float32(np.sqrt(1.5))])
    assert find_fault(vectors, DIM) == "a vector of length 0.7071, wanted 1"


def test_a_unit_vector_that_is_cut_to_nothing_is_a_fault() -> None:
    vectors = np.zeros((1, DIM), np.float32)
    vectors[0, -1] = 1
    assert find_fault(vectors, DIM) is None
    assert find_fault(vectors, 64) == "a vector whose first 64 dimensions are all 0"
