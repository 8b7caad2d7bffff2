"""It works without what only Unix has: modules, signals, /proc, files that are replaced while they are open."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DATA

ROOT = Path(__file__).parents[2]
_PROGRAM = "import tests.scenes.other_system, sys; from edgeclip.__main__ import main; sys.exit(main())"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def run(cache: Path, *arguments: object) -> tuple[str, str]:
    """stdout and stderr of `edgeclip ARGUMENTS` in a process that resembles one on Windows."""
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)], capture_output=True, encoding="utf-8", timeout=100,
        env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_texts_and_images_are_embedded_and_checked(bundle: Path, cache: Path) -> None:
    line, words = run(cache, "embed", bundle, "--text", "a", "--image", DATA / "images" / "gray.jpg")
    assert [list(json.loads(one)) for one in line.splitlines()] == [["text", "embedding"], ["image", "embedding"]]
    assert words == ""
    assert "self-test on cpu" in run(cache, "check", bundle)[0]
    assert "CPUExecutionProvider  runs" in run(cache, "doctor")[0]


@pytest.mark.parametrize("name", ["v.npy", "v.jsonl"])
def test_a_file_of_vectors_is_written_and_replaced(bundle: Path, cache: Path, tmp_path: Path, name: str) -> None:
    command = ("embed", bundle, "--images", DATA / "images", "--text", "a", "--out", tmp_path / name)
    words = run(cache, *command)[1]
    first = (tmp_path / name).read_bytes()
    assert "on cpu" in words and run(cache, *command)[1] == words
    assert (tmp_path / name).read_bytes() == first and not (tmp_path / f"{name}.partial").exists()


def test_weights_are_packed_used_and_removed(int8_bundle: Path, cache: Path) -> None:
    """The folder of packed weights gets its name when nothing in it is open or mapped any more."""
    before = run(cache, "embed", int8_bundle, "--text", "a")
    assert json.loads(run(cache, "prepack", int8_bundle, "--json")[0])["graphs"]
    assert run(cache, "embed", int8_bundle, "--text", "a") == before
    assert json.loads(run(cache, "prepack", int8_bundle, "--remove", "--json")[0])["freed_bytes"] > 0


def test_a_model_repository_is_written(bundle: Path, cache: Path, tmp_path: Path) -> None:
    run(cache, "export-triton", bundle, tmp_path / "repository")
    assert (tmp_path / "repository" / "text_model" / "config.pbtxt").is_file()


def test_multi_vectors_are_saved_over_older_ones(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    program = (
        "import tests.scenes.other_system, sys, numpy as np; from edgeclip import MultiVectors\n"
        "vectors = MultiVectors.of([np.eye(4, dtype=np.float32)])\n"
        "vectors.save(sys.argv[1]); vectors.save(sys.argv[1]); assert len(MultiVectors.load(sys.argv[1])) == 1"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, cwd=ROOT, timeout=60)
    with np.load(path) as found:
        assert found["rows"].shape == (4, 4)
