"""`edgeclip eval`: tables or one JSON document on stdout, files that are whole, mistakes in one line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeclip import Manifest
from edgeclip_bench.quality.evaluate import evaluate
from edgeclip_bench.quality.layouts import open_data
from tests.scenes.command import Captured, refusal, run, run_process
from tests.scenes.damage import reseal
from tests.scenes.evaluation_data import draw_images, perturbed
from tests.scenes.layout_files import write_lines
from tests.scenes.permissions import bound_by_permissions

PAIRS = [{"sentence1": f"one {index}", "sentence2": f"{index * 7 % 9} two", "score": index} for index in range(9)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, and nobody else's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "edgeclip" / "embeddings"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Captions in edgeclip's own layout, two languages."""
    images = draw_images(tmp_path / "pictures" / "images", 6)
    lines = [
        {"image": path.name, "captions": {"en": [f"picture {path.stem}", "another"], "zh": f"图片 {path.stem}"}}
        for path in images
    ]
    return write_lines(tmp_path / "pictures" / "captions.jsonl", lines).parent


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "pairs.jsonl", PAIRS)


def test_tables_are_the_default(bundle: Path, pictures: Path, capsys: Captured) -> None:
    status, out, err = run("eval", bundle, pictures, capsys=capsys)
    assert (status, err) == (0, "")
    assert out.startswith(f"Quality of {bundle}\n")
    assert "pictures, text to image: languages at 64 dimensions, per cent\nlanguage  samples" in out
    assert "pictures, image to text: 12 queries, mean over languages, by truncate_dim, per cent\ndim " in out


def test_json_is_the_evaluation(bundle: Path, pictures: Path, pairs: Path, capsys: Captured) -> None:
    options = ("--truncate-dim", 16, "--truncate-dim", 8, "--json", "--device", "cpu", "--threads", 1)
    status, out, err = run("eval", bundle, pictures, pairs, *options, capsys=capsys)
    assert (status, err) == (0, "")
    data = [*open_data(pictures), *open_data(pairs)]
    wanted = evaluate(bundle, data, truncate_dims=[8, 16], cache=None, device="cpu", threads=1)
    found = json.loads(out)
    assert found["dims"] == [8, 16, 64]
    for one, other in zip(found["data"], wanted.data, strict=True):
        figures = [(score["metric"], score["language"], score["dim"], score["value"]) for score in one["scores"]]
        assert figures == [(score.metric, score.language, score.dim, score.value) for score in other.scores]


def test_options_choose_the_data(bundle: Path, pictures: Path, tmp_path: Path, capsys: Captured) -> None:
    moved = (pictures / "images").rename(tmp_path / "elsewhere")
    options = ("--images", moved, "--language", "zh", "--name", "mine", "--limit", 4, "--truncate-dim", 8)
    status, out, _ = run("eval", bundle, pictures, *options, "--task", "retrieval.query", "--json", capsys=capsys)
    assert status == 0
    (data,) = json.loads(out)["data"]
    assert (data["name"], data["languages"], data["task"]) == ("mine", ["zh"], "retrieval.query")
    assert data["sizes"] == {"images": 4, "captions": 4}


def test_a_second_run_takes_all_from_the_cache(bundle: Path, pairs: Path, cache: Path, capsys: Captured) -> None:
    command = ("eval", bundle, pairs, "--truncate-dim", 64)
    assert "of 18 inputs 18 embedded, 0 from the cache" in run(*command, capsys=capsys)[1]
    assert "of 18 inputs 0 embedded, 18 from the cache" in run(*command, capsys=capsys)[1]
    (file,) = cache.iterdir()
    file.write_bytes(b"damaged " * 1000)
    done = run_process(*command)  # here a warning is an error
    assert done.returncode == 0 and "of 18 inputs 18 embedded" in done.stdout
    assert (
        done.stderr.startswith(f"edgeclip: the cache {file.parent} cannot be used (") and done.stderr.count("\n") == 1
    )


def test_another_cache_or_none(bundle: Path, pairs: Path, tmp_path: Path, cache: Path, capsys: Captured) -> None:
    command = ("eval", bundle, pairs, "--truncate-dim", 64)
    for _ in range(2):
        assert "18 embedded" in run(*command, "--no-cache", capsys=capsys)[1]
    run(*command, "--cache", tmp_path / "here", capsys=capsys)
    assert (tmp_path / "here").is_dir() and not cache.exists()
    with pytest.raises(SystemExit) as left:
        run(*command, "--cache", tmp_path / "here", "--no-cache", capsys=capsys)
    assert left.value.code == 2


def test_out_holds_report_and_curves(bundle: Path, pictures: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "new" / "folder"
    for _ in range(2):  # a second run replaces the first one's
        status, document, err = run("eval", bundle, pictures, "--json", "--out", out, capsys=capsys)
        assert (status, err) == (0, f"{out}: curve.png, curve.svg, report.json, report.md\n")
    assert sorted(path.name for path in out.iterdir()) == ["curve.png", "curve.svg", "report.json", "report.md"]
    assert (out / "report.json").read_text(encoding="utf-8") == document
    assert (out / "report.md").read_text(encoding="utf-8").startswith(f"# Quality of {bundle}\n")


def test_a_comparison(bundle: Path, pictures: Path, tmp_path: Path, capsys: Captured) -> None:
    other = perturbed(bundle, tmp_path / "other", "vision")
    options = ("--against", other, "--truncate-dim", 16, "--out", tmp_path / "out")
    status, out, _ = run("eval", bundle, pictures, *options, capsys=capsys)
    assert status == 0
    assert out.startswith(f"Quality of {bundle} against {other}\n")
    assert "pictures, image: inputs with the lowest cosines\n" in out
    document = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert {one["points"] for one in document["differences"]} != {0.0}
    assert len(document["worst"]) == 10 + 6


def test_mistakes_are_one_line(bundle: Path, pairs: Path, pictures: Path, tmp_path: Path, capsys: Captured) -> None:
    missing = tmp_path / "none"
    (tmp_path / "file").touch()
    said = {
        (bundle, missing): f"{missing}: no such file or folder",
        (missing, pairs): f"{missing}: no such bundle",
        (bundle, pairs, "--truncate-dim", 65): "truncate_dim is 65, wanted an int from 1 to 64",
        (bundle, pairs, "--against", missing): f"{missing}: no such bundle",
        (bundle, pairs, pairs): (
            "2 data sets are called pairs; evaluate one at a time, or rename the file or folder of one"
        ),
        (bundle, pictures, "--task", "x"): "task is 'x', wanted None or one that the model knows: 'retrieval.query'",
        (
            bundle,
            pairs,
            "--out",
            tmp_path / "file",
        ): f"--out {tmp_path / 'file'}: no folder can be made there (File exists)",
    }
    for arguments, message in said.items():
        assert refusal("eval", *arguments, capsys=capsys) == message
    (pictures / "images" / "0003.png").write_bytes(b"no image")
    assert str(pictures / "images" / "0003.png") in refusal("eval", bundle, pictures, capsys=capsys)
    assert run_process("eval", bundle).returncode == 2


@bound_by_permissions
def test_a_folder_that_may_not_be_written_to_is_said_first(
    bundle: Path, pairs: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be written to" in refusal("eval", bundle, pairs, "--out", tmp_path / "closed", capsys=capsys)


def test_nothing_is_left_in_out_when_a_file_cannot_be_written(
    bundle: Path, pairs: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out"
    (out / "report.md").mkdir(parents=True)  # a folder where the file belongs
    status, _, err = run("eval", bundle, pairs, "--truncate-dim", 64, "--out", out, capsys=capsys)
    assert status == 1
    assert err.startswith(f"edgeclip: --out {out}: cannot be written (")
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]


def test_warnings_as_errors_do_not_cost_the_report(copied_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    """A caption that is too long is one line and status 1, after all is written; a stray file is one line alone."""
    bundle = copied_bundle
    reseal(bundle, text=dataclasses.replace(Manifest.read(bundle).need_text(), max_length=8))
    (pictures / "images" / "notes.md").touch()
    for image in (pictures / "images").glob("*.png"):
        image.with_suffix(".txt").write_text("a caption " * 9)
    command = [sys.executable, "-W", "error", "-m", "edgeclip", "eval", bundle, pictures / "images"]
    for against in ((), ("--against", bundle)):
        out = tmp_path / f"report{len(against)}"
        done = subprocess.run([*command, *against, "--out", out], capture_output=True, text=True, check=False)
        notes, written, cut = done.stderr.splitlines()
        assert notes == f"edgeclip: {pictures / 'images'}: left out 1 file that is no image, e.g. notes.md"
        assert written.startswith(f"{out}: ") and (out / "report.json").is_file()
        assert "6 texts were cut to" in cut and cut.endswith("(a TruncationWarning, and warnings are errors here)")
        assert done.returncode == 1 and done.stdout.startswith("Quality of")
