"""Packed weights on disk: processes share them, vectors are the same to the last bit, damage costs a line.

`edgeclip prepack` is asked here as users ask it; the int8 bundle's graphs are packed, and the fp32 vision graph.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.engine.prepack.packed_weights import (
    PackedFacts,
    count_packed,
    find_packed,
    keep_packed,
    packed_root,
    remove_packed,
)
from edgeclip.engine.prepack.packing import find_packings
from edgeclip.engine.prepack.page_alignment import align_weights
from edgeclip.engine.providers import Plan
from edgeclip.errors import BuildError
from tests.scenes.command import NEEDS_SHELL, Captured, refusal, run, run_shell

FACTS = PackedFacts(files=("a" * 64, "b" * 64), onnxruntime="1.31.1", processor="fpu sse", plan=Plan(providers=()))
PIXELS = np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8)
NEEDS_MAPS = pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="reads what Linux says is mapped")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgeclip" / "prepacked"


def vectors(bundle: Path) -> NDArray[np.float32]:
    """A text's and an image's, from a fresh Encoder."""
    with Encoder.open(bundle, device="cpu", threads=1) as encoder:
        return np.stack([encoder.encode_text("a red bicycle"), encoder.encode_image(PIXELS)])  # (2, D)


def mapped(bundle: Path) -> list[Path]:
    """The files of weights that a process maps which has just encoded a text and an image."""
    program = """if True:
        import sys
        import numpy as np
        from edgeclip import Encoder
        with Encoder.open(sys.argv[1], device="cpu") as encoder:
            encoder.encode_text("a red bicycle"), encoder.encode_image(np.zeros((80, 80, 3), np.uint8))
            print("".join(sorted({line.split(maxsplit=5)[5] for line in open("/proc/self/maps") if "_data" in line})))
    """
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return [Path(line) for line in done.stdout.splitlines()]


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


@NEEDS_MAPS
def test_once_packed_the_weights_are_mapped(int8_bundle: Path, cache: Path, capsys: Captured) -> None:
    """Both graphs', and the vectors are what they were to the last bit."""
    before = vectors(int8_bundle)
    assert not any(path.is_relative_to(cache) for path in mapped(int8_bundle))
    status, out, err = run("prepack", int8_bundle, capsys=capsys)
    assert status == 0 and "text" in out and "vision" in out and err.count("\n") == 1
    names = [path.name for path in mapped(int8_bundle) if path.is_relative_to(cache)]
    assert sorted(names) == ["text.onnx_data", "vision.onnx_data"]
    assert np.array_equal(vectors(int8_bundle), before)
    assert capsys.readouterr().err == ""


def test_what_it_did_as_json_and_again_and_removed(int8_bundle: Path, cache: Path, capsys: Captured) -> None:
    first = json.loads(run("prepack", int8_bundle, "--json", capsys=capsys)[1])
    assert [one["graph"] for one in first["graphs"]] == ["text", "vision"]
    assert all(0 < one["shared_bytes"] < one["size_bytes"] for one in first["graphs"])
    written = [path.stat().st_mtime_ns for path in sorted(cache.rglob("*_data"))]
    assert json.loads(run("prepack", int8_bundle, "--json", capsys=capsys)[1]) == first
    assert [path.stat().st_mtime_ns for path in sorted(cache.rglob("*_data"))] == written  # not written again
    assert [graph for graph, _ in find_packings(int8_bundle)] == ["text", "vision"]
    freed = json.loads(run("prepack", int8_bundle, "--remove", "--json", capsys=capsys)[1])["freed_bytes"]
    assert freed > sum(one["size_bytes"] for one in first["graphs"])  # and the lists
    assert folders(cache) == [] and find_packings(int8_bundle) == []
    assert run("prepack", int8_bundle, "--remove", capsys=capsys)[:2] == (0, "0 bytes removed\n")


def test_a_graph_that_shares_its_weights_anyway_is_left_out(bundle: Path, cache: Path, capsys: Captured) -> None:
    """The fp32 text graph reads them in place (`edgeclip_graph.passes.gemm`)."""
    before = vectors(bundle)
    text, vision = json.loads(run("prepack", bundle, "--json", capsys=capsys)[1])["graphs"]
    assert (text["folder"], text["shared_bytes"]) == (None, 0)
    assert vision["shared_bytes"] > 0 and folders(cache) == [Path(vision["folder"]).name]
    assert np.array_equal(vectors(bundle), before)


def cut_weights(folder: Path) -> None:
    weights = next(folder.glob("*_data"))
    weights.write_bytes(weights.read_bytes()[:-1])


def change_graph(folder: Path) -> None:
    graph = next(folder.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")


def lose_weights(folder: Path) -> None:
    next(folder.glob("*_data")).unlink()


def empty_list(folder: Path) -> None:
    (folder / "files.json").write_text("[]")


def lose_list(folder: Path) -> None:
    (folder / "files.json").unlink()


DAMAGE = (cut_weights, change_graph, lose_weights, empty_list, lose_list)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda one: one.__name__)
def test_damaged_weights_are_told_in_a_line_and_not_used(
    damage: Callable[[Path], None], bundle: Path, cache: Path, capsys: Captured
) -> None:
    before = vectors(bundle)
    run("prepack", bundle, capsys=capsys)
    (folder,) = cache.iterdir()
    damage(folder)
    assert np.array_equal(vectors(bundle), before)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"edgeclip: opened without packed weights ({folder}: ")
    run("prepack", bundle, capsys=capsys)  # mends them
    assert np.array_equal(vectors(bundle), before)
    assert capsys.readouterr().err == ""


def test_check_reads_every_byte_of_them(bundle: Path, cache: Path, capsys: Captured) -> None:
    run("prepack", bundle, capsys=capsys)
    assert json.loads(run("check", bundle, "--json", capsys=capsys)[1])["prepacked"] == ["vision"]
    (weights,) = cache.rglob("*_data")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)  # of the same size: too long to read at every opening
    message = refusal("check", bundle, capsys=capsys)
    assert "vision.onnx_data is not what was packed" in message and "edgeclip prepack" in message
    run("prepack", bundle, capsys=capsys)
    assert run("check", bundle, capsys=capsys)[0] == 0


def test_a_damaged_bundle_is_not_packed(copied_int8: Path, cache: Path, capsys: Captured) -> None:
    weights = copied_int8 / "vision.onnx_data"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    assert "prepack" not in refusal_after_words("prepack", copied_int8, capsys=capsys)
    assert not cache.exists()


def refusal_after_words(*arguments: object, capsys: Captured) -> str:
    """The line that it fails with, after the one that says what it does."""
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, out) == (1, "") and err.count("\n") == 2
    return err.splitlines()[1]


@pytest.mark.parametrize(
    "spoil", [lambda data: b"no graph", lambda data: data[: len(data) // 2]], ids=["other", "cut"]
)
def test_packed_weights_that_do_not_open_are_not_kept(
    spoil: Callable[[bytes], bytes], bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Whoever opens the bundle falls back to its own graph; here that would be held against itself."""

    def align(graph: Path, weights: Path) -> None:
        align_weights(graph, weights)
        graph.write_bytes(spoil(graph.read_bytes()))

    monkeypatch.setattr("edgeclip.engine.prepack.packing.align_weights", align)
    told = refusal_after_words("prepack", bundle, capsys=capsys)
    assert told.startswith("edgeclip: the vision graph's packed weights do not run (") and "nothing was kept" in told
    assert folders(cache) == []


def test_copies_packed_by_another_processor_are_not_used(bundle: Path, cache: Path, capsys: Captured) -> None:
    """onnxruntime packs anew, compares by hash, and takes its own where they differ."""
    run("prepack", bundle, capsys=capsys)
    (graph,) = cache.rglob("*.onnx")
    content = graph.read_bytes()
    other = re.sub(rb"(\w\+)(\d+)(\|\d+;)", lambda found: found[1] + b"7" * len(found[2]) + found[3], content)
    assert other != content
    side = json.loads((bundle / "manifest.json").read_text())["image"]["size_px"]
    found = []
    for model in (content, other):
        graph.write_bytes(model)
        session = import_onnxruntime().InferenceSession(graph, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"pixel_values": np.resize(PIXELS, (1, side, side, 3))})[0])
    assert np.array_equal(*found)


@NEEDS_SHELL
def test_a_full_disk_leaves_nothing(bundle: Path, cache: Path) -> None:
    done = run_shell('ulimit -f 40; "$1" -m edgeclip prepack "$2"', bundle)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert folders(cache) == []


def test_a_place_that_cannot_be_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Whoever opens the bundle never hears of it."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "cannot be written" in refusal_after_words("prepack", bundle, capsys=capsys)
    assert np.isfinite(vectors(bundle)).all()
    assert capsys.readouterr().err == ""


def test_a_user_without_a_home(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    assert packed_root({}, find_home) is None
    assert packed_root({"XDG_CACHE_HOME": "/x"}, find_home) == Path("/x/edgeclip/prepacked")


@pytest.mark.parametrize(
    "other",
    [
        {"files": ("a" * 64, "c" * 64)},
        {"onnxruntime": "1.32.0"},
        {"processor": "fpu sse avx"},
        {"plan": Plan(providers=(), entries=(("session.x64quantprecision", "1"),))},
        {"plan": Plan(providers=(), without=("SkipLayerNormFusion",))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_facts_have_another_folder(tmp_path: Path, other: dict[str, object]) -> None:
    keep(tmp_path, FACTS)
    assert find_packed(tmp_path, FACTS) is not None
    assert find_packed(tmp_path, dataclasses.replace(FACTS, **other)) is None  # type: ignore[arg-type]


def keep(root: Path, facts: PackedFacts) -> None:
    with keep_packed(root, facts, "text.onnx", 1000) as stage:
        (stage / "text.onnx").write_bytes(b"graph")
        (stage / "text.onnx_data").write_bytes(b"weights")


def test_one_packing_of_a_graph_is_kept(tmp_path: Path) -> None:
    """An onnxruntime that was upgraded leaves nothing behind; another graph's stays."""
    newer = dataclasses.replace(FACTS, onnxruntime="1.32.0")
    neighbour = dataclasses.replace(FACTS, files=("c" * 64, "d" * 64))
    for facts in (FACTS, neighbour, newer):
        keep(tmp_path, facts)
    assert folders(tmp_path) == sorted([newer.key, neighbour.key])
    assert remove_packed(tmp_path, FACTS) > 0 and folders(tmp_path) == [neighbour.key]


def test_who_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        with keep_packed(tmp_path, FACTS, "text.onnx", 1000) as stage:
            (stage / "text.onnx").write_bytes(b"gra")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert folders(tmp_path) == []


def test_of_two_that_pack_at_once_one_stays(tmp_path: Path) -> None:
    """The other process has another number in its folder's name."""
    with keep_packed(tmp_path, FACTS, "text.onnx", 1000) as stage:
        (stage / "text.onnx").write_bytes(b"slow")
        moved = shutil.move(stage, tmp_path / "elsewhere")
        keep(tmp_path, FACTS)
        shutil.move(moved, stage)
    found = find_packed(tmp_path, FACTS)
    assert found is not None and found.graph.read_bytes() == b"graph"
    assert folders(tmp_path) == [FACTS.key]


def test_a_disk_without_room_is_seen_first(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="the disk has"), keep_packed(tmp_path, FACTS, "text.onnx", 10**15):
        raise AssertionError("nothing is begun")
    assert folders(tmp_path) == []


def test_packed_bytes_are_counted() -> None:
    """As onnxruntime 1.31 writes them, here with two buffers and a name before it."""
    graph = b"\x12\x04\x08prepacked_0\x12\x20MatMul+123|4096;1000;0|8192;24;0:\x01 prepacked_1 Gemm+9|0;6;0"
    assert count_packed(graph) == 1030
    assert count_packed(b"a+b|c") == 0
