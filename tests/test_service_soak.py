"""A short soak goes through every act, finds the service alive after each, and writes down what became of them."""

import json
from pathlib import Path

from edgeclip_bench.service_soak import main

ACTS = {
    "ask_a_text": {"200"},
    "ask_many_texts": {"200"},
    "ask_token_ids": {"200", "400"},
    "ask_images": {"200"},
    "send_a_broken_image": {"400"},
    "send_json_that_grows": {"400", "413"},
    "send_no_http": {"400"},
}


def test_every_act_has_its_answer(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    status = main([str(bundle), "--seconds", "12", "--clients", "4", "--out", str(out)])
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["answers_500"] == 0
    assert status == int(report["trend"]["verdict"] == "grows")  # so short a time may well end in the warm-up
    assert len(report["outcomes"]) >= len(ACTS)
    for act, answers in ACTS.items():
        assert set(report["outcomes"].get(act, {})) & answers == set(report["outcomes"].get(act, {})), act
    assert len(report["samples"]) > 50
    assert report["exit_status"] == 0
