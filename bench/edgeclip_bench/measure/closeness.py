"""How close two sets of vectors of the same inputs are: their cosines, row by row."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """The least, the first percentile and the mean of `samples` cosines."""

    samples: int
    worst: float
    first_percentile: float
    mean: float


def row_cosines(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """The cosine of each row of one (N, D) with the same row of the other, of vectors of any length.

    In float64: float32 has steps of 6e-8 at 1, and a float32 unit vector is as far from length 1.
    """

    def dots(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        products: NDArray[np.float64] = np.einsum("nd,nd->n", first, second, dtype=np.float64)
        return products

    return dots(found, wanted) / np.sqrt(dots(found, found) * dots(wanted, wanted))


def summarize_cosines(cosines: NDArray[np.float64]) -> Closeness:
    """The closeness that these cosines show."""
    return Closeness(
        samples=len(cosines),
        worst=float(cosines.min()),
        first_percentile=float(np.percentile(cosines, 1)),
        mean=float(cosines.mean()),
    )
