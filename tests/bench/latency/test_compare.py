"""The gate: silent on noise, loud on what became slower, and both as often as it says."""

from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip_bench.latency.compare import LEAST_SAMPLES, compare, judge, parse_threshold, ratio_interval

TRIALS = 40


def latencies(draw: np.random.Generator, scale: float = 1.0, count: int = 200) -> list[float]:
    """Milliseconds with a tail, and neighbours that are alike."""
    noise = draw.normal(0, 1, count + 4)
    smooth = np.convolve(noise, np.ones(5) / np.sqrt(5), mode="valid")
    return list(10 * scale * (1 + 0.03 * smooth + (draw.random(count) < 0.03) * draw.exponential(1, count)))


def document(*samples: list[float], server: dict[str, Any] | None = None, **facts: Any) -> dict[str, Any]:
    """As much of a document as is compared: a case for each list of samples."""
    results = [
        {
            "bundle": "b",
            "case": {
                "modality": "text", "task": None, "scenario": "single-stream", "batch": 1, "tokens": 8 + index,
                "image_px": None, "threads": 2,
            },
            "device": "cpu",
            "samples_ms": one,
            "server": server,
        }
        for index, one in enumerate(samples)
    ]  # fmt: skip
    return {"bundles": [{}], "results": results, "machine": {"processor": "p"}, "versions": {}, **facts}


def test_noise_fails_no_more_often_than_it_may() -> None:
    """Two cases of the same distribution each time, with no threshold to hide behind."""
    draw = np.random.default_rng(0)
    failed = 0
    for _ in range(TRIALS):
        before, after = (document(*(latencies(draw, count=100) for _ in range(2))) for _ in range(2))
        failed += bool(compare(before, after, 0.0).regressions)
    assert failed < 0.05 * TRIALS


def test_noise_over_a_threshold_of_5_percent_is_never_there() -> None:
    draw = np.random.default_rng(1)
    for _ in range(TRIALS):
        assert not compare(document(latencies(draw)), document(latencies(draw)), 0.05).regressions


def test_ten_percent_slower_is_always_found() -> None:
    draw = np.random.default_rng(2)
    for _ in range(TRIALS):
        found = compare(document(latencies(draw)), document(latencies(draw, 1.1)), 0.05)
        assert len(found.regressions) == 1
        assert found.regressions[0].low < found.regressions[0].change < found.regressions[0].high


def test_the_interval_holds_the_ratio() -> None:
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(TRIALS):
        low, high = ratio_interval(latencies(draw), latencies(draw, 1.2), 0.05)
        held += low <= 1.2 <= high
    assert held >= 0.85 * TRIALS


@pytest.mark.parametrize(
    ("change", "low", "high", "verdict"),
    [
        (0.10, 0.02, 0.18, "regression"),
        (0.10, -0.01, 0.21, "same"),
        (0.04, 0.03, 0.05, "same"),
        (-0.10, -0.15, -0.05, "faster"),
        (-0.10, -0.25, 0.05, "same"),
    ],
)
def test_it_takes_both_the_threshold_and_the_noise(change: float, low: float, high: float, verdict: str) -> None:
    assert judge(change, low, high, 0.05) == verdict


def test_few_samples_are_not_judged() -> None:
    few = [10.0, 10.1] * (LEAST_SAMPLES // 2 - 1)
    found = compare(document(few), document([value * 2 for value in few]), 0.05)
    assert [change.verdict for change in found.changes] == ["too few samples"]
    assert not found.regressions


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [({"is_steady": False}, "not steady"), ({"others_share": 0.3}, "others at work"), ({"others_share": 0.05}, None)],
)
def test_what_had_not_settled_or_had_company_is_not_judged(facts: dict[str, Any], verdict: str | None) -> None:
    """On either side; a change within noise needs no excuse."""
    draw = np.random.default_rng(5)
    before, slow, alike = (document(latencies(draw, scale)) for scale in (1.0, 1.5, 1.0))
    slow["results"][0] |= facts
    alike["results"][0] |= facts
    for found in (compare(before, slow, 0.05), compare(slow, before, 0.05)):
        assert [change.verdict for change in found.unjudged] == ([verdict] if verdict else [])
    assert compare(before, alike, 0.05).changes[0].verdict == "same"


def test_a_server_is_judged_by_its_rate_and_its_brackets() -> None:
    def rated(rate: float, broken: float) -> dict[str, Any]:
        return document([1.0], server={"rate_per_s": rate, "broken_per_s": broken})

    assert compare(rated(100, 104), rated(80, 84), 0.05).regressions
    assert not compare(rated(100, 104), rated(94, 101), 0.05).regressions
    assert compare(rated(80, 84), rated(100, 104), 0.05).changes[0].verdict == "faster"


def test_what_only_one_has_and_what_differs_is_told() -> None:
    draw = np.random.default_rng(4)
    one = document(latencies(draw), latencies(draw))
    other = document(latencies(draw), machine={"processor": "q"}, versions={"onnxruntime": "9"})
    with pytest.raises(InputError, match=r"different machines \(processor: p before, q after\): measure both on one"):
        compare(one, other, 0.05)
    found = compare(one, other, 0.05, across_machines=True)
    assert found.only_before == ("single-stream, text, 9 tokens, batch 1, 2 threads",)
    assert found.only_after == ()
    assert found.differences == ("processor: p before, q after", "onnxruntime: None before, 9 after")


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(InputError, match="no case in common"):
        compare(document([1.0]), document(), 0.05)


@pytest.mark.parametrize(("words", "value"), [("5%", 0.05), ("0%", 0.0), ("2.5%", 0.025)])
def test_a_threshold_is_a_percentage(words: str, value: float) -> None:
    assert parse_threshold(words) == pytest.approx(value)


@pytest.mark.parametrize("words", ["5", "0.05", "-5%", "%", "nan%", "x%"])
def test_anything_else_is_none(words: str) -> None:
    with pytest.raises(InputError, match="wanted a percentage"):
        parse_threshold(words)
