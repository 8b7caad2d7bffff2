"""Bundles of several families, by several installations, take turns in processes of their own."""

import json
import sys
from pathlib import Path

import pytest

from edgeclip_bench.latency.side_by_side import BENCHMARK, Contender
from edgeclip_export import export_checkpoint
from tests.conftest import made_once
from tests.export.families.jina_embeddings_v3.test_parity import OFFICIAL
from tests.scenes.command import Captured, bench, refusal

QUICK = ("--tokens", 60, "--seconds", 0.1)


@pytest.fixture(scope="module")
def v3(shared: Path) -> Path:
    return made_once(shared / "v3" / "cpu", lambda out: export_checkpoint(OFFICIAL, out))


def test_two_families_take_turns(v3: Path, bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    """The image is the model's alone that takes images; ratios are to the last one."""
    out = tmp_path / "turns.json"
    with_image = ("--image-px", 32, "--starts", 1, "--out", out)
    assert bench("side-by-side", f"{v3}@retrieval.query", bundle, *QUICK, *with_image) == 0
    document = json.loads(out.read_text(encoding="utf-8"))
    names = [f"{v3.name}@retrieval.query", bundle.name]
    assert document["benchmark"] == BENCHMARK
    assert [one["name"] for one in document["contenders"]] == names
    assert [(row["case"], row["contender"]) for row in document["latencies"]] == [
        *(("start to first text", name) for name in names),
        *(("text, 60 tokens", name) for name in names),
        ("image, 32 px", bundle.name),
    ]
    assert all(row["median_ms"] > 0 for row in document["latencies"])
    assert [row["to_last"]["median"] for row in document["latencies"][1::2]] == [1.0, 1.0]
    assert {name: list(found) for name, found in document["memory"].items()} == {
        names[0]: ["texts"],
        names[1]: ["texts", "texts and image"],
    }
    assert "start to first text" in capsys.readouterr().out


def test_a_text_has_its_tokens_by_each_contender(v3: Path, bundle: Path) -> None:
    """The prompt of the task is among them, so the rest is shorter."""
    plain, asked = (Contender.parse(f"{v3}{task}").text(60) for task in ("", "@retrieval.query"))
    assert 0 < len(asked) < len(plain)
    assert Contender.parse(str(bundle)).text(60)


def test_another_installation_opens_its_bundle(bundle: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho used >> {tmp_path}/used\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    before = tmp_path / "before"
    before.symlink_to(bundle)
    out = tmp_path / "turns.json"
    assert bench("side-by-side", f"{before}={python}", bundle, *QUICK, "--out", out) == 0
    contenders = json.loads(out.read_text(encoding="utf-8"))["contenders"]
    assert [one["is_other_installation"] for one in contenders] == [True, False]
    assert (tmp_path / "used").read_text() == "used\n"


@pytest.mark.filterwarnings("ignore")
def test_transformers_own_model_takes_part(v3: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "turns.json"
    assert bench("side-by-side", f"transformers:{OFFICIAL}", v3, *QUICK, "--out", out) == 0
    first = json.loads(out.read_text(encoding="utf-8"))["latencies"][0]
    assert first["contender"] == f"transformers:{OFFICIAL.name}" and first["median_ms"] > 0


def test_what_cannot_take_part_is_one_line(v3: Path, bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "is no bundle; wanted BUNDLE" in refusal("bench", "side-by-side", tmp_path, capsys=capsys)
    assert "the same name" in refusal("bench", "side-by-side", bundle, bundle, capsys=capsys)
    unknown = refusal("bench", "side-by-side", f"{v3}@x", *QUICK, capsys=capsys)
    assert "the tasks of the bundle are text-matching, " in unknown
    absent = refusal("bench", "side-by-side", f"{bundle}%cuda", *QUICK, capsys=capsys)
    assert absent == f"{bundle.name}%cuda: its process ended with status 1"
    assert "a folder with config.json" in refusal("bench", "side-by-side", f"llama.cpp:{tmp_path}=x", capsys=capsys)
    assert "wanted llama.cpp:" in refusal("bench", "side-by-side", f"llama.cpp:{OFFICIAL}", capsys=capsys)
    ended = refusal("bench", "side-by-side", f"llama.cpp:{OFFICIAL}=/bin/false", bundle, *QUICK, capsys=capsys)
    assert ended == f"llama.cpp:{OFFICIAL.name}: its process ended with status 1"
    assert "a folder with text.onnx" in refusal("bench", "side-by-side", f"openvino:{tmp_path}=x", capsys=capsys)
    dead = refusal("bench", "side-by-side", f"{bundle}=/bin/false", *QUICK, capsys=capsys)
    assert dead == f"{bundle.name}: its process ended with status 1"
