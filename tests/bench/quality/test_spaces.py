"""A vector is found again only where all that decides it is the same: bundle, code, libraries, device, processor."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
import pytest
import tokenizers
from PIL import Image, features

from edgeclip import Encoder
from edgeclip.engine import providers
from edgeclip.engine.devices import Device
from edgeclip.manifest import TOWERS, Manifest
from edgeclip_bench.quality import spaces
from edgeclip_bench.quality.cache import EmbeddingCache, Space
from edgeclip_bench.quality.embeddings import Counts, Embedder
from edgeclip_bench.quality.spaces import hash_packages, space_of
from tests.scenes.damage import flip_byte, reseal

PACKAGES = {name: Path(str(files(name))) for name in ("edgeclip", "edgeclip_bench")}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of both packages, to change."""
    copy = tmp_path_factory.mktemp("packages")
    for name, folder in PACKAGES.items():
        shutil.copytree(folder, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def hash_copy(packages: Path) -> str:
    return hash_packages(packages / name for name in PACKAGES)


def test_the_hash_is_of_the_installed_packages(packages: Path) -> None:
    """A copy has the same, byte code or not, and it is the one that spaces hold."""
    assert hash_copy(packages) == spaces._CODE
    (packages / "edgeclip" / "__pycache__").mkdir()
    (packages / "edgeclip" / "__pycache__" / "encoder.pyc").write_bytes(b"compiled")
    assert hash_copy(packages) == spaces._CODE


def test_another_byte_in_any_module_is_another_hash(packages: Path) -> None:
    """Of every module that has a byte, and there are more than a hundred."""
    modules = [path for path in packages.rglob("*.py") if path.stat().st_size]
    hashes = {hash_copy(packages)}
    for module in modules:
        flip_byte(module, 0)
        hashes.add(hash_copy(packages))
        flip_byte(module, 0)
    assert len(hashes) == 1 + len(modules) > 100


def test_a_module_more_less_or_renamed_is_another_hash(packages: Path) -> None:
    module, renamed = packages / "edgeclip" / "encoder.py", packages / "edgeclip" / "serve" / "encoder.py"
    hashes = {hash_copy(packages)}
    module.rename(renamed)
    hashes.add(hash_copy(packages))
    shutil.copyfile(renamed, module)
    hashes.add(hash_copy(packages))
    renamed.unlink()
    (packages / "edgeclip" / "encoder.so").write_bytes(b"found before encoder.py")
    hashes.add(hash_copy(packages))
    (packages / "edgeclip" / "encoder.so").unlink()
    assert len(hashes) == 4


def change_code(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(spaces, "_CODE", "another")


def change_build(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(onnxruntime, "get_build_info", lambda: "ORT Build Info: git-commit-id=0")


def change_decoder(patch: pytest.MonkeyPatch) -> None:
    """Another libjpeg in the same Pillow."""
    spaces._decoders.cache_clear()
    patch.setattr(features, "version", lambda name: "0.0")


def add_plugin(patch: pytest.MonkeyPatch) -> None:
    """A package that decodes one more format: pytest stands for it, being installed."""
    factory = type("Heif", (), {"__module__": "pytest.heif"})
    patch.setattr(Image, "OPEN", Image.OPEN | {"HEIF": (factory, None)})


def change_plan(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(providers, "_SPIN_ONLY_INSIDE_CALLS", ("session.force_spinning_stop", "0"))


def lose_vnni(patch: pytest.MonkeyPatch) -> None:
    """A processor of the same name whose integer GEMMs overflow."""
    patch.setattr("edgeclip.engine.session.adds_in_16_bits", lambda: True)


CHANGES: list[Callable[[pytest.MonkeyPatch], object]] = [
    change_code,
    change_build,
    change_decoder,
    add_plugin,
    change_plan,
    lose_vnni,
    lambda patch: patch.setattr(onnxruntime, "__version__", "0.0"),
    lambda patch: patch.setattr(tokenizers, "__version__", "0.0"),
    lambda patch: patch.setattr(np, "__version__", "0.0"),
    lambda patch: patch.setattr(PIL, "__version__", "0.0"),
    lambda patch: patch.setattr(spaces, "read_processor", lambda: "another\nfpu avx2"),
    lambda patch: patch.setenv("NVIDIA_TF32_OVERRIDE", "0"),
]


@pytest.fixture
def _decoders_forgotten() -> Iterator[None]:
    yield
    spaces._decoders.cache_clear()


@pytest.mark.usefixtures("_decoders_forgotten")
def test_no_two_of_code_libraries_and_machine_share_a_space(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ:
        if name.startswith("NVIDIA_"):
            monkeypatch.delenv(name)
    found = {space_of(encoder, tower).key for tower in TOWERS}
    assert found == {space_of(encoder, tower).key for tower in TOWERS}
    for change in CHANGES:
        with monkeypatch.context() as patch:
            change(patch)
            found |= {space_of(encoder, tower).key for tower in TOWERS}
    assert len(found) == 2 * (1 + len(CHANGES))


def test_devices_and_threads_do_not_share(bundle: Path) -> None:
    """The GPU's session is not started: what it would be asked is enough."""
    manifest = Manifest.read(bundle)
    cpu, openvino = Device(kind="cpu"), Device(kind="openvino", unit="CPU")
    gpus = [Device(kind="cuda", index=index) for index in (0, 1)]
    asked = [(cpu, 1), (cpu, 2), *((gpu, 1) for gpu in gpus), (openvino, 1), (openvino, 2)]
    found = set()
    for device, threads in asked:
        with Encoder(bundle, manifest, device, threads) as encoder:
            found |= {space_of(encoder, tower).key for tower in TOWERS}
    assert len(found) == 2 * len(asked)


def test_anything_else_in_the_manifest_is_another_space(bundle: Path, copied_bundle: Path, encoder: Encoder) -> None:
    before = {space_of(encoder, tower).key for tower in TOWERS}
    manifest = Manifest.read(copied_bundle)
    reseal(copied_bundle, source=dataclasses.replace(manifest.source, name="renamed"))
    with Encoder.open(copied_bundle, device="cpu") as opened:
        assert before.isdisjoint({space_of(opened, tower).key for tower in TOWERS})
    reseal(copied_bundle, source=manifest.source)
    with Encoder.open(copied_bundle, device="cpu", threads=encoder.threads) as opened:
        assert before == {space_of(opened, tower).key for tower in TOWERS}


def test_what_other_code_kept_is_computed_again(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its space stays in the file until room is needed, and harms nothing: the first code finds its own again."""
    counts = []
    for code in ("first", "second", "first"):
        monkeypatch.setattr(spaces, "_CODE", code)
        with EmbeddingCache(tmp_path) as cache:
            embedder = Embedder(encoder, cache)
            np.testing.assert_array_equal(embedder.texts(["a"], 1)[0], encoder.encode_text("a"))
            counts.append(embedder.take_counts())
    assert counts == [Counts(inputs=1, computed=1), Counts(inputs=1, computed=1), Counts(inputs=1, cached=1)]


def test_a_space_says_what_it_holds(encoder: Encoder) -> None:
    """Its facts are kept beside the vectors, for a reader of the file."""
    space = space_of(encoder, "text")
    assert isinstance(space, Space) and space.dim == encoder.manifest.embedding_dim
    for word in (
        "session.force_spinning_stop",
        onnxruntime.__version__,
        features.version("libjpeg_turbo"),
        "manifest",
    ):
        assert str(word) in space.facts
