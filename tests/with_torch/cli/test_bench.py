"""`edgeclip bench`: what it prints and writes, and the gate's exit status."""

import json
import shutil
from pathlib import Path

import pytest

from edgeclip_bench.latency.records import BENCHMARK
from edgeclip_bench.measure.documents import SCHEMA_VERSION
from tests.conftest import CHECKPOINT, DATA
from tests.scenes.command import Captured, refusal, run

QUICK = ("--seconds", 0.02, "--tokens", "5,9", "--image-px", 40, "--threads", 1)


@pytest.fixture(scope="module")
def measured(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a run wrote."""
    from edgeclip.cli import main

    folder = tmp_path_factory.mktemp("bench")
    files = ("--out", folder / "a.json", "--csv", folder / "a.csv", "--html", folder / "a.html")
    scenarios = ("--scenario", "single-stream,multi-stream,offline", "--batch", "1,2")
    assert main([str(word) for word in ("bench", bundle, *QUICK, *scenarios, *files)]) == 0
    return folder


def test_the_document_holds_every_case(measured: Path) -> None:
    document = json.loads((measured / "a.json").read_text())
    assert (document["benchmark"], document["schema_version"]) == (BENCHMARK, SCHEMA_VERSION)
    cases = [(one["case"]["scenario"], one["case"]["modality"], one["case"]["batch"]) for one in document["results"]]
    assert cases.count(("single-stream", "text", 2)) == 2
    assert cases.count(("multi-stream", "image", 8)) == 1
    assert cases.count(("offline", "image", 1)) == 1
    assert len(cases) == 4 + 2 + 2 + 1 + 2 + 1
    for result in document["results"]:
        assert result["device"] == "cpu"
        assert result["samples_ms"] and min(result["samples_ms"]) > 0
        assert result["warm_up"] >= 2
        if result["case"]["scenario"] == "single-stream":
            assert result["latency"]["samples"] == result["queries"] == len(result["samples_ms"])
            assert result["ceiling"]["gflop"] > 0 and result["ceiling"]["gemm"]["kind"] == "fp32"
            assert result["stages"]["compute_ms"] <= result["latency"]["max_ms"]
    assert document["memory"][0]["peak_bytes"] > 10**7
    assert document["left_out"] == []
    assert document["rivals"] is None


def test_the_other_files_are_written(measured: Path) -> None:
    assert (measured / "a.csv").read_text().count("\n") == 13
    assert (measured / "a.html").read_text().startswith("<!DOCTYPE html>")
    assert {path.name for path in measured.iterdir()} == {"a.json", "a.csv", "a.html"}


def test_several_bundles_stand_side_by_side(bundle: Path, int8_bundle: Path, capsys: Captured) -> None:
    """Told apart by name; one tower, JSON on stdout."""
    words = ("--modality", "text", "--scenario", "single-stream", "--json")
    if bundle.name == int8_bundle.name:
        pytest.fail("the fixtures' bundles have one name")
    status, out, _ = run("bench", bundle, int8_bundle, *QUICK, *words, capsys=capsys)
    assert status == 0
    document = json.loads(out)
    assert [one["bundle"] for one in document["results"]] == [bundle.name] * 2 + [int8_bundle.name] * 2
    assert {one["ceiling"]["gemm"]["kind"] for one in document["results"]} == {"fp32", "int8"}


def test_a_server_is_probed(bundle: Path, capsys: Captured) -> None:
    """A bound of a second, which every rate below capacity keeps for a thousand queries."""
    words = ("--scenario", "server", "--p99-ms", 1000, "--modality", "text", "--tokens", 5, "--threads", 1, "--json")
    status, out, _ = run("bench", bundle, "--seconds", 0.02, *words, capsys=capsys)
    assert status == 0
    (result,) = json.loads(out)["results"]
    server = result["server"]
    assert 0 < server["rate_per_s"] <= server["broken_per_s"]
    assert result["latency"]["p99_ms"] <= 1000
    assert [probe["planned"] for probe in server["probes"]] == [1000] * len(server["probes"])


def test_another_benchmarks_document_is_attached(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "soak.json").write_text('{"benchmark": "soak", "is_flat": true}')
    words = ("--modality", "text", "--scenario", "single-stream", "--json", "--attach", tmp_path / "soak.json")
    status, out, _ = run("bench", bundle, *QUICK, *words, capsys=capsys)
    assert status == 0
    assert json.loads(out)["attached"] == {"soak": {"benchmark": "soak", "is_flat": True}}


def rewritten(source: Path, target: Path, ms: float) -> Path:
    """A copy of a document in which every query took about so long: what a test measures itself is noisy."""
    document = json.loads(source.read_text())
    for result in document["results"]:
        result["samples_ms"] = [ms * (1 + 0.01 * (place % 7)) for place in range(50)]
        result |= {"is_steady": True, "others_share": 0.0}
    target.write_text(json.dumps(document))
    return target


def test_the_gate_passes_and_fails(measured: Path, tmp_path: Path, capsys: Captured) -> None:
    """A line for each regression, and status 1; the same document is none."""
    same, slow = (rewritten(measured / "a.json", tmp_path / f"{ms}.json", ms) for ms in (10, 12))
    status, out, err = run("bench", "compare", same, same, capsys=capsys)
    assert (status, err) == (0, "")
    assert "regression" not in out and out.count("same") == 12
    status, out, err = run("bench", "compare", same, slow, "--fail-over", "5%", capsys=capsys)
    assert status == 1
    assert err.count("\n") == out.count("regression") == 12
    assert all(line.startswith("edgeclip: regression: ") for line in err.splitlines())
    assert run("bench", "compare", same, slow, "--fail-over", "25%", capsys=capsys)[0] == 0
    status, out, _ = run("bench", "compare", slow, same, capsys=capsys)
    assert (status, out.count("faster")) == (0, 12)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"machine": None}, 'the document is not whole (no "machine")'),
        ({"results": [{}]}, "the document is not whole (result 0 lacks"),
        ({"schema_version": 99}, "schema_version is 99, this edgeclip reads 2; measure again"),
        ({"benchmark": "soak"}, "found 'soak', wanted a benchmark's document edgeclip_bench.bench"),
        ({"machine": {"processor": "abacus"}}, "different machines (processor: "),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_one_line(
    measured: Path, tmp_path: Path, change: dict[str, object], told: str, capsys: Captured
) -> None:
    document = json.loads((measured / "a.json").read_text())
    (tmp_path / "b.json").write_text(json.dumps(document | change))
    assert told in refusal("bench", "compare", measured / "a.json", tmp_path / "b.json", capsys=capsys)


def test_machines_are_compared_on_request(measured: Path, tmp_path: Path, capsys: Captured) -> None:
    document = json.loads(rewritten(measured / "a.json", tmp_path / "a.json", 10).read_text())
    (tmp_path / "b.json").write_text(json.dumps(document | {"machine": {"processor": "abacus"}}))
    words = ("compare", tmp_path / "a.json", tmp_path / "b.json", "--across-machines")
    status, out, _ = run("bench", *words, capsys=capsys)
    assert status == 0
    assert "differs: processor: " in out


def test_rivals_are_measured_in_the_same_run(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    """In the tables with their ratios, cosines and memory, and on the page; what was left out with its reason."""
    shutil.copytree(bundle, tmp_path / "fp32")
    names = "plain,quantize_dynamic,fastembed"
    words = ("--rivals", names, "--checkpoint", CHECKPOINT, "--modality", "text", "--scenario", "single-stream")
    files = ("--out", tmp_path / "a.json", "--html", tmp_path / "a.html")
    status, out, err = run("bench", tmp_path / "fp32", *QUICK, *words, *files, capsys=capsys)
    assert status == 0, err
    rivals = json.loads((tmp_path / "a.json").read_text())["rivals"]
    measured = ["fp32", "plain", "quantize_dynamic"]
    assert [one["contender"] for one in rivals["standings"]] == measured
    assert {one["graph"] for one in rivals["standings"]} == {"text"}
    assert [one["rival"] for one in rivals["left_out"]] == ["fastembed"]
    page = (tmp_path / "a.html").read_text()
    for table in ("rivals, text graph: ", "rivals, text, 16 tokens, batch 1", "rivals that were left out"):
        assert table in out and table in page
    assert all(f"<td>{name}</td>" in page for name in [*measured, "fastembed"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("compare", "a", "b", "--fail-over", "5"), "--fail-over 5: wanted a percentage"),
        (("compare", "nowhere.json", "b"), "nowhere.json: cannot be read (No such file or directory)"),
        (("compare", __file__, "b"), "not a JSON document"),
        (("compare", DATA / "golden" / "model" / "config.json", "b"), "found None, wanted a benchmark's document"),
        (("nowhere",), "nowhere: no such bundle"),
    ],
    ids=str,
)
def test_a_wrong_document_is_one_line(words: tuple[object, ...], told: str, capsys: Captured) -> None:
    assert told in refusal("bench", *words, capsys=capsys)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--scenario", "fast"), "--scenario fast: wanted some of"),
        (("--scenario", "server"), "give --p99-ms"),
        (("--tokens", "x"), "--tokens 'x': wanted whole numbers"),
        (("--tokens", "9000"), "--tokens 9000: the model takes at most 8192"),
        (("--device", "gpu"), "unknown device 'gpu'"),
        (("--out", "nowhere/a.json"), "nowhere/a.json: there is no folder nowhere"),
        (("--html", str(DATA)), "is a folder"),
        (("--rivals", "x", "--checkpoint", str(CHECKPOINT)), "--rivals: unknown x"),
        (("--attach", str(CHECKPOINT / "config.json")), "found None, wanted a benchmark's document"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_one_line(bundle: Path, words: tuple[str, ...], told: str, capsys: Captured) -> None:
    assert told in refusal("bench", bundle, *words, capsys=capsys)


def test_the_same_name_twice_is_an_error(bundle: Path, capsys: Captured) -> None:
    assert "two bundles are called" in refusal("bench", bundle, bundle, capsys=capsys)
