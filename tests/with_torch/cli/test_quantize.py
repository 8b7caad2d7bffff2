"""`edgeclip quantize`: what is wrong is found before the work, recipes stand side by side, and one is taken."""

import contextlib
import json
import os
import shutil
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip import Manifest
from edgeclip.cli import main
from edgeclip.cli.recipe_table import format_recipes
from edgeclip.engine.advice import advise_here
from edgeclip.engine.products import probe_products
from edgeclip.host.installation import install_command
from edgeclip.manifest import FIRST_GRAPH, Modality, Target
from edgeclip_quant.budget import parse_budget
from edgeclip_quant.pick.pareto import front, pick
from edgeclip_quant.recipes import COMPARED
from tests.scenes.command import Captured, refusal, run
from tests.scenes.compared import all_recipes, candidate, comparison
from tests.scenes.pauses import no_pauses as no_pauses
from tests.scenes.permissions import bound_by_permissions

if sys.platform == "linux":
    import fcntl
    import pty
    import termios

FEW = tuple(one for one in COMPARED if one.name in ("int8", "int8-dynamic", "int4"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures with two captions each."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    draw = np.random.default_rng(2)
    lines = []
    for index in range(12):
        pixels = np.kron(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((20, 20, 1), np.uint8))
        Image.fromarray(pixels).save(folder / f"{index}.png")
        captions = [f"picture {index} of some colours", f"a square, number {index}"]
        lines.append(json.dumps({"image": f"{index}.png", "captions": captions}))
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def misuse(*arguments: object, capsys: Captured) -> str:
    """Wrong usage: status 2, one line, and nothing on stdout."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("edgeclip quantize: ") and err.count("\n") == 1
    return str(err.removeprefix("edgeclip quantize: ").removesuffix("; `edgeclip quantize --help` shows the usage\n"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["b"], "nothing to do: give OUT and --to, or --report, or all of them"),
        (["b", "out"], "OUT out without --to: what is to be written there?"),
        (["b", "out", "--report"], "OUT out without --to: what is to be written there?"),
        (["b", "--to", "int8"], "--to int8 without OUT: where is the bundle to be written?"),
        (["b", "--report", "--budget", "size_mb=9"], "--budget is for a bundle that is written: give OUT and --to"),
        (["b", "out", "--to", "int8", "--json"], "--json is for --report"),
        (["b", "out", "--to", "auto", "--json"], "--json is for --report"),
        (["b", "out", "--to", "auto", "--report", "out"], "--report out would lie in OUT: choose another folder"),
        (["b", "out", "--to", "auto", "--report", "out/r"], "--report out/r would lie in OUT: choose another folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_status_2(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Before the bundle, which is not there, is looked at."""
    monkeypatch.chdir(tmp_path)
    assert misuse("quantize", *arguments, capsys=capsys) == told
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Place:
    """A bundle, a folder to write to, and how `edgeclip quantize` refuses there."""

    bundle: Path
    tmp: Path
    capsys: Captured

    def refuse(self, *options: object, bundle: Path | None = None) -> str:
        # Reading the calibration would be an error of its own, so whatever is said was found before it.
        options = (*options, "--calibrate", self.tmp / "nowhere")
        return refusal("quantize", bundle or self.bundle, *options, capsys=self.capsys)


@pytest.fixture
def place(bundle: Path, tmp_path: Path, capsys: Captured) -> Place:
    return Place(bundle, tmp_path, capsys)


@pytest.mark.parametrize("to", ["int8", "auto"])
def test_a_taken_or_impossible_out_is_found_before_the_work(place: Place, to: str) -> None:
    (place.tmp / "taken").mkdir()
    (place.tmp / "file").touch()
    taken = place.refuse(place.tmp / "taken", "--to", to)
    assert taken == f"{place.tmp / 'taken'}: exists already; remove it or choose another name"
    assert place.refuse(place.tmp / "file", "--to", to).endswith("exists already; remove it or choose another name")
    assert "cannot be written (" in place.refuse(place.tmp / "file" / "out", "--to", to)


@bound_by_permissions
def test_a_closed_folder_is_found_before_the_work(place: Place) -> None:
    closed = place.tmp / "closed"
    closed.mkdir(mode=0o500)
    assert "no right to write in" in place.refuse(closed / "out", "--to", "auto")
    assert "cannot be written to" in place.refuse("--report", closed)


def test_an_impossible_report_is_found_before_the_work(place: Place) -> None:
    (place.tmp / "file").touch()
    assert "no folder can be made there (File exists)" in place.refuse("--report", place.tmp / "file")
    told = place.refuse("--report", place.tmp)
    assert told.startswith(f"--report {place.tmp}: holds file, which is of no report; choose a folder that is new")


@pytest.mark.parametrize(
    ("target", "options"),
    [("cuda", ["--report", "r"]), ("tensorrt", ["--report", "r"]), ("cuda", ["out", "--to", "auto"])],
)
def test_recipes_are_for_the_cpu(
    place: Place, bundles: dict[Target, Path], target: Target, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.tmp)
    told = place.refuse(*options, bundle=bundles[target])
    assert told.startswith(
        f"{bundles[target]}: is fp32/fp32 for {target}; recipes are compared on an fp32 bundle for"
    )
    assert list(place.tmp.iterdir()) == []


def test_another_precision_than_the_targets_is_found_before_the_report(place: Place) -> None:
    told = place.refuse(place.tmp / "out", "--to", "fp16", "--report", place.tmp / "r")
    assert "fp16 is made of an fp32 bundle for cuda" in told
    assert list(place.tmp.iterdir()) == []


def test_a_report_without_the_bench_extra_says_so_before_the_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("edgeclip_bench", "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = place.refuse("--report", place.tmp / "r")
    assert told == f"matplotlib is not installed: `{install_command('bench')}`"
    assert list(place.tmp.iterdir()) == []


def test_nothing_compared_needs_the_bench_extra(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """auto without a report: the recipes that are never picked are left out, and a table says what was compared."""
    for name in [name for name in sys.modules if name.startswith(("edgeclip_bench", "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("edgeclip_quant.recipes.COMPARED", FEW)
    arguments = ("quantize", bundle, tmp_path / "out", "--to", "auto", "--budget", "cosine=0.5,recall=100")
    status, out, err = run(*arguments, capsys=capsys)
    assert status == 0
    assert "int8" in out and "int4" in out and "int8-dynamic" not in out
    first, second = err.split("\n")[:2]
    assert first.startswith("picked text int") and "of 4 choices within cosine=0.5,recall=100, 4 compared" in first
    assert second.startswith(f"{tmp_path / 'out'}: ")
    assert Manifest.read(tmp_path / "out").graphs["text"].precision in ("int8", "int4")


def test_auto_with_a_report_picks_and_tells(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("edgeclip_quant.recipes.COMPARED", FEW)
    report, out = tmp_path / "deep" / "report", tmp_path / "out"
    arguments = ("quantize", bundle, out, "--to", "auto", "--report", report, "--json", "--calibrate", photos)
    bounds = ("--cpu", "vnni", "--budget", "cosine=0.9,recall=100,size_mb=9")
    status, stdout, err = run(*arguments, *bounds, capsys=capsys)
    assert status == 0
    document = json.loads(stdout)
    assert document == json.loads((report / "recipes.json").read_text())
    rows = document["candidates"]
    names = ("int8", "int8-dynamic", "int4")
    assert [(row["graph"], row["recipe"]) for row in rows] == [
        (graph, name) for graph in FIRST_GRAPH.values() for name in names
    ]
    assert [row["never_taken"] for row in rows] == [None, "a vector depends on its batch", None] * 2
    assert {row["measured"]["data"] for row in rows} == {"photos"}
    assert rows[0]["measured"]["retrieval"]["truth"] == "captions"
    assert document["budget"] == {"cosine": 0.9, "recall_points": 100.0, "size_mb": 9.0}
    manifest = Manifest.read(out)
    for graph in FIRST_GRAPH.values():
        (row,) = (row for row in rows if (row["graph"], row["recipe"]) == (graph, document["picked"][graph]))
        assert row["kernels"] == manifest.graphs[graph].kernels
    told, picked, written = err.rstrip("\n").split("\n")
    assert told == f"{report}: recipes.json, recipes.png, recipes.svg"
    assert picked.startswith(f"picked text {document['picked']['text']}, vision {document['picked']['vision']}: ")
    assert f"this machine should run {advise_here()}" in picked
    assert written.startswith(f"{out}: ") and "worst cosine on photos" in written


def test_a_bundle_for_another_processor(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """`--cpu` names it, `auto` finds this machine's; a bundle that needs a guard here is said to."""
    no_vnni = replace(probe_products(), adds_in_16_bits=True)
    for module in ("edgeclip.cli.quantize", "edgeclip.engine.advice"):
        monkeypatch.setattr(f"{module}.probe_products", lambda: no_vnni)
    monkeypatch.setattr("edgeclip_quant.quantize.adds_in_16_bits", lambda: True)
    for number, (options, kernel) in enumerate(((("--cpu", "auto"), "int7 per row"), ((), "int8 per row"))):
        out = tmp_path / str(number)
        status, stdout, err = run("quantize", bundle, out, "--to", "int8", *options, capsys=capsys)
        assert (status, stdout) == (0, "")
        assert all(facts.kernels[kernel] > 0 for facts in Manifest.read(out).graphs.values())
        assert ("this machine should run int8 of 7 bits" in err) is (kernel == "int8 per row")
    monkeypatch.setattr("edgeclip_quant.recipes.COMPARED", FEW[:1])
    status, stdout, err = run("quantize", bundle, "--report", tmp_path / "report", capsys=capsys)
    assert status == 0 and "int8-avx2, default" in stdout


def test_a_report_shows_why_a_budget_allows_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("edgeclip_quant.recipes.COMPARED", FEW[:1])
    report = tmp_path / "report"
    arguments = ("quantize", bundle, tmp_path / "out", "--to", "auto", "--cpu", "vnni", "--report", report)
    status, out, err = run(*arguments, "--budget", "size_mb=0.01", capsys=capsys)
    assert status == 1
    assert "* int8, default" in out
    assert sorted(path.name for path in report.iterdir()) == ["recipes.json", "recipes.png", "recipes.svg"]
    last = err.rstrip("\n").split("\n")[-1]
    assert last.startswith(
        "edgeclip: no choice of recipes is within the budget: the smallest bundle that keeps a cosine"
    )
    assert last.endswith("wanted 0.01; allow more (--budget)")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def lines_of(table: str, modality: Modality) -> list[str]:
    """The title, the header and the rows of the graph that a modality enters by."""
    return table.split(f"{FIRST_GRAPH[modality]} graph of ", 1)[1].split("\n\n", 1)[0].split("\n")


def test_a_table_shows_the_front_the_default_and_the_pick() -> None:
    found = comparison(
        *(one for one in all_recipes().candidates if one.recipe.name != "int8-per-row"),
        candidate("text", "int8-per-row", time=1.1, mb=2.0, cosine=0.5),
    )
    best = [one for one in front(found) if one.modality == "text"]
    picked = pick(found, parse_budget("cosine=0.99", "int8"))
    assert picked is not None
    (taken,) = (one for one in picked.choice.candidates if one.modality == "text")
    title, header, fp32, *rows = lines_of(format_recipes(found, picked), "text")
    assert title == "a model: 8 texts (photos), time of 16 tokens on a processor, 2 threads"
    assert header.split() == ["recipe", "MB", "time", "worst", "cosine", "mean", "cosine", "recall@5"]
    assert fp32.split() == ["fp32", "4.00", "1.00", "1", "1", "as", "it", "was"]
    assert len(rows) == len(COMPARED)
    for one, row in zip(found.of("text"), rows, strict=True):
        mark, name = row[0], row[2:].split()[0].rstrip(",")
        assert name == one.recipe.name
        assert mark == ("*" if one in best else "-" if not one.recipe.is_independent else " ")
        assert ("default" in row.split(one.recipe.describes)[0]) == (name == "int8")
        assert ("picked" in row) == (one is taken)
        assert f" {one.measured.worst_cosine:.5f} " in row and row.endswith(one.recipe.describes)
    columns = {row.index(one.recipe.describes) for one, row in zip(found.of("text"), rows, strict=True)}
    assert len(columns) == 1, "what is said of the recipes begins in one column"
    assert {"*", "-", " "} == {row[0] for row in rows}


def test_a_table_says_why_a_recipe_is_never_taken() -> None:
    table = format_recipes(all_recipes(is_made_up=True), None)
    assert "- never taken: int8-dynamic, int8-dynamic-smooth (a vector depends on its batch)" in table
    assert "- never taken: int8-static (made-up inputs cannot fix scales)" in table
    assert "never taken" not in format_recipes(comparison(), None)


def test_a_table_says_what_was_moved_and_stands_nan() -> None:
    found = comparison(candidate("text", "int4", kept=0.99), candidate("text", "int8", cosine=float("nan")))
    _, _, _, moved, broken = lines_of(format_recipes(found, None), "text")
    assert moved.endswith("; layers finer, for a cosine of 0.99")
    assert " nan " in broken


@pytest.mark.skipif(sys.platform != "linux", reason="needs a terminal of its own")
def test_a_report_alone_in_a_narrow_terminal(bundle: Path, tmp_path: Path) -> None:
    """What is tried stands in lines that fit and are gone when the table comes; no bundle is written."""
    program = (
        "import sys, edgeclip_quant.recipes as recipes; from edgeclip.cli import main;"
        "recipes.COMPARED = (recipes.COMPARED[4],); sys.exit(main(sys.argv[1:]))"
    )
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", program, "quantize", str(bundle), "--report"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    content = b""
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while part := os.read(terminal, 65536):
            content += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    bar, table = content.decode().split("text graph of ")
    lines = [line for line in bar.split("\r") if "%" in line]
    assert any(line.startswith("int8-dynamic-smooth: timing image vectors") for line in lines)
    assert all(len(line) < 60 for line in lines)
    cleared, words, _ = bar.split("\r")[-3:]
    assert cleared.strip() == "" and words == "quantize-report: recipes.json, recipes.png, recipes.svg"
    assert "- int8-dynamic-smooth" in table and "picked" not in table
    assert [path.name for path in tmp_path.iterdir()] == ["quantize-report"]


def test_skipped_images_are_named_and_the_exit_status_is_1(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """The report is written all the same; without --skip-broken the first of them ends it."""
    monkeypatch.setattr("edgeclip_quant.recipes.COMPARED", FEW[:1])
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "3.png").unlink()
    (folder / "4.png").write_bytes(b"")
    command = ("quantize", bundle, "--report", tmp_path / "report", "--calibrate", folder)
    assert "image '3.png' is not in" in refusal(*command, capsys=capsys)
    status, _, err = run(*command, "--skip-broken", capsys=capsys)
    assert status == 1 and (tmp_path / "report" / "recipes.json").is_file()
    missing, broken = err.splitlines()[:2]
    assert missing.startswith(f"edgeclip: skipped: {folder / 'captions.jsonl'}:4: image '3.png' is not in {folder}")
    assert broken == f"edgeclip: skipped: --calibrate: image ({folder / '4.png'}): is empty (0 bytes)"
