"""`edgeclip demo`: what it prints is true, what it leaves is whole, and what it cannot do is one line."""

import re
from pathlib import Path

import pytest
from PIL import Image

from edgeclip import Manifest
from edgeclip.cli.demo import check_int8
from edgeclip.errors import BuildError
from edgeclip.tables import format_bytes
from edgeclip_bench.demo.captions import LANGUAGES
from edgeclip_bench.demo.contact_sheet import RIGHT
from edgeclip_bench.demo.layout import MATRYOSHKA_DIMS
from edgeclip_bench.demo.pages.questions import LANGUAGES as PAGES_IN
from edgeclip_bench.demo.report import render_demo
from edgeclip_bench.demo.run import LANGUAGES as ASKED
from edgeclip_bench.demo.run import run_demo
from edgeclip_quant.budget import Budget
from tests.scenes.command import Captured, refusal, run

# Of 100 pictures one is a point. int8 moved it by 0.2 on 500, overall and either way.
_ALIKE = 0.02
# quantize's own budget for it, which the demo's own inputs keep too.
_WORST_COSINE = 0.99


def table_of(out: str, title: str) -> dict[str, list[str]]:
    """The rows of the table whose header begins so: their first word, and the other ones."""
    lines = out[out.index(f"\n{title}") + 1 :].split("\n\n")[0].splitlines()
    return {row.split()[0]: row.split()[1:] for row in lines[1:]}


def test_it_goes_the_whole_way(tmp_path: Path, capsys: Captured) -> None:
    keep, sheet = tmp_path / "demo", tmp_path / "sheet.png"
    status, out, err = run("demo", "--images", "100", "--keep", keep, "--sheet", sheet, capsys=capsys)
    assert status == 0
    assert "running on cpu" in out
    assert "100 pictures of combinations that training never showed" in out
    by_language = {name: list(map(float, row)) for name, row in table_of(out, "recall@5 at 128 dims").items()}
    assert list(by_language) == [*LANGUAGES, "all"]
    assert all(len(row) == 4 and 0.8 < recall <= 1 for row in by_language.values() for recall in row)
    overall = by_language.pop("all")
    for column, recall in enumerate(overall):
        mean = sum(row[column] for row in by_language.values()) / len(by_language)
        assert recall == pytest.approx(mean, abs=1e-3)
    moves = [float(points) for points in re.findall(r"by ([+-][0-9.]+) points", out)]
    for (fp32, int8), points in zip((overall[:2], overall[2:]), moves, strict=True):
        assert int8 == pytest.approx(fp32, abs=_ALIKE)
        assert points == pytest.approx(100 * (int8 - fp32), abs=0.1 + 1e-9)  # three decimals each
    by_dim = {int(dim): list(map(float, row[1:])) for dim, row in table_of(out, "recall@5, all languages").items()}
    assert list(by_dim) == sorted(MATRYOSHKA_DIMS, reverse=True)
    assert by_dim[max(by_dim)] == overall
    assert all(0.8 < recall <= 1 for row in by_dim.values() for recall in row)
    asked = table_of(out, "asked in")
    assert list(asked) == list(ASKED.values())
    assert all(1 <= int(place) <= 100 for row in asked.values() for place in row[:2])
    assert all(float(latency_ms) > 0 for row in asked.values() for latency_ms in row[2:4])
    check_costs(out, keep)
    assert "\nwhere the time went" in out
    assert err == (
        f"\n{sheet}: what the questions found, as pictures\n"
        f"{keep}: bundles and pictures; try `edgeclip eval {keep}/int8 {keep}/pictures --against {keep}/bundle`\n"
    )
    assert {path.name for path in keep.iterdir()} == {"bundle", "calibration", "int8", "pictures", "search.png"}
    with Image.open(sheet) as picture:
        frame = tuple(bytes.fromhex(RIGHT.removeprefix("#")))
        assert any(colour == frame for _, colour in picture.getcolors(1 << 24) or ())
    assert run("check", keep / "bundle", capsys=capsys)[0] == 0
    assert run("check", keep / "int8", capsys=capsys)[0] == 0
    assert "cannot be made (File exists)" in refusal("demo", "--keep", keep, "--sheet", sheet, capsys=capsys)


def check_costs(out: str, keep: Path) -> None:
    """The bundles' sizes, cosines of the demo's own inputs, and the times that the int8 bundle's proof says."""
    costs = out[out.index("\nwhat int8 saves and costs") + 1 :].split("\n\n")[0].splitlines()[1:]
    fp32, int8 = (Manifest.read(keep / name) for name in ("bundle", "int8"))
    assert {graph.precision for graph in int8.graphs.values()} == {"int8"}
    assert int8.weight_bytes < fp32.weight_bytes / 2
    sizes = f"{format_bytes(fp32.weight_bytes)} {format_bytes(int8.weight_bytes)}"
    assert " ".join(costs[0].split()) == f"bundle {sizes}"
    for line, inputs in zip(costs[1:3], ("1000 captions", "100 pictures"), strict=True):
        assert inputs in line
        assert _WORST_COSINE <= float(line.split()[-1]) < 1
    ratios = [one.latency_ratio for one in int8.measured if one.latency_ratio is not None]
    assert [line.split()[-1] for line in costs[3:]] == [f"{ratio:.2f}" for ratio in ratios]


def test_int8_that_breaks_its_budget_is_one_line_after_fp32s_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its size: for a cosine, layers would go back to fp32 until it is kept. What calibrates is no matter here."""
    monkeypatch.setattr("edgeclip_bench.demo.run._CALIBRATION_IMAGES", 8)
    found = run_demo(tmp_path / "demo", images=20, budget=Budget(cosine=None, recall_points=None, size_mb=1))
    assert found.figures.int8 is None
    assert not (tmp_path / "demo" / "int8").exists()
    out = render_demo(found)
    assert "int8" not in out.replace("quantise to int8", "")
    assert [len(row) for row in table_of(out, "recall@5 at 128 dims").values()] == [2] * (len(LANGUAGES) + 1)
    with pytest.raises(BuildError, match=r"^there is no int8 bundle, .* has 3\.\d MB, wanted 1 at most") as told:
        check_int8(found.figures)
    assert "\n" not in str(told.value)


def test_pictures_that_are_no_whole_families_are_said_before_the_work(capsys: Captured) -> None:
    for count in ("0", "-20", "30"):
        assert "wanted whole families of 20" in refusal("demo", "--images", count, capsys=capsys)


def test_a_sheet_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, capsys: Captured) -> None:
    assert refusal("demo", "--sheet", tmp_path, capsys=capsys) == f"--sheet {tmp_path}: is a folder"
    missing = tmp_path / "missing" / "sheet.png"
    assert refusal("demo", "--sheet", missing, capsys=capsys).startswith(f"--sheet {missing}: ")


def test_pages_go_the_whole_way(tmp_path: Path, capsys: Captured) -> None:
    keep, sheet = tmp_path / "demo", tmp_path / "pages.png"
    status, out, err = run("demo", "--pages", "--images", "48", "--keep", keep, "--sheet", sheet, capsys=capsys)
    assert status == 0, err
    assert "48 pages with facts that training never combined" in out and "384 questions in 8 languages" in out
    settings = out[out.index("\nndcg@5, all languages") + 1 :].split("\n\n")[0].splitlines()[1:]
    figures = {row.rsplit(maxsplit=2)[0].strip(): [float(one) for one in row.split()[-2:]] for row in settings}
    assert list(figures) == [
        *(f"single {dim}" for dim in (128, 64, 32)),
        *(f"multi 64{pooled}" for pooled in ("", ", pooled by 2", ", pooled by 4")),
    ]
    assert all(0.7 < fp32 <= 1 and abs(fp32 - int8) < _ALIKE for fp32, int8 in figures.values())
    assert [row.split()[0] for row in out.split("\nndcg@5 by")[1].split("\n\n")[0].splitlines()[1:]] == list(PAGES_IN)
    assert int(re.findall(r"asked for on (\d+)%", out)[0]) > 80
    assert f"try `edgeclip eval {keep}/int8 {keep}/pages --against {keep}/bundle`" in err
    with Image.open(sheet) as picture:
        assert picture.width > 700 and picture.height > 800
    for bundle in ("bundle", "int8"):
        assert run("check", keep / bundle, capsys=capsys)[0] == 0


def test_pages_that_are_no_whole_families_are_said_before_the_work(capsys: Captured) -> None:
    assert "wanted whole families of 12" in refusal("demo", "--pages", "--images", "20", capsys=capsys)
