"""What decides a vector: bundle, code, libraries, device, processor. Nothing of it may change unseen."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL
import pytest
import tokenizers
from PIL import Image, features

from edgeclip import Encoder
from edgeclip.engine import providers, vector_facts
from edgeclip.engine.devices import Device
from edgeclip.engine.products import adds_in_16_bits
from edgeclip.engine.vector_facts import hash_packages
from edgeclip.manifest import Manifest
from tests.conftest import DATA
from tests.scenes.damage import flip_byte, reseal

PACKAGE = Path(str(files("edgeclip")))


def facts(encoder: Encoder) -> str:
    return json.dumps(vector_facts.vector_facts(encoder, encoder.manifest.graphs))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, to change."""
    copy = tmp_path_factory.mktemp("packages")
    shutil.copytree(PACKAGE, copy / "edgeclip", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def hash_copy(packages: Path) -> str:
    return hash_packages([packages / "edgeclip"])


def test_the_hash_is_of_the_installed_packages(packages: Path) -> None:
    """A copy has the same, byte code or not, and it is the one that the facts hold."""
    assert hash_copy(packages) == vector_facts._CODE
    (packages / "edgeclip" / "__pycache__").mkdir()
    (packages / "edgeclip" / "__pycache__" / "encoder.pyc").write_bytes(b"compiled")
    assert hash_copy(packages) == vector_facts._CODE


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
    patch.setattr(vector_facts, "_CODE", "another")


def change_build(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(onnxruntime, "get_build_info", lambda: "ORT Build Info: git-commit-id=0")


def change_decoder(patch: pytest.MonkeyPatch) -> None:
    """Another libjpeg in the same Pillow."""
    vector_facts._decoders.cache_clear()
    patch.setattr(features, "version", lambda name: "0.0")


def add_plugin(patch: pytest.MonkeyPatch) -> None:
    """A package that decodes one more format: pytest stands for it, being installed."""
    factory = type("Heif", (), {"__module__": "pytest.heif"})
    patch.setattr(Image, "OPEN", Image.OPEN | {"HEIF": (factory, None)})


def change_plan(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(providers, "_SPIN_ONLY_INSIDE_CALLS", ("session.force_spinning_stop", "0"))


CHANGES: list[Callable[[pytest.MonkeyPatch], object]] = [
    change_code,
    change_build,
    change_decoder,
    add_plugin,
    change_plan,
    lambda patch: patch.setattr(onnxruntime, "__version__", "0.0"),
    lambda patch: patch.setattr(tokenizers, "__version__", "0.0"),
    lambda patch: patch.setattr(np, "__version__", "0.0"),
    lambda patch: patch.setattr(PIL, "__version__", "0.0"),
    lambda patch: patch.setattr(vector_facts, "read_processor", lambda: "another\nfpu avx2"),
    lambda patch: patch.setenv("NVIDIA_TF32_OVERRIDE", "0"),
]


@pytest.fixture
def _decoders_forgotten() -> Iterator[None]:
    yield
    vector_facts._decoders.cache_clear()


@pytest.mark.usefixtures("_decoders_forgotten")
def test_no_two_of_code_libraries_and_machine_are_alike(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("NVIDIA_"):
            monkeypatch.delenv(name)
    found = {facts(encoder)}
    assert found == {facts(encoder)}
    for change in CHANGES:
        with monkeypatch.context() as patch:
            change(patch)
            found.add(facts(encoder))
    assert len(found) == 1 + len(CHANGES)


def test_a_processor_of_the_same_name_whose_integers_overflow_is_another(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Encoder.open(int8_bundle, device="cpu") as encoder:
        before = facts(encoder)
        other = not adds_in_16_bits()
        monkeypatch.setattr("edgeclip.engine.opening.adds_in_16_bits", lambda: other)
        assert facts(encoder) != before


def test_devices_and_threads_are_told_apart(bundle: Path) -> None:
    """The GPU's session is not started: what it would be asked is enough."""
    manifest = Manifest.read(bundle)
    cpu, openvino = Device(kind="cpu"), Device(kind="openvino", unit="CPU")
    gpus = [Device(kind="cuda", index=index) for index in (0, 1)]
    asked = [(cpu, 1), (cpu, 2), *((gpu, 1) for gpu in gpus), (openvino, 1), (openvino, 2)]
    found: set[str] = set()
    for device, threads in asked:
        with Encoder(bundle, manifest, device, threads) as encoder:
            found.add(facts(encoder))
    assert len(found) == len(asked)


def test_anything_in_the_manifest_is_a_fact(bundle: Path, copied_bundle: Path, encoder: Encoder) -> None:
    before = facts(encoder)
    manifest = Manifest.read(copied_bundle)
    reseal(copied_bundle, source=dataclasses.replace(manifest.source, name="renamed"))
    with Encoder.open(copied_bundle, device="cpu") as opened:
        assert facts(opened) != before
    reseal(copied_bundle, source=manifest.source)
    with Encoder.open(copied_bundle, device="cpu", threads=encoder.threads) as opened:
        assert facts(opened) == before


def test_the_first_image_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    """Though decoding it registers pillow-heif with Pillow. A package that knows no image stands for pillow-heif."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image\n"
        "class Heif: pass\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Heif, lambda head: False)\n"
    )
    about = tmp_path / "pillow_heif-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow-heif\nVersion: 9.9\n")
    (about / "top_level.txt").write_text("pillow_heif\n")
    program = """if True:
        import json, sys
        from edgeclip import Encoder
        from edgeclip.engine.vector_facts import vector_facts
        with Encoder.open(sys.argv[1], device="cpu") as encoder:
            before = vector_facts(encoder, ["vision"])
            encoder.encode_image(sys.argv[2])
            print(json.dumps([before, vector_facts(encoder, ["vision"])]))
    """
    command = [sys.executable, "-c", program, str(bundle), str(DATA / "images" / "gray.jpg")]
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(command, capture_output=True, timeout=60, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert before == after
    assert before["the version of Pillow's plugins"] == {"pillow-heif": "9.9"}


def test_facts_come_back_from_json_as_they_are(encoder: Encoder) -> None:
    """They are compared with facts that were kept as JSON."""
    found: dict[str, Any] = vector_facts.vector_facts(encoder, encoder.manifest.graphs)
    assert json.loads(json.dumps(found)) == found
