"""`edgeclip embed --multivector`: the encoder's multi vectors, as JSON lines or as a file of MultiVectors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip import Encoder, MultiVectors
from edgeclip.cli import vector_file
from tests.scenes.command import Captured, refusal, run
from tests.scenes.page_bundle import make_page_bundle

TASK = ("--task", "retrieval.passage")
TEXTS = ["what is the capital", "x", "France"]
# The same text in another batch. Measured: 2e-7.
SAME = 5e-6


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_page_bundle(tmp_path_factory.mktemp("pages") / "bundle")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(9)
    paths = []
    for index, size in enumerate(((60, 100), (90, 60), (200, 40))):
        pixels = draw.integers(0, 256, (size[1], size[0], 3), np.uint8)
        paths.append(str(folder / f"{index}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths


def options(texts: list[str], images: list[str]) -> list[str]:
    given = [option for text in texts for option in ("--text", text)]
    return [*given, *(option for image in images for option in ("--image", image)), *TASK, "--multivector"]


def wanted(pages: Path, pictures: list[str]) -> list[Any]:
    with Encoder.open(pages, device="cpu") as encoder:
        texts = encoder.encode_text_multivector(TEXTS, task=TASK[1])
        return [*texts, *encoder.encode_image_multivector(pictures, task=TASK[1])]


def test_json_lines_hold_a_vector_for_each_token(pages: Path, pictures: list[str], capsys: Captured) -> None:
    status, out, err = run("embed", pages, *options(TEXTS, pictures), capsys=capsys)
    assert (status, err) == (0, "")
    documents = [json.loads(line) for line in out.splitlines()]
    assert [next(iter(document.items())) for document in documents] == [
        *(("text", text) for text in TEXTS),
        *(("image", path) for path in pictures),
    ]
    for document, matrix in zip(documents, wanted(pages, pictures), strict=True):
        assert list(document)[1:] == ["embeddings"]
        np.testing.assert_allclose(np.array(document["embeddings"], np.float32), matrix, atol=SAME)


def test_a_file_of_multi_vectors(pages: Path, pictures: list[str], tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "pages.npz"
    status, printed, err = run("embed", pages, *options(TEXTS, pictures), "--out", out, capsys=capsys)
    assert (status, printed) == (0, "") and err == f"{out}: 3 texts, 3 images, 16 dimensions, on cpu\n"
    found, matrices = MultiVectors.load(out), wanted(pages, pictures)
    assert found.lengths.tolist() == list(map(len, matrices))
    np.testing.assert_allclose(found.rows, np.concatenate(matrices), atol=SAME)
    rows = [json.loads(line) for line in (tmp_path / "pages.npz.rows.jsonl").read_text("utf-8").splitlines()]
    assert [(row["row"], row["rows"]) for row in rows] == list(zip(found.starts, found.lengths, strict=False))
    assert rows[1]["text"] == "x" and rows[5]["image"] == pictures[2]
    assert {path.name for path in tmp_path.iterdir()} == {
        "pages.npz",
        "pages.npz.rows.jsonl",
        "pages.npz.job.json",
    }


def test_an_interrupted_file_goes_on(
    pages: Path, pictures: list[str], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it was interrupted while it was packed, and the finished file is the same to the last bit."""
    out, whole = tmp_path / "pages.npz", tmp_path / "whole.npz"
    assert run("embed", pages, *options(TEXTS, pictures), "--out", whole, capsys=capsys)[0] == 0
    pack = vector_file.VectorFile._pack

    def interrupted(file: vector_file.VectorFile) -> None:
        pack(file)
        raise KeyboardInterrupt

    monkeypatch.setattr(vector_file.VectorFile, "_pack", interrupted)
    assert run("embed", pages, *options(TEXTS, pictures), "--out", out, capsys=capsys)[0] == 130
    assert not out.exists() and (tmp_path / "pages.npz.partial" / "packed").exists()
    monkeypatch.setattr(vector_file.VectorFile, "_pack", pack)
    status, _, err = run("embed", pages, *options(TEXTS, pictures), "--out", out, "--resume", capsys=capsys)
    assert status == 0 and "6 of 6 are done" in err
    found, wanted_vectors = MultiVectors.load(out), MultiVectors.load(whole)
    np.testing.assert_array_equal(found.rows, wanted_vectors.rows)
    np.testing.assert_array_equal(found.starts, wanted_vectors.starts)
    status, _, err = run("embed", pages, *options(TEXTS, pictures), "--out", out, "--resume", capsys=capsys)
    assert status == 0 and "is finished" in err


def test_broken_pages_are_skipped(pages: Path, pictures: list[str], tmp_path: Path, capsys: Captured) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = [pictures[0], str(broken), pictures[1]]
    out = tmp_path / "pages.npz"
    status, _, err = run("embed", pages, *options([], images), "--skip-broken", "--out", out, capsys=capsys)
    assert status == 1 and "skipped image 1" in err
    assert len(MultiVectors.load(out)) == 2
    status, printed, _ = run("embed", pages, *options([], images), "--skip-broken", capsys=capsys)
    documents = [json.loads(line) for line in printed.splitlines()]
    assert status == 1 and documents[1]["embeddings"] is None and "error" in documents[1]


def test_a_limit_of_pixels_reaches_the_encoder(pages: Path, pictures: list[str], capsys: Captured) -> None:
    limit = ("--max-pixels", 28 * 28 * 6)
    status, out, _ = run("embed", pages, *options([], pictures[:1]), *limit, capsys=capsys)
    assert status == 0
    with Encoder.open(pages, device="cpu") as encoder:
        matrix = encoder.encode_image_multivector(pictures[0], task=TASK[1], max_pixels=28 * 28 * 6)
    assert len(json.loads(out)["embeddings"]) == len(matrix)
    status, out, _ = run("embed", pages, "--image", pictures[0], *TASK, *limit, capsys=capsys)
    assert status == 0 and len(json.loads(out)["embedding"]) == 64


def test_what_does_not_fit_is_refused(pages: Path, bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    refused = ("embed", pages, "--text", "a", *TASK)
    assert ".npz or .jsonl" in refusal(*refused, "--multivector", "--out", tmp_path / "a.npy", capsys=capsys)
    assert ".npy or .jsonl" in refusal(*refused, "--out", tmp_path / "a.npz", capsys=capsys)
    assert "needs a task" in refusal("embed", pages, "--text", "a", "--multivector", capsys=capsys)
    no_multi = refusal("embed", bundle, "--text", "a", "--multivector", "--out", tmp_path / "a.npz", capsys=capsys)
    assert "gives no multi vectors" in no_multi
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as caught:
        run(*refused, "--multivector", "--truncate-dim", 16, capsys=capsys)
    assert caught.value.code == 2 and "--truncate-dim is for single vectors" in capsys.readouterr().err
