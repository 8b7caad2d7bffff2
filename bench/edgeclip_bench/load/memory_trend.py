"""Does memory stay flat? A line through samples of it, and a verdict.

The first fifth of a run is warm-up: every buffer and every kernel has been used then. The rest is cut into windows: a
line goes through their medians, with the interval that holds its slope with 95 % certainty. Medians, because a text
of 8192 tokens takes 100 MB while it computes, and how many such moments a window has is chance; windows, because
samples a second apart depend on one another too much to count as independent. Memory "grows" when the interval is
above zero and the gain is large enough to matter, is "flat" when it could not have gained that much, and otherwise
"unclear": run it longer.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import linregress, t

WARM_UP_SHARE = 0.2
WINDOWS = 12
# A gain over the run that is called growth: a share of what is held, and no less than so much.
WORTH_NAMING, WORTH_NAMING_BYTES = 0.02, 10e6
CERTAINTY = 0.95

Verdict = Literal["flat", "grows", "unclear"]
Samples = Sequence[tuple[float, int]]  # (second, bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A line through memory after warm-up: bytes gained from its first to its last second, and the interval."""

    seconds: float
    held_bytes: float
    gained_bytes: float
    least_gained_bytes: float
    most_gained_bytes: float
    verdict: Verdict


def find_trend(samples: Sequence[tuple[float, int]]) -> Trend:
    """The line through (second, bytes) after the warm-up, by ordinary least squares, and the verdict."""
    first, last = samples[0][0], samples[-1][0]
    begin = first + WARM_UP_SHARE * (last - first)
    kept = np.array([sample for sample in samples if sample[0] >= begin], dtype=np.float64)  # (N, 2)
    if len(kept) < 2 * WINDOWS:
        raise ValueError(f"{len(kept)} samples after the warm-up, wanted {2 * WINDOWS} or more: run it longer")
    middles = np.array([np.median(window, axis=0) for window in np.array_split(kept, WINDOWS)])  # (WINDOWS, 2)
    line = linregress(middles[:, 0], middles[:, 1])
    seconds = float(kept[-1, 0] - kept[0, 0])
    margin = float(t.ppf((1 + CERTAINTY) / 2, WINDOWS - 2) * line.stderr)
    held = float(np.median(kept[:, 1]))
    least, most = (float(line.slope + sign * margin) * seconds for sign in (-1, 1))
    worth_naming = max(WORTH_NAMING * held, WORTH_NAMING_BYTES)
    gained = float(line.slope) * seconds
    verdict: Verdict = "unclear"
    if most < worth_naming:
        verdict = "flat"
    elif least > 0 and gained > worth_naming:
        verdict = "grows"
    return Trend(
        seconds=seconds,
        held_bytes=held,
        gained_bytes=gained,
        least_gained_bytes=least,
        most_gained_bytes=most,
        verdict=verdict,
    )


def judge_memory(samples: Samples) -> dict[str, Any]:
    """The samples and their trend for a document; the trend of too few samples is None."""
    try:
        trend: Trend | None = find_trend(samples)
    except ValueError:
        trend = None
    return {
        "trend": trend and asdict(trend),
        "samples": [[round(second, 1), held] for second, held in samples],
    }


def grows(*judged: dict[str, Any]) -> bool:
    """Whether memory grows by any of these documents of `judge_memory`."""
    return any(one["trend"] and one["trend"]["verdict"] == "grows" for one in judged)


def describe_trend(name: str, judged: dict[str, Any]) -> str:
    """One line for people."""
    if not (trend := judged["trend"]):
        return f"{name}: too few samples"
    return (
        f"{name}: {trend['verdict']}, {trend['gained_bytes'] / 1e6:+.1f} MB "
        f"({trend['least_gained_bytes'] / 1e6:+.1f} to {trend['most_gained_bytes'] / 1e6:+.1f}) in "
        f"{trend['seconds']:.0f} s on {trend['held_bytes'] / 1e6:.0f} MB"
    )
