"""The verdict on memory is one of three, and is right for made-up memory; a short soak runs and is written down."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeclip.host.malloc_bounds import has_mallopt
from edgeclip_bench.load.memory_soak import FORMATS, SIDES_PX, log_uniform, make_files, status
from edgeclip_bench.load.memory_trend import Trend, find_trend
from tests.scenes.command import bench

MB = 1e6


def trend_of(memory_mb: Callable[[float], float], seconds: int = 600, noise_mb: float = 2.0) -> Trend:
    """The trend of memory sampled each second, noise on it that lasts for ten seconds."""
    random = np.random.default_rng(0)
    noise = np.repeat(random.normal(0, noise_mb, seconds // 10 + 1), 10)
    return find_trend([(second, int((memory_mb(second) + noise[second]) * MB)) for second in range(seconds)])


def test_flat_memory_is_flat() -> None:
    trend = trend_of(lambda second: 500)
    assert trend.verdict == "flat"
    assert trend.least_gained_bytes < 0 < trend.most_gained_bytes
    assert trend.held_bytes == pytest.approx(500 * MB, rel=0.01)
    assert trend.seconds == pytest.approx(480, abs=2)


def test_what_warms_up_is_flat() -> None:
    assert trend_of(lambda second: 500 - 300 * np.exp(-second / 20)).verdict == "flat"


def test_a_saw_is_flat() -> None:
    assert trend_of(lambda second: 500 + (second % 37) / 4).verdict == "flat"


@pytest.mark.parametrize("mb_per_minute", [3.0, 10.0, 100.0])
def test_a_leak_grows(mb_per_minute: float) -> None:
    trend = trend_of(lambda second: 500 + mb_per_minute * second / 60)
    assert trend.verdict == "grows"
    assert trend.least_gained_bytes <= mb_per_minute * 8 * MB <= trend.most_gained_bytes


def test_what_is_taken_for_a_moment_is_no_growth() -> None:
    """A fifth of the time 100 MB more: how much of it a window has is chance."""
    chance = np.random.default_rng(1).random(100)
    trend = trend_of(lambda second: 500 + 100 * (chance[int(second // 6)] < 0.2))
    assert trend.verdict == "flat"
    assert trend.most_gained_bytes < 10 * MB


@pytest.mark.parametrize("mb_per_minute", [3.0, 10.0])
def test_a_leak_grows_under_moments(mb_per_minute: float) -> None:
    trend = trend_of(lambda second: 500 + mb_per_minute * second / 60 + 100 * (second % 60 < 15))
    assert trend.verdict == "grows"


def test_a_shrinking_one_is_flat() -> None:
    assert trend_of(lambda second: 500 - second / 60).verdict == "flat"


def test_what_cannot_be_told_is_said() -> None:
    assert trend_of(lambda second: 500, seconds=60, noise_mb=100).verdict == "unclear"


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="run it longer"):
        trend_of(lambda second: 500, seconds=20)


def test_sizes_are_drawn_evenly_on_a_logarithmic_scale() -> None:
    random = np.random.default_rng(0)
    drawn = [log_uniform(random, 2, 512) for _ in range(4000)]
    assert min(drawn) == 2 and 500 < max(drawn) <= 512
    assert np.mean(np.array(drawn) < 32) == pytest.approx(0.5, abs=0.03)


def test_files_are_of_every_format_and_size() -> None:
    files = list(make_files(20, 300, seed=0))
    assert len({file[:2] for file in files}) == len(FORMATS)
    assert SIDES_PX[0] < 300


def test_a_short_soak(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too short for a verdict to count, long enough for everything to be called; two threads share the Encoder."""
    out = tmp_path / "soak.json"
    options = ["--seconds", "3", "--clients", "2", "--largest-px", "200", "--to-the-limit", "--out", str(out)]
    ended = bench("memory-soak", str(bundle), "--device", "cpu", "--threads", "1", *options)
    report = json.loads(out.read_text(encoding="utf-8"))
    trend = report["resident_memory"]["trend"]
    assert report["benchmark"] == "edgeclip_bench.load.memory_soak"
    assert ended == status(report) == (trend["verdict"] == "grows")
    assert report["gpu_memory"] is None
    assert trend["least_gained_bytes"] <= trend["gained_bytes"] <= trend["most_gained_bytes"]
    assert report["counts"]["texts"] > 0 and report["counts"]["images"] > 0
    # Linux counts a thread's pages late, by up to 64 at a time.
    assert report["bounds"] == {}  # this process is another's
    assert report["peak_bytes"] > 0.95 * max(held for _, held in report["resident_memory"]["samples"]) > 0
    assert f"\nresident memory: {trend['verdict']}, " in capsys.readouterr().out


@pytest.mark.skipif(not has_mallopt(), reason="only glibc has such settings")
@pytest.mark.parametrize("options", [[], ["--unbounded"]])
def test_a_soak_bounds_its_own_process(bundle: Path, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "soak.json"
    options = [*options, "--seconds", "1", "--largest-px", "100", "--threads", "1", "--out", str(out)]
    command = [sys.executable, "-m", "edgeclip", "bench", "memory-soak", str(bundle), "--device", "cpu", *options]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode in (0, 1), done.stderr  # too short for its verdict to count
    bounds = json.loads(out.read_text(encoding="utf-8"))["bounds"]
    assert bounds == {} if "--unbounded" in options else "MALLOC_MMAP_THRESHOLD_" in bounds
