"""Every step from a process's start to its first vector is told, and they add up."""

import json
from pathlib import Path

import pytest

from edgeclip_bench.latency.cold_start import STEPS, split
from tests.scenes.command import bench


def test_steps_are_between_the_moments() -> None:
    found = split(10.0, [10.02, 10.12, 10.15, 10.65, 10.66])
    assert {step: round(found[step]) for step in STEPS} == {
        "python": 20,
        "import": 100,
        "open": 30,
        "first_vector": 500,
    }
    assert round(found["total"]) == 650
    assert round(found["second_vector"]) == 10


def test_processes_are_measured_for_texts_and_images(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cold.json"
    cache = tmp_path / "cache"
    assert bench("cold-start", str(bundle), "--rounds", "1", "--prepacked", str(cache), "--out", str(out)) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["benchmark"] == "edgeclip_bench.latency.cold_start"
    assert list(report["ways"]) == ["bundle", "prepacked"] and list(cache.rglob("vision.onnx"))
    ways = report["ways"].values()
    assert all(list(way["modalities"]) == ["text", "image"] for way in ways)
    assert all(0 < way["second_process"]["own_bytes"] < way["second_process"]["resident_bytes"] for way in ways)
    for found in [found for way in ways for found in way["modalities"].values()]:
        median = found["median_ms"]
        assert median["total"] == pytest.approx(sum(median[step] for step in STEPS))
        assert min(median.values()) > 0
        assert found["slowest_total_ms"] == median["total"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines][-6:-2] == ["text", "image"] * 2
    assert "prepacked: a second process has" in lines[-1]
