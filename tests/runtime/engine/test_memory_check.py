"""What a bundle needs is predicted from its weights and compared with real limits, before anything is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgeclip.engine.memory_check import Load, Verdict, check_memory, describe, find_load, judge
from edgeclip.engine.memory_need import GraphNeed, read_need
from edgeclip.engine.prepack.packing import pack_bundle
from edgeclip.host.memory_limits import MemoryLimit
from edgeclip.manifest import Manifest

MB = 10**6
HELD = {"resident": 40 * MB, "data": 100 * MB, "address": 200 * MB}


def limit(megabytes: float, **other: object) -> MemoryLimit:
    facts = {"name": "the control group's limit", "counted": "resident", "free_bytes": int(megabytes * MB), **other}
    return MemoryLimit(limit_bytes=int(megabytes * MB), **facts)  # type: ignore[arg-type]


def load(**other: object) -> Load:
    need = GraphNeed(copied_bytes=100 * MB, work_bytes=20 * MB, mapped_bytes=150 * MB)
    return Load(needs={"text": need}, held=HELD, **other)  # type: ignore[arg-type]


def test_the_copies_that_are_predicted_are_those_that_onnxruntime_makes(
    trained_int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(trained_int8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {graph: read_need(trained_int8, manifest, graph) for graph in manifest.graphs}
    packings = [one for one in pack_bundle(trained_int8, 1) if one.folder]
    assert {one.graph for one in packings} == {graph for graph, need in before.items() if need.is_worth_packing}
    for one in packings:
        assert before[one.graph].copied_bytes == pytest.approx(one.shared_bytes, rel=0.05)
        after = find_load(trained_int8, manifest, (one.graph,)).needs[one.graph]
        assert after.copied_bytes < before[one.graph].copied_bytes / 2


def test_weights_that_are_read_in_place_are_not_copied(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    text, vision = (read_need(bundle, manifest, graph) for graph in ("text", "vision"))
    assert text.copied_bytes == 0 and vision.copied_bytes > 0.5 * vision.mapped_bytes


def test_what_surely_exceeds_a_limit_is_out_of_memory_and_what_comes_near_is_tight() -> None:
    most = load().wanted()
    assert most == 40 * MB + 26 * MB + 120 * MB
    assert judge(load(), [limit(139)]) == Verdict(limit=limit(139), is_sure=True)
    assert judge(load(), [limit(141)]) == Verdict(limit=limit(141), is_sure=False)
    assert judge(load(), [limit(most / MB)]) is None


@pytest.mark.parametrize(
    ("found", "is_sure"),
    [
        (limit(1000, free_bytes=100 * MB), False),  # others may leave
        (limit(10, is_hard=False), False),  # memory.high
        (limit(365, counted="address"), True),
        (limit(367, counted="address"), False),
        (limit(249, counted="data"), True),
        (limit(251, counted="data"), False),
    ],
)
def test_each_limit_has_its_own_measure(found: MemoryLimit, is_sure: bool) -> None:
    verdict = judge(load(), [found])
    assert verdict is not None and verdict.is_sure is is_sure


def test_a_sure_verdict_comes_before_others() -> None:
    verdict = judge(load(), [limit(150), limit(130)])
    assert verdict is not None and verdict.limit == limit(130)


@pytest.mark.parametrize("is_sure", [True, False])
def test_one_line_names_the_graphs_the_need_the_limit_and_what_to_do(bundle: Path, is_sure: bool) -> None:
    manifest = Manifest.read(bundle)
    found = find_load(bundle, manifest, tuple(manifest.graphs))
    words = describe(bundle, manifest, found, Verdict(limit=limit(12), is_sure=is_sure))
    assert words.startswith("out of memory: " if is_sure else "memory is tight: ") and "\n" not in words
    for part in ("the text graph (fp32) and the vision graph (fp32) need", "limit is 12 MB", "--to int8 or int4"):
        assert part in words
    assert f"`edgeclip prepack {bundle}`" in words and "--modality" in words


def test_a_machine_with_ample_memory_reads_no_graph(bundle: Path, tmp_path: Path) -> None:
    assert check_memory(tmp_path / "nothing", Manifest.read(bundle), ("text", "vision")) is None


def _limited(program: str, bundle: Path, left_mb: float) -> subprocess.CompletedProcess[str]:
    """Run a program that may take so many addresses more from where it calls `bound()`."""
    begin = (
        "import resource, sys, warnings\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from edgeclip import Encoder\n"
        "from edgeclip.engine.devices import Device\n"
        "from edgeclip.engine.opening import GraphToOpen, open_graph\n"
        "from edgeclip.engine.ort import import_onnxruntime\n"
        "from edgeclip.host.memory_limits import held_bytes\n"
        "from edgeclip.manifest import Manifest\n"
        "folder = Path(sys.argv[1])\n"
        "import_onnxruntime()\n"
        "def bound():\n"
        "    most = held_bytes()['address'] + int(float(sys.argv[2]) * 1e6)\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "def open_text():\n"
        "    manifest = Manifest.read(folder)\n"
        "    return open_graph(GraphToOpen(path=folder / manifest.graphs['text'].file, graph='text',\n"
        "                                  device=Device(kind='cpu'), threads=1, manifest=manifest))\n"
    )
    words = [sys.executable, "-c", begin + program, str(bundle), str(left_mb)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


OPEN = "bound()\nencoder = Encoder.open(folder)\nprint(encoder.encode_text('a red bicycle').shape)"


def test_memory_that_ends_while_a_bundle_is_opened_is_called_that(bundle: Path) -> None:
    done = _limited(OPEN, bundle, 0.5)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("edgeclip.errors.OutOfMemoryError: out of memory: "), last


def test_what_is_tight_runs_with_a_warning(bundle: Path) -> None:
    done = _limited(OPEN, bundle, 250)
    assert done.returncode == 0 and "TightMemoryWarning: memory is tight: the text graph" in done.stderr


def test_what_fits_runs_without_one(bundle: Path) -> None:
    done = _limited(OPEN, bundle, 2400)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "program",
    [
        "bound()\nopen_text()",
        "graph, ids = open_text(), np.zeros((64, 4096), np.int64)\nbound()\ngraph.run({'input_ids': ids})",
    ],
    ids=["opening", "running"],
)
def test_memory_that_cannot_be_had_is_no_damaged_bundle(bundle: Path, program: str) -> None:
    done = _limited(program, bundle, 0.05)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("edgeclip.errors.OutOfMemoryError: out of memory: "), done.stderr
