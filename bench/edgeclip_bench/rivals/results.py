"""The measured values of rivals: the rows of the document of `edgeclip_bench.rivals.run`, and how two are
compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.manifest import TowerName
from edgeclip_bench.rivals.contenders import Resident

Times = NDArray[np.float64]  # (rounds,) in milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One time divided by another, round by round: the median and the quartiles."""

    median: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A contender's times for a case; `to_fp32` is the ratio to the fp32 bundle's times.

    `p90_ms` is None where there are fewer rounds than `edgeclip_bench.measure.percentiles` needs.
    """

    case: str
    contender: str
    samples: int
    median_ms: float
    p90_ms: float | None
    to_fp32: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A smaller bundle's times divided by a rival's."""

    case: str
    bundle: str
    rival: str
    ratio: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """The cosines of a contender's vectors to the fp32 bundle's."""

    samples: int
    worst: float
    first_percentile: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A contender's tower apart from its latencies. `recipe` says in a line how it was made, `made_with` by which
    packages.
    """

    contender: str
    tower: TowerName
    recipe: str
    made_with: Mapping[str, str]
    size_bytes: int
    resident: Resident
    closeness: Closeness


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """A rival's tower that was left out, and why."""

    rival: str
    tower: TowerName
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A rival's tower whose files equal another's, so that its figures are the same."""

    rival: str
    tower: TowerName
    same_as: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All measurements of a tower."""

    tower: TowerName
    standings: tuple[Standing, ...]
    latencies: tuple[Latency, ...]
    against: tuple[Against, ...]
    twins: tuple[Twin, ...]
    left_out: tuple[Absence, ...]


def paired(times: Times, others: Times) -> Ratio:
    """The ratios of `times` to `others` of the same rounds."""
    low, median, high = (float(found) for found in np.percentile(times / others, [25, 50, 75]))
    return Ratio(median=median, low=low, high=high, samples=len(times))


def closeness(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> Closeness:
    """The cosines of two times (N, D) vectors row by row, in float64 and for vectors of any length."""
    mine, its = (vectors.astype(np.float64) for vectors in (found, wanted))
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(its, axis=1)
    cosines = (mine * its).sum(axis=1) / lengths
    return Closeness(
        samples=len(cosines),
        worst=float(cosines.min()),
        first_percentile=float(np.percentile(cosines, 1)),
        mean=float(cosines.mean()),
    )
