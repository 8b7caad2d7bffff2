"""The plain export is measured beside a bundle of the same checkpoint, with more shapes of texts and the longest."""

import json
from pathlib import Path

import pytest

from edgeclip_bench.rivals import plain_export
from tests.conftest import CHECKPOINT
from tests.scenes.command import Captured, bench

# The same arithmetic in another order. Measured: 2e-7.
SAME = 5e-6


def test_a_bundle_and_the_plain_export_take_turns(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(plain_export, "SHAPES", ((1, 8, 2), (4, 16, 2)))
    out = tmp_path / "plain.json"
    assert bench("plain-export", CHECKPOINT, bundle, "--plain", tmp_path / "plain", "--out", out) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [(one["contender"], one["graph"]) for one in found["standings"]] == [
        (name, graph) for graph in ("text", "vision") for name in (bundle.name, "plain")
    ]
    assert all(one["largest_difference"] <= SAME for one in found["standings"])
    cases = ["text, 8 tokens, batch 1", "text, 16 tokens, batch 4", "image, batch 1"]
    assert list(dict.fromkeys(one["case"] for one in found["latencies"])) == cases
    (longest,) = found["longest_text"].values()
    assert longest["tokens"] == 8192 and longest["peak_above_loaded_bytes"] > 0
    assert "while a text of 8192 tokens is computed" in capsys.readouterr().out
