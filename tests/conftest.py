"""What tests share: the golden checkpoint, its bundles (one per target, and int8), copies to damage, an Encoder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeclip import Encoder
from edgeclip.manifest import TARGETS, Target

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"
CHECKPOINT = GOLDEN / "model"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="renew the golden texts under tests/data/graphs")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Target, Path]:
    """The golden checkpoint's bundle for every target. Read only: tests copy what they damage."""
    from edgeclip_export import export_checkpoint

    folder = tmp_path_factory.mktemp("bundles")
    for target in TARGETS:
        export_checkpoint(CHECKPOINT, folder / target, target=target)
    return {target: folder / target for target in TARGETS}


@pytest.fixture(scope="session")
def bundle(bundles: dict[Target, Path]) -> Path:
    """The bundle for the CPU."""
    return bundles["cpu"]


@pytest.fixture(scope="session")
def int8_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle for the CPU as int8. Read only."""
    from edgeclip_quant import quantize_bundle

    out = tmp_path_factory.mktemp("int8") / "bundle"
    quantize_bundle(bundle, out)
    return out


@pytest.fixture
def copied_int8(int8_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return shutil.copytree(int8_bundle, tmp_path / "int8")


@pytest.fixture
def copied_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle for the CPU, to damage."""
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.fixture(scope="session")
def encoder(bundle: Path) -> Iterator[Encoder]:
    """An Encoder on the bundle for the CPU."""
    with Encoder.open(bundle, device="cpu") as opened:
        yield opened
