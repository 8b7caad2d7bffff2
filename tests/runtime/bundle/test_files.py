"""A folder that is no whole bundle is refused in one line that names what is wrong with it."""

import os
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.bundle.files import open_manifest, verify_hash, verify_hashes
from edgeclip.errors import BundleError
from edgeclip.manifest import MANIFEST_NAME, Manifest
from tests.scenes.damage import flip_byte, reseal

FILES = (
    "selftest.npz",
    "text.onnx",
    "text.onnx_data",
    "text.portable.onnx",
    "tokenizer.json",
    "vision.onnx",
    "vision.onnx_data",
    "vision.portable.onnx",
)


def refusal(folder: Path) -> str:
    """The one line that opening a folder is refused with; Encoder.open says the same."""
    with pytest.raises(BundleError) as caught:
        open_manifest(folder)
    with pytest.raises(BundleError) as opened:
        Encoder.open(folder, device="cpu")
    message = str(caught.value)
    assert str(opened.value) == message
    assert len(message.splitlines()) == 1
    return message


def test_a_bundle_is_these_files(bundle: Path) -> None:
    assert tuple(file.name for file in open_manifest(bundle).files) == FILES
    assert {path.name for path in bundle.iterdir()} == {*FILES, MANIFEST_NAME}


def test_a_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such bundle"


def test_a_file_instead_of_a_folder(bundle: Path) -> None:
    manifest = bundle / MANIFEST_NAME
    assert refusal(manifest) == f"{manifest}: a bundle is a folder, this is a file"


def test_a_folder_without_a_manifest_is_not_complete(copied_bundle: Path) -> None:
    (copied_bundle / MANIFEST_NAME).unlink()
    message = refusal(copied_bundle)
    assert message.startswith(f"{copied_bundle}: no manifest.json")
    assert "`edgeclip export`" in message


def test_a_manifest_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()
    assert refusal(tmp_path) == f"{tmp_path / MANIFEST_NAME}: cannot be read (Is a directory)"


def test_a_manifest_that_is_no_text(copied_bundle: Path) -> None:
    (copied_bundle / MANIFEST_NAME).write_bytes(b'{"a": "\xff"}')
    assert "manifest.json: not UTF-8 (invalid start byte at byte 7)" in refusal(copied_bundle)


def test_a_manifest_that_does_not_fit_names_the_folder(copied_bundle: Path) -> None:
    (copied_bundle / MANIFEST_NAME).write_text("{}")
    assert refusal(copied_bundle).startswith(f"{copied_bundle}: manifest: schema_version is None")


def test_a_path_that_can_be_none(tmp_path: Path) -> None:
    assert "embedded null byte" in refusal(tmp_path / "a\0b")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copied_bundle: Path, name: str) -> None:
    (copied_bundle / name).unlink()
    assert refusal(copied_bundle) == f"{copied_bundle}: {name} is missing; export or copy the bundle again"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_file_of_another_size_is_named(copied_bundle: Path, name: str, by: int) -> None:
    size = (copied_bundle / name).stat().st_size
    os.truncate(copied_bundle / name, size + by)
    assert f"{name} has {size + by} bytes, the manifest says {size};" in refusal(copied_bundle)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_changed_byte_is_found_by_its_hash(copied_bundle: Path, name: str, where: float) -> None:
    """Of the same size, so that opening alone may pass it."""
    flip_byte(copied_bundle / name, int(where * (copied_bundle / name).stat().st_size))
    manifest = open_manifest(copied_bundle)
    with pytest.raises(BundleError) as caught:
        verify_hashes(copied_bundle, manifest)
    message = str(caught.value)
    assert message.startswith(f"{copied_bundle}: {name} is not what was exported")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("where", range(1, 10))
def test_a_changed_byte_never_reaches_the_tokenizers_parser(copied_bundle: Path, where: int) -> None:
    """It panics on some: a Rust traceback, and an exception that `except Exception` does not see."""
    size = (copied_bundle / "tokenizer.json").stat().st_size
    flip_byte(copied_bundle / "tokenizer.json", size * where // 10)
    with pytest.raises(BundleError, match="tokenizer.json is not what was exported"):
        Encoder.open(copied_bundle, device="cpu")


@pytest.mark.parametrize("graph", ["text", "vision"])
def test_a_changed_byte_never_reaches_onnxruntimes_parser(copied_bundle: Path, graph: str) -> None:
    """A changed name or attribute may well load, and give other vectors."""
    flip_byte(copied_bundle / f"{graph}.onnx", 2000)
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        encode = {
            "text": lambda: encoder.encode_text("a"),
            "vision": lambda: encoder.encode_image(np.zeros((64, 64, 3), np.uint8)),
        }
        with pytest.raises(BundleError, match=rf"{graph}\.onnx is not what was exported"):
            encode[graph]()


def test_hashing_tells_how_many_bytes_it_read(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    told: list[int] = []
    verify_hashes(bundle, manifest, told.append)
    assert sum(told) == manifest.weight_bytes
    assert len(told) == len(FILES)


def test_a_file_that_is_gone_when_it_is_hashed_is_named(copied_bundle: Path) -> None:
    manifest = open_manifest(copied_bundle)
    (copied_bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read \(No such file or directory\)"):
        verify_hash(copied_bundle, manifest.file("tokenizer.json"))


def test_a_family_that_this_version_does_not_run(copied_bundle: Path) -> None:
    reseal(copied_bundle, family="jina_embeddings_v9")
    assert "the family 'jina_embeddings_v9'; this edgeclip runs jina_clip" in refusal(copied_bundle)
