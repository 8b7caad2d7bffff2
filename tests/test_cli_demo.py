"""`edgeclip demo`: what it prints is true, what it leaves is whole, and what it cannot write is one line."""

from pathlib import Path

import pytest
from PIL import Image

from edgeclip_bench.contact_sheet import RIGHT
from edgeclip_export.demo.captions import LANGUAGES
from edgeclip_export.demo.layout import MATRYOSHKA_DIMS
from tests.command import Captured, refusal, run


def test_it_goes_the_whole_way(tmp_path: Path, capsys: Captured) -> None:
    keep, sheet = tmp_path / "demo", tmp_path / "sheet.png"
    status, out, err = run("demo", "--keep", keep, "--sheet", sheet, capsys=capsys)
    assert status == 0
    assert "running on cpu" in out
    assert "500 pictures of combinations that training never showed" in out
    for title in ("recall@5, text to image", "recall@5, image to text"):
        table = out.split(title)[1].split("\n\n")[0].splitlines()
        assert [int(word) for word in table[0].split() if word.isdigit()] == sorted(MATRYOSHKA_DIMS, reverse=True)
        rows = {words[0]: [float(word) for word in words[1:]] for words in map(str.split, table[1:])}
        assert list(rows) == [*LANGUAGES, "all"]
        assert all(0.8 < recall <= 1 for row in rows.values() for recall in row)
        mean = sum(row[0] for language, row in rows.items() if language != "all") / len(LANGUAGES)
        assert rows["all"][0] == pytest.approx(mean, abs=1e-3)
    assert "where the time went" in out
    assert err == (
        f"\n{sheet}: what the questions found, as pictures\n"
        f"{keep}: bundle and pictures; try `edgeclip eval {keep}/bundle {keep}/pictures`\n"
    )
    assert {path.name for path in keep.iterdir()} == {"bundle", "pictures", "search.png"}
    with Image.open(sheet) as picture:
        frame = tuple(bytes.fromhex(RIGHT.removeprefix("#")))
        assert any(colour == frame for _, colour in picture.getcolors(1 << 24) or ())
    assert run("check", keep / "bundle", capsys=capsys)[0] == 0
    assert "cannot be made (File exists)" in refusal("demo", "--keep", keep, "--sheet", sheet, capsys=capsys)


def test_a_sheet_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, capsys: Captured) -> None:
    assert refusal("demo", "--sheet", tmp_path, capsys=capsys) == f"--sheet {tmp_path}: is a folder"
    missing = tmp_path / "missing" / "sheet.png"
    assert refusal("demo", "--sheet", missing, capsys=capsys).startswith(f"--sheet {missing}: ")
