"""How close vectors are to those wanted for the same inputs; export, quantize and check measure it alike."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """Cosines, the largest difference of two elements, and the signal-to-noise ratio in dB (None without noise)."""

    samples: int
    worst_cosine: float
    p1_cosine: float
    mean_cosine: float
    largest_difference: float
    sqnr_db: float | None


def row_cosines(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """The cosine of each row of one (N, D) with the same row of the other, of vectors of any length.

    NaN for a row of zeros. In float64: float32 has steps of 6e-8 at 1, and a float32 unit vector is as far from
    length 1.
    """

    def dots(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        products: NDArray[np.float64] = np.einsum("nd,nd->n", first, second, dtype=np.float64)
        return products

    with np.errstate(invalid="ignore"):
        return dots(found, wanted) / np.sqrt(dots(found, found) * dots(wanted, wanted))


def compare_vectors(found: NDArray[Any], wanted: NDArray[Any]) -> Closeness:
    """How close rows (N, D) are to the wanted ones (N, D); a row of zeros or NaN makes the worst cosine NaN."""
    cosines = row_cosines(found, wanted)
    differences = found.astype(np.float64) - wanted
    power, noise = float((wanted.astype(np.float64) ** 2).sum()), float((differences**2).sum())
    return Closeness(
        samples=len(cosines),
        worst_cosine=float(cosines.min()),
        p1_cosine=float(np.percentile(cosines, 1)),
        mean_cosine=float(cosines.mean()),
        largest_difference=float(np.abs(differences).max()),
        sqnr_db=10 * math.log10(power / noise) if noise else None,
    )
