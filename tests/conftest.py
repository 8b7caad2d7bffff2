"""What tests share: bundles of the golden checkpoint and of the trained one, copies to damage, an Encoder.

A bundle takes seconds, so each is made once a run, by whichever of xdist's processes asks first; the others wait.
Where torch is missing, as on a board, the bundles are those of tests/data/bundles. So tests/runtime runs with
the lean wheel, Pillow and pytest alone; what needs more lies in tests/with_torch.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Of xdist's processes each has one thread for products: where two have two threads each on two cores, the threads
# wait for each other (337 s of processor time for four files that train and quantise, 243 so). Read when numpy and
# torch are loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(_variable, "1")

from edgeclip import Encoder
from edgeclip.manifest import TARGETS, Target

if TYPE_CHECKING:
    from tests.scenes.browser import Browser

DATA = Path(__file__).parent / "data"
WRITTEN = DATA / "bundles"  # written by pytest tests/with_torch/test_written_bundles.py --bless
HAS_TORCH = find_spec("torch") is not None
GOLDEN = DATA / "golden"
CHECKPOINT = GOLDEN / "model"
# The files of a jina-clip-v2 checkpoint in the official layout.
FILES = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")
# These take longest, so they begin: a process that is given one of them last would let the others wait at the end.
_FIRST = (
    "bench/demo/test_model",
    "bench/rivals/test_rivals",
    "with_torch/cli/test_demo",
    "quant/test_recall_by_language",
    "quant/passes/test_float16",
    "with_torch/cli/test_bench",
)

# A shell without job control starts what follows `&` with Ctrl-C ignored, and every child inherits that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="renew the golden files of the tests that run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files, the longest first; the order of the others stays."""
    ranks = {name: rank for rank, name in enumerate(_FIRST)}
    items.sort(key=lambda item: ranks.get(str(item.path.relative_to(DATA.parent).with_suffix("")), len(ranks)))


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, which `make` writes whole or not at all, unless another process has."""
    from filelock import FileLock

    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path


def bundle_of(shared: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The bundle `name`, which `make` writes; where torch is missing, the one in tests/data/bundles. Read only."""
    if HAS_TORCH:
        return made_once(shared / name, make)
    assert (WRITTEN / name).is_dir(), f"no bundle {name} in {WRITTEN}, and no torch to make it: see tests/conftest.py"
    return WRITTEN / name


class Bundles(Mapping[Target, Path]):
    """A checkpoint's bundle for every target, made when it is first asked for. Read only."""

    def __init__(self, checkpoint: Path, shared: Path, name: str) -> None:
        self._checkpoint, self._shared, self._name = checkpoint, shared, name

    def __getitem__(self, target: Target) -> Path:
        if target not in TARGETS:
            raise KeyError(target)
        return bundle_of(self._shared, f"{self._name}-{target}", lambda out: self._export(out, target))

    def __iter__(self) -> Iterator[Target]:
        return iter(TARGETS)

    def __len__(self) -> int:
        return len(TARGETS)

    def _export(self, out: Path, target: Target) -> None:
        from edgeclip_export import export_checkpoint

        export_checkpoint(self._checkpoint, out, target=target)


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run's, the same one in all of its processes."""
    base = tmp_path_factory.getbasetemp()
    is_one_of_many = hasattr(request.config, "workerinput")
    folder = (base.parent if is_one_of_many else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def bundles(shared: Path) -> Bundles:
    """The golden checkpoint's bundles: two random layers a tower."""
    return Bundles(CHECKPOINT, shared, "golden")


@pytest.fixture(scope="session")
def trained_bundles(shared: Path) -> Bundles:
    """Those of the small trained checkpoint that ships with the package."""
    from edgeclip_bench import demo

    return Bundles(demo.CHECKPOINT, shared, "trained")


@pytest.fixture(scope="session")
def v4_bundle(shared: Path) -> Path:
    """The bundle of the golden jina-embeddings-v4 for the CPU, with three adapters. Read only."""

    def make(out: Path) -> None:
        from edgeclip_export import export_checkpoint

        export_checkpoint(DATA / "jina_embeddings_v4" / "checkpoint", out, target="cpu", task=None)

    return bundle_of(shared, "v4-cpu", make)


@pytest.fixture(scope="session")
def bundle(bundles: Bundles) -> Path:
    """The bundle for the CPU."""
    return bundles["cpu"]


def _quantize(bundle: Path, out: Path) -> None:
    """Write the bundle as int8, calibrated on made-up inputs."""
    from edgeclip_quant import quantize_bundle

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeclip.engine.paired_timing.PAUSE_S", 0)  # a pause is nothing to wait for here
        quantize_bundle(bundle, out)


@pytest.fixture(scope="session")
def int8_bundle(bundles: Bundles, shared: Path) -> Path:
    """The golden bundle for the CPU as int8. Read only."""
    return bundle_of(shared, "golden-int8", lambda out: _quantize(bundles["cpu"], out))


@pytest.fixture(scope="session")
def trained_int8(trained_bundles: Bundles, shared: Path) -> Path:
    """The trained bundle for the CPU as int8. Read only."""
    return bundle_of(shared, "trained-int8", lambda out: _quantize(trained_bundles["cpu"], out))


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


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """A headless Chromium; without one, or without the extra for the service, the test is skipped."""
    driver = pytest.importorskip("tests.scenes.browser")
    if driver.CHROMIUM is None:
        pytest.skip("no Chromium here")
    with driver.browsing(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="session")
def page_url(bundle: Path, encoder: Encoder) -> Iterator[str]:
    """A service of the golden bundle for the page, which takes pictures up to a megapixel."""
    from tests.scenes.serving import serving

    with serving(bundle, encoder, max_image_pixels=1_000_000) as running:
        yield running


@pytest.fixture
def page(browser: "Browser", page_url: str) -> Iterator["Browser"]:
    """The page, opened anew; what the browser complains of fails the test, but for answers that are refusals."""
    from tests.scenes.web_page import opened

    yield opened(browser, page_url)
    assert [error for error in browser.errors if not error.startswith("Failed to load resource")] == []
