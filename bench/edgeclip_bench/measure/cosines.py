"""The cosines of two sets of vectors of the same inputs, summed up."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineSummary:
    """The least, the first percentile and the mean of `samples` cosines."""

    samples: int
    worst: float
    first_percentile: float
    mean: float


def summarize_cosines(cosines: NDArray[np.float64]) -> CosineSummary:
    """What these cosines show."""
    return CosineSummary(
        samples=len(cosines),
        worst=float(cosines.min()),
        first_percentile=float(np.percentile(cosines, 1)),
        mean=float(cosines.mean()),
    )
