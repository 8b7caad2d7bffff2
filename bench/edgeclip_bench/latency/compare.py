"""`edgeclip bench compare`: which cases became slower, and by more than noise.

A case is a regression when its change is over the threshold AND outside noise. The change is that of the median
latency, or of the highest rate in the server scenario; p99 of the same samples would vary by itself far more than any
threshold. The noise of a median is a bootstrap of both sides' samples, in blocks of consecutive ones, because what
slows one query slows the next (Künsch 1989): the change counts when the interval of the ratio does not hold 1. Among
many cases one would fall out of a 98 % interval by chance, so the intervals are widened for all of them together
(Bonferroni). The noise of a rate is the bisection's: from the highest that kept the bound to the lowest that did not.

A difference between two runs as a whole shows in no sample. So a change is not judged where either side had not
settled, or other processes took much of the processors, and runs of different machines are compared only on request.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.tables import format_table
from edgeclip_bench.latency.records import read_record
from edgeclip_bench.measure.other_processes import MUCH

Verdict = Literal["regression", "faster", "same", "too few samples", "not steady", "others at work"]

# Of 60 comparisons of the same distribution 4 failed at 0.05: a bootstrap's intervals are a little narrow.
CHANCE = 0.02
RESAMPLES = 2000
# Of fewer, a bootstrap's interval is too narrow.
LEAST_SAMPLES = 8
_AT_ONCE = 200
# What makes two machines two: a kernel's or Python's new version is what one may want to compare.
_MACHINE = ("processor", "threads", "graphics_cards")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One case before and after: `change` is of the time, 0.1 for 10 % slower; `low` and `high` are its interval."""

    case: str
    unit: str
    before: float
    after: float
    change: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """The cases of both documents, those of only one, and other differences between the two."""

    threshold: float
    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def unjudged(self) -> tuple[Change, ...]:
        """The changes that could not be judged."""
        return tuple(change for change in self.changes if change.verdict in ("not steady", "others at work"))

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The changes that fail the gate."""
        return tuple(change for change in self.changes if change.verdict == "regression")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two documents, and what counts as slower."""
    parser.add_argument("before", metavar="BEFORE.json", type=Path, help="what `edgeclip bench --out` wrote before")
    parser.add_argument("after", metavar="AFTER.json", type=Path, help="and after")
    parser.add_argument("--fail-over", metavar="P", default="5%", help="exit 1 over this and noise (5%%)")
    parser.add_argument("--across-machines", action="store_true", help="compare though the machines differ")


def run(options: argparse.Namespace) -> int:
    """Print a row for each case; 1 when one became slower."""
    threshold = parse_threshold(options.fail_over)
    before, after = (read_record(path) for path in (options.before, options.after))
    found = compare(before, after, threshold, across_machines=options.across_machines)
    rows = [
        (
            change.case,
            f"{change.before:.4g} {change.unit}",
            f"{change.after:.4g} {change.unit}",
            f"{change.change:+.1%}",
            f"{change.low:+.1%} to {change.high:+.1%}",
            change.verdict,
        )
        for change in found.changes
    ]
    print(format_table(("case", "before", "after", "slower by", "noise: its interval", "verdict"), rows))
    for what, names in (("only before", found.only_before), ("only after", found.only_after)):
        for name in names:
            print(f"{what}: {name}")
    for difference in found.differences:
        print(f"differs: {difference}")
    sys.stdout.flush()
    if found.unjudged:
        print(
            f"edgeclip: {len(found.unjudged)} of {len(found.changes)} cases changed and were not judged (not steady, "
            "or other processes at work): measure again on a quiet machine, or with more --seconds",
            file=sys.stderr,
        )
    for change in found.regressions:
        print(
            f"edgeclip: regression: {change.case}: {change.before:.4g} to {change.after:.4g} {change.unit}, "
            f"{change.change:+.1%} ({change.low:+.1%} to {change.high:+.1%}), over {threshold:.1%}",
            file=sys.stderr,
        )
    return int(bool(found.regressions))


def parse_threshold(words: str) -> float:
    """ "5%" -> 0.05; InputError for anything else."""
    try:
        value = float(words.removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not words.endswith("%") or not 0 <= value < 100:
        raise InputError(f"--fail-over {words}: wanted a percentage, as 5%")
    return value


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    threshold: float,
    *,
    across_machines: bool = False,
    seed: int = 0,
) -> Verdicts:
    """Compare one document of `edgeclip bench` with another.

    A bundle is recognised by its name; where both documents have only one, the two are compared whatever their names.
    InputError when no case is in both, and for different machines unless `across_machines`.
    """
    differences = [
        f"{name}: {old} before, {new} after"
        for name in _MACHINE
        if (old := before["machine"].get(name)) != (new := after["machine"].get(name))
    ]
    if differences and not across_machines:
        raise InputError(
            f"the two were measured on different machines ({'; '.join(differences)}): measure both on one, or give "
            "--across-machines to compare the machines too"
        )
    old, new = _by_case(before), _by_case(after)
    shared = [case for case in old if case in new]
    if not shared:
        raise InputError("the two documents have no case in common; measure both with the same options")
    chance = CHANCE / len(shared)
    return Verdicts(
        threshold=threshold,
        changes=tuple(_change(case, old[case], new[case], threshold, chance, seed) for case in shared),
        only_before=tuple(case for case in old if case not in new),
        only_after=tuple(case for case in new if case not in old),
        differences=tuple(_differences(before, after)),
    )


def ratio_interval(
    before: Sequence[float], after: Sequence[float], chance: float, seed: int = 0
) -> tuple[float, float]:
    """The interval of median(after) / median(before) that misses with probability `chance`, by block bootstrap."""
    draw = np.random.default_rng(seed)
    ratios = _medians(np.asarray(after), draw) / _medians(np.asarray(before), draw)
    low, high = np.quantile(ratios, [chance / 2, 1 - chance / 2])
    return float(low), float(high)


def judge(change: float, low: float, high: float, threshold: float) -> Verdict:
    """A regression is a change over the threshold and outside noise; faster is the same the other way."""
    if change > threshold and low > 0:
        return "regression"
    return "faster" if change < -threshold and high < 0 else "same"


def _medians(samples: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.float64]:
    """Medians of resamples of blocks of consecutive samples, which may wrap around the end: (RESAMPLES,)."""
    count = len(samples)
    block = max(1, round(count ** (1 / 3)))
    blocks = -(-count // block)
    found = []
    for begin in range(0, RESAMPLES, _AT_ONCE):
        starts = draw.integers(0, count, (min(_AT_ONCE, RESAMPLES - begin), blocks, 1))
        places = (starts + np.arange(block)).reshape(len(starts), -1)[:, :count] % count
        found.append(np.median(samples[places], axis=1))
    return np.concatenate(found)


def _change(
    case: str, old: Mapping[str, Any], new: Mapping[str, Any], threshold: float, chance: float, seed: int
) -> Change:
    if old["server"] and new["server"]:
        rates = [(float(one["server"]["rate_per_s"]), float(one["server"]["broken_per_s"])) for one in (old, new)]
        (before, before_top), (after, after_top) = rates
        change, low, high = before / after - 1, before / after_top - 1, before_top / after - 1
        verdict = judge(change, low, high, threshold)
        unit = "queries/s"
    else:
        mine, its = old["samples_ms"], new["samples_ms"]
        before, after = float(np.median(mine)), float(np.median(its))
        change = after / before - 1
        low, high = (value - 1 for value in ratio_interval(mine, its, chance, seed))
        verdict = judge(change, low, high, threshold)
        if min(len(mine), len(its)) < LEAST_SAMPLES:
            verdict = "too few samples"
        unit = "ms"
    if verdict in ("regression", "faster"):
        if any((one.get("others_share") or 0) > MUCH for one in (old, new)):
            verdict = "others at work"
        elif any(one.get("is_steady") is False for one in (old, new)):
            verdict = "not steady"
    return Change(
        case=case, unit=unit, before=before, after=after, change=change, low=low, high=high, verdict=verdict
    )


def _by_case(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    is_alone = len(document["bundles"]) == 1
    found = {}
    for result in document["results"]:
        name = _case_name(result["case"])
        found[name if is_alone else f"{result['bundle']}: {name}"] = result
    return found


def _case_name(case: Mapping[str, Any]) -> str:
    what = f"text, {case['tokens']} tokens" if case["modality"] == "text" else f"image, {case['image_px']} px"
    task = f", {case['task']}" if case["task"] else ""
    return f"{case['scenario']}, {what}{task}, batch {case['batch']}, {case['threads']} threads"


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for part in ("machine", "versions"):
        names = dict.fromkeys((*before[part], *after[part]))
        for name in names:
            old, new = before[part].get(name), after[part].get(name)
            if old != new:
                yield f"{name}: {old} before, {new} after"
    devices = [sorted({result["device"] for result in document["results"]}) for document in (before, after)]
    if devices[0] != devices[1]:
        yield f"device: {', '.join(devices[0])} before, {', '.join(devices[1])} after"
