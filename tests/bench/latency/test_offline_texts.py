"""Both ways encode the same texts and agree, and what is called padded is what everybody does."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip_bench.latency.offline_texts import PADDED, TOKENS, draw_ids, plan, plan_padded
from tests.scenes.command import bench

PAD = 1
# Padding and another batch sum in another order. Measured: 2e-7.
SAME = 5e-6


def test_texts_are_of_mixed_length_and_hold_no_padding() -> None:
    rows = draw_ids(500, PAD)
    assert {len(row) + 2 for row in rows} == set(range(TOKENS[0], TOKENS[1] + 1))
    assert all(PAD not in row for row in rows)


def test_padded_batches_are_in_order_and_as_long_as_their_longest(encoder: Encoder) -> None:
    items = encoder.family.token_ids(draw_ids(70, PAD), None, None).items
    rows = [item.arrays["input_ids"] for item in items]
    batches = list(plan_padded(items, PAD))
    assert [len(batch.indices) for batch in batches] == [PADDED, PADDED, 70 - 2 * PADDED]
    assert [index for batch in batches for index in batch.indices] == list(range(70))
    for batch in batches:
        assert batch.input_ids.shape[1] == max(len(rows[index]) for index in batch.indices)
        for index, ids in zip(batch.indices, batch.input_ids, strict=True):
            np.testing.assert_array_equal(ids[: len(rows[index])], rows[index])
            assert (ids[len(rows[index]) :] == PAD).all()


def test_a_budget_is_kept(encoder: Encoder) -> None:
    items = encoder.family.token_ids(draw_ids(100, PAD), None, None).items
    assert all(batch.input_ids.size <= 128 for batch in plan(items, 128))


def test_the_ways_agree(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "offline.json"
    words = ("--texts", 80, "--rounds", 1, "--budgets", "128,512", "--out", out)
    assert bench("offline-texts", bundle, *words) == 0
    ways = json.loads(out.read_text(encoding="utf-8"))["ways"]
    assert list(ways) == ["padded, 32 at once", "one length, 128 tokens at once", "one length, 512 tokens at once"]
    assert all(way["largest_difference"] <= SAME and way["texts_per_s"] > 0 for way in ways.values())
    assert ways["padded, 32 at once"]["batches"] == 3
    assert len(capsys.readouterr().out.splitlines()) >= 4
