"""A short soak goes through every act, finds the service alive after each, and writes down what became of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeclip.errors import InputError
from edgeclip_bench.load.service_soak import Wanted, soak, status
from tests.scenes.command import bench

ACTS = {
    "ask_a_text": {"200"},
    "ask_many_texts": {"200"},
    "ask_token_ids": {"200", "400"},
    "ask_a_masked_text": {"200", "400"},
    "ask_images": {"200"},
    "ask_a_large_image": {"200"},
    "ask_for_what_is_not_there": {"404"},
    "send_a_broken_image": {"400"},
    "send_a_large_body": {"200", "400", "429"},
    "send_json_that_grows": {"400", "413"},
    "send_no_http": {"400"},
}
# What the service may say besides, where the machine has other work.
TOO_BUSY = {"408", "429", "504"}


def test_every_act_has_its_answer(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    ended = bench("service-soak", str(bundle), "--seconds", "30", "--clients", "4", "--out", str(out))
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["answers_500"] == 0
    assert ended == status(report)  # so short a time may well end in the warm-up
    for act, answers in ACTS.items():
        found = set(report["outcomes"][act])
        assert found & answers and found <= answers | TOO_BUSY, (act, found)
    # A tenth of what an idle machine takes: both are watched, however busy it is.
    assert len(report["in_traffic"]["samples"]) > 5 and report["at_rest"]["samples"]
    assert report["exit_status"] == 0


def test_a_model_that_needs_a_task_is_asked_with_one(v4_bundle: Path) -> None:
    """Ids begin with those of its prompt, or all of them would be refused."""
    wanted = Wanted.of(v4_bundle, None)
    assert wanted.tasks == {"text": "retrieval.query", "image": "retrieval.query"} and wanted.first_ids
    assert Wanted.of(v4_bundle, "code.passage").tasks == {"text": "code.passage", "image": "code.passage"}
    with pytest.raises(InputError, match="--task x: wanted one of retrieval.query"):
        Wanted.of(v4_bundle, "x")
    report = soak(v4_bundle, seconds=12, clients=3)
    assert report["answers_500"] == 0 and report["exit_status"] == 0
    outcomes = report["outcomes"]
    for act in ("ask_a_text", "ask_many_texts", "ask_token_ids", "ask_images", "ask_a_large_image"):
        assert set(outcomes.get(act, {})) <= {"200"}, act
    assert sum(sum(found.values()) for act, found in outcomes.items() if act in ("ask_token_ids", "ask_images")) > 0


def test_growth_anywhere_and_a_500_fail() -> None:
    def report(at_rest: str | None, in_traffic: str, answers_500: int = 0) -> dict[str, Any]:
        trends = {"at_rest": at_rest, "in_traffic": in_traffic}
        return {name: {"trend": word and {"verdict": word}} for name, word in trends.items()} | {
            "answers_500": answers_500
        }

    assert status(report("flat", "unclear")) == status(report(None, "flat")) == 0
    assert status(report("grows", "unclear")) == status(report("flat", "grows")) == 1
    assert status(report("flat", "flat", answers_500=1)) == 1
