"""The command line: data on stdout, words on stderr, one line for an error, and the exit status that it promises."""

import dataclasses
import json
import os
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from edgeclip import BundleError, Manifest
from edgeclip.cli import main
from edgeclip.engine.advice import advise_here
from edgeclip.engine.devices import DEVICES
from edgeclip.engine.products import probe_products
from edgeclip.host.installation import install_command
from edgeclip.tables import format_bytes, format_table
from tests.conftest import Bundles
from tests.scenes.command import NEEDS_SHELL, Captured, refusal, run, run_process, run_shell
from tests.scenes.damage import flip_byte, replace_graph, reseal


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["embed"],
        ["check", "a", "b"],
        ["embed", "b", "--threads", "x"],
        ["embed", "b", "--trunc", "8"],
        ["export", "a", "b", "--target", "tpu"],
        ["inspect", "b", "--colour"],
        ["embed", "b"],
        ["embed", "b", "--out", "v.npy"],
        ["eval", "b", "data", "more", "--name", "x"],
        ["bench", "b", "--rivals", "plain"],
        ["bench", "b", "--checkpoint", "c"],
        ["bench", "b", "--work", "w"],
        ["quantize", "b", "out"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: Captured) -> None:
    """In one line. An option is written out: --trunc may become two things tomorrow."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"(edgeclip( [\w-]+)*): .+; `\1 --help` shows the usage\n", err)


@pytest.mark.parametrize("verb", ["embed", "check", "inspect", "export", "demo"])
def test_every_verb_has_help(verb: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: edgeclip {verb}")


@pytest.mark.parametrize("verb", [("embed", "--text", "a"), ("check",), ("inspect",)])
def test_what_is_no_bundle_is_one_line(tmp_path: Path, capsys: Captured, verb: tuple[str, ...]) -> None:
    name, *options = verb
    assert "no such bundle" in refusal(name, tmp_path / "nowhere", *options, capsys=capsys)
    assert "no manifest.json" in refusal(name, tmp_path, *options, capsys=capsys)
    assert "this is a file" in refusal(name, __file__, *options, capsys=capsys)
    assert "a b: no such bundle" in refusal(name, "a\nb", *options, capsys=capsys)


def test_ctrl_c_is_status_130(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("edgeclip.cli.inspect"), "open_manifest", interrupt)
    status, out, err = run("inspect", bundle, capsys=capsys)
    assert (status, out) == (130, "")
    assert err.startswith("edgeclip: interrupted")


def test_the_module_is_the_command(bundle: Path, tmp_path: Path) -> None:
    done = run_process("inspect", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    failed = run_process("inspect", tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    with pytest.raises(BundleError) as caught:
        Manifest.read(tmp_path)
    assert failed.stderr == f"edgeclip: {caught.value}\n"


@NEEDS_SHELL
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("verb", ["embed --text a", "inspect", "check"])
def test_a_full_disk_is_one_line(bundle: Path, verb: str) -> None:
    verb, _, options = verb.partition(" ")
    done = run_shell(f'"$1" -m edgeclip {verb} "$2" {options} > /dev/full', bundle)
    assert done.returncode == 1
    assert done.stderr == "edgeclip: input or output failed ([Errno 28] No space left on device)\n"


@NEEDS_SHELL
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_error_stays_one_line_when_the_disk_is_full_too(bundle: Path) -> None:
    done = run_shell('"$1" -m edgeclip embed "$2" --text a --image nowhere.png > /dev/full', bundle)
    assert (done.returncode, done.stderr) == (1, "edgeclip: image 0 (nowhere.png): no such file\n")


@NEEDS_SHELL
@pytest.mark.parametrize("verb", ["embed --text a", "check"])
def test_a_closed_stdout_leaves_the_status(bundle: Path, verb: str) -> None:
    verb, _, options = verb.partition(" ")
    done = run_shell(f'"$1" -m edgeclip {verb} "$2" {options} >&-', bundle)
    assert (done.returncode, done.stderr) == (0, "")


@NEEDS_SHELL
@pytest.mark.parametrize("closed", ["2>&-", "2>&- <&-"])
def test_a_closed_stderr_leaves_stdout_to_the_data(bundle: Path, closed: str) -> None:
    """A warning and an error are said to nobody."""
    line = f'"$1" -m edgeclip embed "$2" --text "a b c d e f g h" --max-length 4 --truncate-dim 2 {closed}'
    done = run_shell(line, bundle)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert json.loads(done.stdout)["text"] == "a b c d e f g h"
    failed = run_shell(f'"$1" -m edgeclip embed "$2" --image nowhere.png {closed}', bundle)
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", "")


@pytest.mark.parametrize("verb", ["embed", "check", "eval", "bench"])
def test_help_names_every_device(verb: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert f"{DEVICES} (auto)" in " ".join(capsys.readouterr().out.split())


def test_a_good_bundle_is_a_table(bundle: Path, capsys: Captured) -> None:
    status, out, err = run("check", bundle, capsys=capsys)
    assert (status, err) == (0, "")
    assert "8 files" in out and "every sha256 as exported" in out
    assert "self-test on cpu" in out


def test_json_holds_what_was_found(bundle: Path, capsys: Captured) -> None:
    status, out, err = run("check", bundle, "--json", "--device", "cpu", "--threads", 1, capsys=capsys)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert out.count("\n") == 1
    assert (found["bundle"], found["device"], found["files"]) == (str(bundle), "cpu", 8)
    assert found["bytes"] == Manifest.read(bundle).weight_bytes
    assert [(one["modality"], one["samples"]) for one in found["selftest"]] == [("text", 6), ("image", 2)]
    assert all(one["largest_difference"] <= 5e-6 < one["worst_cosine"] for one in found["selftest"])


def test_check_repeats_the_proof_beside_what_was_recorded(int8_bundle: Path, capsys: Captured) -> None:
    status, out, err = run("check", int8_bundle, capsys=capsys)
    assert (status, err) == (0, "")
    assert "7 files" in out and "s, against the fp32 checkpoint:" in out
    proof = out.partition("proof on cpu in ")[2]
    manifest = Manifest.read(int8_bundle)
    for modality, line in zip(manifest.modalities, proof.splitlines()[2:], strict=True):
        recorded = manifest.measurement(modality, "single", "fp32 bundle", "made-up inputs")
        assert recorded is not None
        name, samples, was, here, _ = line.split()
        assert (name, samples, was) == (modality, str(recorded.samples), f"{recorded.worst_cosine:.7f}")
        assert float(here) == pytest.approx(recorded.worst_cosine, abs=1e-6)


def test_check_as_json_holds_the_repeated_figures(bundle: Path, int8_bundle: Path, capsys: Captured) -> None:
    found = json.loads(run("check", int8_bundle, "--json", capsys=capsys)[1])
    assert [(one["modality"], one["data"]) for one in found["proof"]] == [
        ("text", "made-up inputs"),
        ("image", "made-up inputs"),
    ]
    assert all(0.99 < one["recorded_cosine"] < 0.99999 and one["worst_cosine"] < 0.99999 for one in found["proof"])
    assert found["proof_s"] > 0
    out = run("check", bundle, "--json", capsys=capsys)[1]
    assert json.loads(out)["proof"] == []


def test_check_fails_where_the_proof_does(copied_int8: Path, capsys: Captured) -> None:
    """The self-test still passes: its record is its own."""
    measured = [
        dataclasses.replace(one, worst_cosine=1.0) if one.against == "fp32 bundle" else one
        for one in Manifest.read(copied_int8).measured
    ]
    reseal(copied_int8, measured=tuple(measured))
    message = refusal("check", copied_int8, capsys=capsys)
    assert message.startswith("proof: the text graph on cpu has a worst cosine of 0.999")
    assert "wanted 0.999990 or more: 1.000000 was measured" in message


@pytest.mark.parametrize("name", ["text.onnx", "vision.onnx_data", "tokenizer.json", "selftest.npz"])
def test_one_changed_byte_is_one_line(copied_bundle: Path, capsys: Captured, name: str) -> None:
    flip_byte(copied_bundle / name, 1234)
    message = refusal("check", copied_bundle, capsys=capsys)
    assert message.startswith(f"{copied_bundle}: {name} is not what was exported")


def test_a_damaged_tokenizer_is_one_line_in_a_process(copied_bundle: Path) -> None:
    """Where Rust's own words on stderr would be seen."""
    flip_byte(
        copied_bundle / "tokenizer.json", (copied_bundle / "tokenizer.json").read_bytes().index(b"charsmap") + 99
    )
    done = run_process("check", copied_bundle, env=os.environ | {"RUST_BACKTRACE": "1"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "tokenizer.json is not what was exported" in done.stderr


def test_a_failing_graph_is_one_line_in_a_process(copied_bundle: Path) -> None:
    """Where onnxruntime's own words on stderr would be seen."""
    replace_graph(copied_bundle, "text", scale=np.ones(64), offset=np.zeros(64), shape=(7, 64))
    done = run_process("check", copied_bundle)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "the text graph failed on cpu" in done.stderr


def test_json_is_the_manifest(bundle: Path, capsys: Captured) -> None:
    status, out, err = run("inspect", bundle, "--json", capsys=capsys)
    assert (status, err) == (0, "")
    assert Manifest.from_json(out) == Manifest.read(bundle)


def test_tables_name_files_operators_and_measurements(bundle: Path, capsys: Captured) -> None:
    status, out, err = run("inspect", bundle, capsys=capsys)
    assert (status, err) == (0, "")
    manifest = Manifest.read(bundle)
    operators = [name for graph in manifest.graphs.values() for name in graph.operators]
    for word in [*(file.name for file in manifest.files), *operators, "fp32", "self-test"]:
        assert word in out
    assert "jina_clip from model" in out and "64 dimensions" in out
    (task,) = manifest.tasks.values()
    row = ["retrieval.query", *task.prompt.split(), "-", "text"]
    assert row in [line.split() for line in out.splitlines()]


def test_inspect_says_what_this_machine_should_run(
    bundle: Path, int8_bundle: Path, bundles: Bundles, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    told = f"this machine should run {advise_here().choice}:"
    assert told in run("inspect", bundle, capsys=capsys)[1]
    assert "this machine" not in run("inspect", bundles["cuda"], capsys=capsys)[1]
    no_vnni = replace(probe_products(), adds_in_16_bits=True)
    for module in ("edgeclip.cli.inspect", "edgeclip.engine.advice"):
        monkeypatch.setattr(import_module(module), "probe_products", lambda: no_vnni)
    said = [run("inspect", folder, capsys=capsys)[1] for folder in (bundle, int8_bundle)]
    assert all(
        "should run int8 of 7 bits (edgeclip quantize BUNDLE OUT --to int8 --cpu avx2):" in out for out in said
    )
    assert ["are guarded against overflow here" in out for out in said] == [False, True]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for module in ("edgeclip.cli.inspect", "edgeclip.engine.advice"):
        monkeypatch.setattr(import_module(module), "probe_products", probe_products.__wrapped__)
    status, out, err = run("inspect", bundle, capsys=capsys)
    assert (status, err) == (0, "") and "should run" not in out


def test_inspect_shows_what_was_measured(bundle: Path, int8_bundle: Path, capsys: Captured) -> None:
    manifest = Manifest.read(int8_bundle)
    status, out, err = run("inspect", int8_bundle, capsys=capsys)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    text = manifest.graphs["text"]
    layers = text.kernels["int8 per row"]
    assert ["text", "int8", f"{text.parameters:,}"] == next(line for line in lines if "int8" in line)[:3]
    assert f"{layers} int8 per row" in out and "0 fp32" not in out
    for one in manifest.measured:
        row = [one.modality, *one.against.split(), *one.data.split(), str(one.samples), f"{one.worst_cosine:.6f}"]
        (line,) = [line for line in lines if line[: len(row)] == row]
        assert one.sqnr_db is not None
        assert line[-4:-1] == [f"{one.p1_cosine:.6f}", f"{one.mean_cosine:.6f}", f"{one.sqnr_db:.1f}"]
    assert re.search(r"images with texts +made-up inputs +the source's first answers +32 +recall@5 +\d+\.\d%", out)
    assert re.search(r"texts with images +made-up inputs .* [+-]\d+\.\d\d \(-\d+\.\d\d to \+\d+\.\d\d\)\n", out)
    assert re.search(r"image +\d+ kB +0\.\d{3} +\d+\.\d{3} +1 image +\d+ .*threads\n", out)
    assert "searched" not in run("inspect", bundle, capsys=capsys)[1]


def test_it_needs_no_onnxruntime(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run("inspect", bundle, capsys=capsys)[0] == 0
    assert install_command("cpu") in refusal("check", bundle, capsys=capsys)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (326_088, "326 kB"), (1_730_556_954, "1.73 GB")],
)
def test_bytes_have_the_unit_that_a_person_would_use(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_columns_stand_straight_under_wide_and_combining_characters() -> None:
    table = format_table(("name", "n"), [("三角", "1"), ("e\u0301t", "22"), ("abcdef", "333")])
    assert table == "name      n\n三角      1\ne\u0301t       22\nabcdef  333"
