"""Bundles of links, as DVC, git-annex, Nix and the Hub's cache lay them out, work; dangling links are named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.bundle.linked_weights import give_linked_weights
from edgeclip.cli import main
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.errors import BundleError

TEXTS = ["a red bicycle", "海滩上美丽的日落"]
PIXELS = np.random.default_rng(5).integers(0, 256, (1, 40, 30, 3), dtype=np.uint8)


def hub(bundle: Path, root: Path) -> Path:
    """Every file in one folder under the name of its hash, linked by a relative path."""
    (root / "blobs").mkdir()
    (root / "snapshots" / "0a1b").mkdir(parents=True)
    for number, file in enumerate(sorted(bundle.iterdir())):
        shutil.copy(file, root / "blobs" / f"{number:x}")
        (root / "snapshots" / "0a1b" / file.name).symlink_to(f"../../blobs/{number:x}")
    return root / "snapshots" / "0a1b"


def annex(bundle: Path, root: Path) -> Path:
    """Every file in a folder of its own, under the name of its hash; it may not be written."""
    for number, file in enumerate(sorted(bundle.iterdir())):
        key = root / "objects" / f"{number:x}" / f"SHA256E-s1--{number:x}" / f"SHA256E-s1--{number:x}"
        key.parent.mkdir(parents=True)
        shutil.copy(file, key)
        key.chmod(0o444)
        (root / "bundle").mkdir(exist_ok=True)
        (root / "bundle" / file.name).symlink_to(os.path.relpath(key, root / "bundle"))
    return root / "bundle"


def store(bundle: Path, root: Path) -> Path:
    """As Nix and GNU stow: links with absolute paths into one folder, where the files have their own names."""
    shutil.copytree(bundle, root / "store")
    (root / "bundle").mkdir()
    for file in (root / "store").iterdir():
        (root / "bundle" / file.name).symlink_to(file)
    return root / "bundle"


def weights_alone(bundle: Path, root: Path) -> Path:
    """Large files on another disk."""
    shutil.copytree(bundle, root / "bundle")
    (root / "disk").mkdir()
    for file in sorted((root / "bundle").glob("*_data")):
        shutil.move(file, root / "disk" / f"{file.name}.moved")
        file.symlink_to(root / "disk" / f"{file.name}.moved")
    return root / "bundle"


def graph_alone(bundle: Path, root: Path) -> Path:
    shutil.copytree(bundle, root / "bundle")
    (root / "bundle" / "text.onnx").rename(root / "graph")
    (root / "bundle" / "text.onnx").symlink_to(root / "graph")
    return root / "bundle"


def folder(bundle: Path, root: Path) -> Path:
    (root / "bundle").symlink_to(bundle)
    return root / "bundle"


def hard_links(bundle: Path, root: Path) -> Path:
    """As `cp -l` makes."""
    (root / "bundle").mkdir()
    for file in shutil.copytree(bundle, root / "copy").iterdir():
        os.link(file, root / "bundle" / file.name)
    return root / "bundle"


LAYOUTS = [hub, annex, store, weights_alone, graph_alone, hard_links, folder]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_linked_bundle_encodes_as_the_plain_one(
    bundle: Path, encoder: Encoder, tmp_path: Path, layout: Callable[[Path, Path], Path]
) -> None:
    """To the last bit, from the library and the command line."""
    linked = layout(bundle, tmp_path)
    with Encoder.open(linked, device="cpu", threads=encoder.threads) as opened:
        assert np.array_equal(opened.encode_text(TEXTS), encoder.encode_text(TEXTS))
        assert np.array_equal(opened.encode_image(PIXELS), encoder.encode_image(PIXELS))
    assert main(["check", str(linked), "--device", "cpu"]) == 0


@pytest.mark.parametrize("layout", LAYOUTS[:-2])
def test_a_graph_that_is_given_as_bytes_finds_linked_weights(
    bundle: Path, tmp_path: Path, layout: Callable[[Path, Path], Path]
) -> None:
    """As CUDA's text graph is, which no file holds."""
    graph = layout(bundle, tmp_path) / "text.onnx"
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    kept = give_linked_weights(options, graph)
    session = onnxruntime.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": np.array([[0, 5, 2]])})
    assert kept is not None and found.shape == (1, 64)


@pytest.mark.parametrize("name", ["text.onnx", "text.onnx_data", "tokenizer.json", "manifest.json"])
def test_a_dangling_link_is_called_one(bundle: Path, tmp_path: Path, name: str) -> None:
    linked = annex(bundle, tmp_path)
    key = (linked / name).resolve()
    key.unlink()
    with pytest.raises(BundleError) as caught:
        Encoder.open(linked)
    told = str(caught.value)
    assert name in told and "a link to ../objects" in told and "which is not there" in told
    assert "fetch" in told and len(told.splitlines()) == 1


def test_a_dangling_link_to_the_bundle_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to("nowhere")
    with pytest.raises(BundleError, match=r"bundle: a link to nowhere, which is not there"):
        Encoder.open(tmp_path / "bundle")


@pytest.mark.parametrize(
    "pointer", ["version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "/annex/objects/0\n"]
)
def test_a_pointer_that_was_not_fetched_is_called_one(copied_bundle: Path, pointer: str) -> None:
    (copied_bundle / "text.onnx_data").write_text(pointer)
    with pytest.raises(BundleError, match=r"text\.onnx_data has .* bytes, .*git lfs pull"):
        Encoder.open(copied_bundle)
