"""The bundles of tests/data/bundles, for machines without torch, are those that export and quantize write now.

`pytest tests/with_torch/test_written_bundles.py --bless` writes them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.bundle.files import verify_hashes
from edgeclip.manifest import MANIFEST_NAME, Manifest
from tests.conftest import WRITTEN, Bundles

NAMES = ("golden-cpu", "golden-cuda", "golden-tensorrt", "golden-int8", "trained-int8", "v4-cpu")
# Rounding of another processor or another onnxruntime. Measured: 0 on the same.
SAME = 5e-6
# What a run measured or a version chose, not what a bundle is.
_VARIES = ("files", "measured", "built_with")
_VARIES_BY_GRAPH = ("kernels", "operators")


@pytest.fixture
def fresh(name: str, request: pytest.FixtureRequest, bundles: Bundles) -> Path:
    """The bundle `name`, made by this run."""
    kind, _, target = name.partition("-")
    if kind == "golden" and target in bundles:
        return bundles[target]  # type: ignore[index]
    fixture = {"golden-int8": "int8_bundle", "trained-int8": "trained_int8", "v4-cpu": "v4_bundle"}[name]
    made: Path = request.getfixturevalue(fixture)
    return made


def facts(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    for name in _VARIES:
        del document[name]
    for graph in document["graphs"].values():
        for name in _VARIES_BY_GRAPH:
            del graph[name]
    return document


@pytest.mark.parametrize("name", NAMES)
def test_they_are_what_is_written_now(name: str, fresh: Path, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--bless"):
        shutil.rmtree(WRITTEN / name, ignore_errors=True)
        shutil.copytree(fresh, WRITTEN / name)
    assert facts(WRITTEN / name) == facts(fresh), f"renew them with pytest {Path(__file__).name} --bless"
    assert [one.name for one in Manifest.read(WRITTEN / name).files] == [
        one.name for one in Manifest.read(fresh).files
    ]
    verify_hashes(WRITTEN / name, Manifest.read(WRITTEN / name))


@pytest.mark.parametrize("name", [name for name in NAMES if "int8" not in name])
def test_those_of_fp32_give_the_same_vectors(name: str, fresh: Path) -> None:
    """A bundle that was not renewed when its weights changed gives others. int8 rounds by the machine."""
    found = []
    for folder in (WRITTEN / name, fresh):
        with Encoder.open(folder, device="cpu", threads=1) as encoder:
            task = "retrieval.query" if encoder.manifest.task_required else None
            pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
            found.append(
                np.stack([encoder.encode_text("a red bicycle", task=task), encoder.encode_image(pixels, task=task)])
            )
    assert np.abs(found[0] - found[1]).max() <= SAME
