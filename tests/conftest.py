"""What tests share: the golden checkpoint, its bundles (one per target, and int8), copies to damage, an Encoder."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from edgeclip import Encoder
from edgeclip.manifest import TARGETS, Target

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"
CHECKPOINT = GOLDEN / "model"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="renew the golden texts under tests/data/graphs")
    parser.addoption("--bundle", type=Path, help="the golden checkpoint's bundle for the CPU, where torch is missing")


class Bundles(Mapping[Target, Path]):
    """The golden checkpoint's bundle for every target, made when it is first asked for: seconds each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, target: Target) -> Path:
        if target not in TARGETS:
            raise KeyError(target)
        if not (self._folder / target).exists():
            from edgeclip_export import export_checkpoint

            export_checkpoint(CHECKPOINT, self._folder / target, target=target)
        return self._folder / target

    def __iter__(self) -> Iterator[Target]:
        return iter(TARGETS)

    def __len__(self) -> int:
        return len(TARGETS)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """The golden checkpoint's bundles. Read only: tests copy what they damage."""
    return Bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> Path:
    """The bundle for the CPU."""
    given: Path | None = request.config.getoption("--bundle")
    if given is not None:
        return given
    made: Bundles = request.getfixturevalue("bundles")
    return made["cpu"]


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
