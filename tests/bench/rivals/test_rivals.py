"""A rival is made once and measured beside the bundles, or named with the reason why not; nothing disappears."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeclip import Encoder, Manifest
from edgeclip.bundle.closeness import row_cosines
from edgeclip.manifest import Target
from edgeclip_bench.families.jina_clip import tiny_config
from edgeclip_bench.families.random_checkpoint import write_checkpoint
from edgeclip_bench.measure.cosines import summarize_cosines
from edgeclip_bench.measure.documents import installed
from edgeclip_bench.rivals.contenders import Contender, feed, measure_resident, open_run
from edgeclip_bench.rivals.recipes import (
    CANNOT,
    GRAPHS,
    RIVALS,
    LeftOut,
    Made,
    Material,
    made_up_batches,
    place,
    prepare,
    read_made,
    same_graphs,
)
from edgeclip_bench.rivals.run import case_batch, cases, paired, take_turns
from edgeclip_export import export_checkpoint
from tests.conftest import CHECKPOINT, GOLDEN
from tests.scenes.command import Captured, bench

MEASURED = ["plain", "quantize_dynamic", "quantize_dynamic-quint8"]  # with what tests are installed with
OPENED = [*MEASURED, "torch", "torch-bf16", "merged"]
COMPILED = "torch-compiled"  # half a minute of compiling
FP32 = ("fp32", "plain", "torch", "merged", "openvino")
# Worst cosine of a rival's int8 on the tiny checkpoint; measured 0.9985.
WORST_COSINE = 0.99


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, its fp32 and int8 bundles, and under `work` the rivals of `MEASURED`."""
    from edgeclip.cli import main as edgeclip

    folder = tmp_path_factory.mktemp("rivals")
    write_checkpoint(folder / "checkpoint", tiny_config())
    export_checkpoint(folder / "checkpoint", folder / "fp32")
    assert edgeclip(["quantize", str(folder / "fp32"), str(folder / "int8"), "--to", "int8"]) == 0
    assert bench("rivals", *arguments(folder), "--prepare", "--rivals", ",".join(OPENED)) == 0
    return folder


def arguments(folder: Path) -> list[str]:
    return [str(folder / name) for name in ("checkpoint", "fp32", "int8")] + ["--work", str(folder / "work")]


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    """A run with every rival but one, in a process of its own as a user has it; with what it printed."""
    out = folder / "report.json"
    names = ",".join(name for name in (*RIVALS, *CANNOT) if name != COMPILED)
    options = ["--out", str(out), "--texts", "6", "--images", "3", "--rivals", names]
    command = [sys.executable, "-m", "edgeclip", "bench", "rivals", *arguments(folder), *options]
    # OpenMP's threads wait for each other by spinning: on a busy machine, for whole time slices.
    passive = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=600, env=passive)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found | {"stdout": done.stdout, "stderr": done.stderr}


def test_every_rival_is_measured_a_twin_or_left_out(report: dict[str, Any]) -> None:
    for graph in GRAPHS:
        measured = [one["contender"] for one in report["standings"] if one["graph"] == graph]
        twins = [one["rival"] for one in report["twins"] if one["graph"] == graph]
        absent = [one["rival"] for one in report["left_out"] if one["graph"] == graph]
        assert measured[:2] == ["fp32", "int8"]
        assert sorted([*measured[2:], *twins, *absent, COMPILED]) == sorted([*RIVALS, *CANNOT])
        missing = [name for name, rival in RIVALS.items() if not all(map(installed, rival.packages))]
        assert sorted(absent) == sorted([*missing, *CANNOT])
    for one in report["left_out"]:
        assert one["why"] == CANNOT.get(one["rival"]) or one["why"].endswith("not installed to make it")
        assert f"rivals: {one['rival']}, {one['graph']}: left out: {one['why']}\n" in report["stderr"]


def test_the_figures_are_complete_and_make_sense(folder: Path, report: dict[str, Any]) -> None:
    assert report["machine"]["threads"] == report["threads"] >= 1
    assert 0 <= report["others_share"] <= 1
    assert {"onnxruntime", "onnx", "torch"} <= set(report["versions"])
    assert report["samples"] == {"name": "made-up inputs", "text": 6, "image": 3, "seed": 1}
    standings = {(one["contender"], one["graph"]): one for one in report["standings"]}
    for (name, graph), one in standings.items():
        assert one["recipe"] and one["made_with"]
        assert 0 < one["resident"]["anonymous_bytes"] <= one["resident"]["loaded_bytes"]
        assert one["closeness"]["samples"] == {"text": 6, "vision": 3}[graph]
        cosines = [one["closeness"][which] for which in ("worst", "first_percentile", "mean")]
        assert sorted(cosines) == cosines and cosines[-1] <= 1 + 1e-12
        is_fp32 = name in FP32
        assert (cosines[0] > 1 - 1e-6) == is_fp32, (name, graph)
        assert cosines[0] > WORST_COSINE
    for graph in GRAPHS:
        of_bundle = [path for path in (folder / "int8").iterdir() if path.name.startswith(f"{graph}.onnx")]
        assert standings["int8", graph]["size_bytes"] == sum(path.stat().st_size for path in of_bundle)
        assert standings["quantize_dynamic", graph]["size_bytes"] < standings["plain", graph]["size_bytes"]
    medians = {(one["case"], one["contender"]): one for one in report["latencies"]}
    for (_, name), one in medians.items():
        assert one["median_ms"] > 0
        assert one["p90_ms"] is None  # of 40 rounds at most
        assert one["to_fp32"]["low"] <= one["to_fp32"]["median"] <= one["to_fp32"]["high"]
        if name == "fp32":
            assert one["to_fp32"] == {"median": 1, "low": 1, "high": 1, "samples": one["samples"]}
    names = [case.name for graph in GRAPHS for case in cases(graph, 8192)]
    assert list(dict.fromkeys(case for case, _ in medians)) == names
    measured = [name for name, graph in standings if graph == "text" and name in RIVALS]
    assert [(one["case"], one["bundle"], one["rival"]) for one in report["against"]] == [
        (case, "int8", rival) for case in names for rival in measured
    ]


def test_the_tables_hold_the_same_figures(report: dict[str, Any]) -> None:
    lines = [re.split(r"  +", line) for line in report["stdout"].splitlines() if line]
    for one in report["standings"]:
        (row,) = [row for row in lines if row[0] == one["contender"] and row[-1] == one["recipe"] and len(row) == 10][
            GRAPHS.index(one["graph"]) :
        ][:1]
        assert row[6] == f"{one['closeness']['worst']:.5f}"
    for case in dict.fromkeys(one["case"] for one in report["latencies"]):
        start = lines.index([f"rivals, {case}: compute alone, in turns"]) + 2
        against = {one["rival"]: one["ratio"]["median"] for one in report["against"] if one["case"] == case}
        graph = "text" if case.startswith("text") else "vision"
        worst = {one["contender"]: one["closeness"]["worst"] for one in report["standings"] if one["graph"] == graph}
        for offset, one in enumerate(one for one in report["latencies"] if one["case"] == case):
            row, ratio = lines[start + offset], against.get(one["contender"])
            assert (row[0], row[-1]) == (one["contender"], str(one["samples"]))
            assert float(row[1]) == pytest.approx(one["median_ms"], rel=6e-3)
            assert row[3] == f"{one['to_fp32']['median']:.3f}"
            assert row[5].split(" ")[0] == (f"{ratio:.3f}" if ratio else "-")
            assert row[6] == f"{worst[one['contender']]:.5f}"
    for name, why in CANNOT.items():
        assert [name, "text, vision", why] in lines


def test_what_was_prepared_is_taken_again(folder: Path, report: dict[str, Any]) -> None:
    for name in MEASURED:
        for graph in GRAPHS:
            made = read_made(folder / "work" / name / graph)
            assert made and made.weights_sha256 == Manifest.read(folder / "fp32").source.weights_sha256
            assert prepare(name, material(folder), graph, folder / "work") == made
    (one,) = [one for one in report["standings"] if one["contender"] == "plain" and one["graph"] == "text"]
    made = read_made(folder / "work" / "plain" / "text")
    assert made and (one["made_with"], one["size_bytes"]) == (made.made_with, made.size_bytes)


def material(folder: Path) -> Material:
    weights = Manifest.read(folder / "fp32").source.weights_sha256
    return Material(checkpoint=folder / "checkpoint", bundle=folder / "fp32", weights_sha256=weights)


def test_what_was_made_of_other_weights_or_otherwise_is_made_anew(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "work", tmp_path, dirs_exist_ok=True)
    record = tmp_path / "quantize_dynamic" / "vision" / "made.json"
    document = json.loads(record.read_text(encoding="utf-8"))
    for stale in ({"weights_sha256": "0" * 64}, {"recipe": "by hand"}):
        record.write_text(json.dumps(document | stale), encoding="utf-8")
        made = prepare("quantize_dynamic", material(folder), "vision", tmp_path)
        assert made == read_made(record.parent)
        assert (made.weights_sha256, made.recipe) == (document["weights_sha256"], document["recipe"])
        assert made.made_in_s != document["made_in_s"]


def test_a_graph_that_cannot_be_opened_is_left_out_with_its_reason(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    shutil.copytree(folder / "work", tmp_path / "work")
    (tmp_path / "work" / "quantize_dynamic" / "vision" / "plain_vision.onnx").write_bytes(b"no graph")
    out = tmp_path / "report.json"
    options = ["--rivals", "quantize_dynamic", "--work", str(tmp_path / "work"), "--out", str(out), "--texts", "1"]
    assert bench("rivals", *arguments(folder)[:3], *options, "--images", "1") == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    (absence,) = found["left_out"]
    assert (absence["rival"], absence["graph"]) == ("quantize_dynamic", "vision")
    assert "InvalidProtobuf" in absence["why"]
    assert f"rivals: quantize_dynamic, vision: left out: {absence['why']}\n" in capsys.readouterr().err
    assert {one["contender"] for one in found["standings"] if one["graph"] == "text"} == {
        "fp32",
        "int8",
        "quantize_dynamic",
    }


def test_a_tool_that_fails_is_left_out_and_its_words_are_kept(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    """The plain graph, found prepared, is none."""
    shutil.copytree(folder / "work" / "plain", tmp_path / "plain")
    for graph in GRAPHS:
        (tmp_path / "plain" / graph / f"plain_{graph}.onnx").write_bytes(b"no graph")
    options = ["--rivals", "quantize_dynamic", "--work", str(tmp_path), "--prepare"]
    assert bench("rivals", *arguments(folder)[:2], *options) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": left out: ")[0] for line in lines] == [
        "rivals: quantize_dynamic, text",
        "rivals: quantize_dynamic, vision",
    ]
    assert all(len(line.split(": left out: ")[1]) > 10 for line in lines)
    assert sorted(path.name for path in (tmp_path / "quantize_dynamic").iterdir()) == ["text.log", "vision.log"]


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_rival_answers_nearly_as_the_encoder_does(folder: Path, name: str, graph: str) -> None:
    """Whoever is handed pixels that are not normalised answers something else."""
    contender = prepared(folder, name, graph)
    manifest = Manifest.read(folder / "fp32")
    batches = made_up_batches(folder / "fp32", manifest, graph, texts=4, images=4, seed=3)
    run = open_run(contender, 1)
    found = np.concatenate([run(feed(contender, batch, manifest.image)) for batch in batches])
    with Encoder.open(folder / "fp32") as encoder:
        if graph == "vision":
            wanted = encoder.encode_image([pixels[0] for pixels in batches])
        else:
            wanted = np.concatenate([encoder.run_graph(graph, {"input_ids": ids})["text_embeds"] for ids in batches])
    assert row_cosines(found, wanted).min() > (1 - 1e-6 if name in FP32 else WORST_COSINE)


def prepared(folder: Path, name: str, graph: str) -> Contender:
    made = prepare(name, material(folder), graph, folder / "work")
    path, engine = folder / "work" / place(name, graph) / made.file, RIVALS[name].engine
    return Contender(name=name, recipe="", engine=engine, graph=graph, path=path, size_bytes=made.size_bytes)


def test_bfloat16_is_told_by_its_cosine(report: dict[str, Any]) -> None:
    """It takes the very files of torch at fp32, and is no twin of it."""
    cosines = {one["contender"]: one["closeness"]["worst"] for one in report["standings"]}
    assert WORST_COSINE < cosines["torch-bf16"] < 1 - 1e-6 < cosines["torch"]
    assert place("torch-bf16", "text") == place("torch", "text")


def test_the_merged_graph_is_one_for_both_towers(folder: Path) -> None:
    """Rows of any batch, whatever the dummy is beside it."""
    made = [prepared(folder, "merged", graph) for graph in GRAPHS]
    assert made[0].path == made[1].path
    graph = onnx.load(made[0].path, load_external_data=False).graph
    assert [(len(graph.input), len(graph.output))] == [(2, 2)]
    ask, plain = (open_run(prepared(folder, name, "text"), 1) for name in ("merged", "plain"))
    ids = np.random.default_rng(0).integers(5, 100, (7, 9))
    np.testing.assert_allclose(ask(ids), plain(ids), rtol=0, atol=1e-6)


def test_what_cannot_be_compiled_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    with pytest.raises(LeftOut, match=r"(?i)c\+\+ compiler|no working"):
        measure_resident(prepared(folder, COMPILED, "text"), np.full((1, 5), 7), 1)


@pytest.mark.parametrize("graph", GRAPHS)
def test_quantize_dynamic_leaves_attention_alone_and_makes_the_rest_integers(folder: Path, graph: str) -> None:
    path = folder / "work" / "quantize_dynamic" / graph / f"plain_{graph}.onnx"
    operators = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert "MatMul" not in operators
    assert (operators.count("MatMulInteger"), operators.count("Attention")) == ({"text": 8, "vision": 14}[graph], 2)


def test_ratios_are_of_the_same_round() -> None:
    """The machine was twice as slow in the second round: the medians' ratio would be 0.75 of what it was."""
    mine, its = np.array([1.0, 2.0, 1.0, 3.0]), np.array([2.0, 4.0, 2.0, 3.0])
    ratio = paired(mine, its)
    assert ratio == {"median": 0.5, "low": 0.5, "high": 0.625, "samples": 4}


def test_cosines_do_not_depend_on_lengths_and_name_the_worst() -> None:
    wanted = np.array([[1, 0], [0, 2], [3, 4]], np.float32)
    found = summarize_cosines(row_cosines(np.array([[5, 0], [1, 0], [6, 8]], np.float32), wanted))
    assert (found.samples, found.worst, found.mean) == (3, 0.0, pytest.approx(2 / 3))
    assert found.first_percentile == pytest.approx(0.02)


def test_turns_begin_with_another_one_each_round_and_the_first_round_is_not_counted() -> None:
    asked: list[str] = []

    def note(name: str) -> Callable[[Any], Any]:
        return lambda batch: asked.append(name + batch)

    names = ("a", "b", "c")
    times = take_turns("case", {name: note(name) for name in names}, {name: name.upper() for name in names}, 3)
    assert asked[::2] == asked[1::2]  # the first of two runs does not count
    assert asked[::2] == ["aA", "bB", "cC", "bB", "cC", "aA", "cC", "aA", "bB", "aA", "bB", "cC"]
    assert {name: (len(its), bool((its > 0).all())) for name, its in times.items()} == dict.fromkeys(names, (3, True))


def test_a_case_is_as_wide_and_long_as_it_says(folder: Path) -> None:
    manifest = Manifest.read(folder / "fp32")
    texts, images = (made_up_batches(folder / "fp32", manifest, graph, texts=3, images=2, seed=1) for graph in GRAPHS)
    shapes = [case_batch(case, texts).shape for case in cases("text", 300)]
    assert shapes == [(1, 16), (1, 300), (16, 16)]
    (case,) = cases("vision", 300)
    assert case_batch(case, images).shape == images[0].shape


def test_twins_are_told_by_their_files() -> None:
    def made(rival: str, **files: str) -> Made:
        nothing: dict[str, Any] = dict.fromkeys(("recipe", "weights_sha256", "file"), "")
        return Made(rival=rival, graph="text", made_with={}, made_in_s=0, size_bytes=0, files=files, **nothing)

    names = ("plain", "quantize_dynamic", "optimum-avx2", "quantize_dynamic-quint8", "torch")
    files = ({"x": "1", "y": "2"}, {"x": "1", "y": "3"}, {"y": "2", "x": "1"}, {"x": "1"}, {"x": "1"})
    found = same_graphs([made(name, **its) for name, its in zip(names, files, strict=True)])
    assert found == {"optimum-avx2": "plain"}  # torch reads no graph: it is nobody's twin


def refusal(capsys: Captured, *given: object) -> tuple[int | str | None, str]:
    """The exit status of `edgeclip bench rivals` and the one line that it ends with."""
    status: int | str | None
    try:
        status = bench("rivals", *given)
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return status, err.rstrip("\n")


def test_bundles_that_do_not_belong_are_refused(
    folder: Path, bundles: dict[Target, Path], tmp_path: Path, capsys: Captured
) -> None:
    checkpoint, fp32, int8 = (folder / name for name in ("checkpoint", "fp32", "int8"))
    assert refusal(capsys, checkpoint, int8) == (
        1,
        f"edgeclip: {int8}: is int8/int8 for cpu; wanted the fp32 bundle for the CPU first",
    )
    cuda = bundles["cuda"]
    assert refusal(capsys, CHECKPOINT, bundles["cpu"], cuda) == (
        1,
        f"edgeclip: {cuda}: is fp32/fp32 for cuda; wanted one for the CPU",
    )
    assert refusal(capsys, checkpoint, fp32, bundles["cpu"]) == (
        1,
        f"edgeclip: {bundles['cpu']}: was made from other weights than those in {checkpoint}",
    )
    assert refusal(capsys, checkpoint, fp32, fp32) == (
        1,
        f"edgeclip: {fp32}: another contender is called fp32 too; rename the folder",
    )
    shutil.copytree(int8, tmp_path / "openvino")
    assert "called openvino too" in refusal(capsys, checkpoint, fp32, tmp_path / "openvino")[1]
    assert refusal(capsys, GOLDEN, fp32)[1].startswith(f"edgeclip: {GOLDEN}: has no config.json, but model has")


def test_options_that_cannot_be_are_refused(folder: Path, capsys: Captured) -> None:
    given = arguments(folder)
    assert refusal(capsys, *given, "--rivals", "plain,tensorflow")[0] == 2
    assert "unknown tensorflow; wanted some of plain, " in refusal(capsys, *given, "--rivals", "tensorflow")[1]
    assert refusal(capsys, *given, "--rounds", "0")[1].split("; ")[0].endswith("--images want 1 or more")
    assert "--prepare wants --work, the folder to prepare in" in refusal(capsys, *given[:3], "--prepare")[1]
