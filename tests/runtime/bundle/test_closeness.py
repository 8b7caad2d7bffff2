"""Closeness is measured row by row, whatever the lengths, and what is no vector shows."""

import math

import numpy as np
import pytest

from edgeclip.bundle.closeness import compare_vectors, row_cosines


def test_cosines_are_of_directions() -> None:
    """3-4-5 triangles: 3/5 and 4/5 to the axes, for rows of any length."""
    found, wanted = np.array([[3, 4], [8, 6]], np.float32), np.array([[1, 0], [0, 9]], np.float32)
    np.testing.assert_allclose(row_cosines(found, wanted), [0.6, 0.6], rtol=1e-15)


def test_the_figures_are_those_of_their_definitions() -> None:
    wanted = np.array([[1, 0], [0, 1]], np.float32)
    found = np.array([[1, 0], [0.25, 1]], np.float32)
    closeness = compare_vectors(found, wanted)
    assert (closeness.samples, closeness.largest_difference) == (2, 0.25)
    assert closeness.worst_cosine == pytest.approx(1 / math.hypot(0.25, 1))
    assert closeness.mean_cosine == pytest.approx((1 + closeness.worst_cosine) / 2)
    assert closeness.sqnr_db == pytest.approx(10 * math.log10(2 / 0.25**2))
    assert compare_vectors(wanted, wanted).sqnr_db is None


@pytest.mark.parametrize("row", [[0, 0], [np.nan, 1]])
def test_what_is_no_vector_makes_the_worst_cosine_nan(row: list[float]) -> None:
    wanted = np.array([[1, 0], [0, 1]], np.float32)
    assert math.isnan(compare_vectors(np.array([[1, 0], row], np.float32), wanted).worst_cosine)
