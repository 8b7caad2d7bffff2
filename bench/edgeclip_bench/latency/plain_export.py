"""A bundle beside the plain export of the same checkpoint, in one run on one machine.

    edgeclip bench plain-export CHECKPOINT BUNDLE [--rounds N] [--out FILE.json]

The rival is what torch.onnx.export and onnxruntime give by themselves for `edgeclip_bench.rivals.plain_towers`: no
session option is set but the number of threads, which is the same for both. The two take turns, so other work of the
machine meets both alike; the figure to quote is the median over the rounds of one time divided by the other. Memory
is measured apart, each graph in a process of its own: after loading and one short run, how much of it is anonymous
(the rest is a mapped file, which processes share and the system may drop), and the peak of one more run above it.

Only compute is timed: ids and pixels are made beforehand, so tokenising and decoding are left out.
"""

import argparse
import contextlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import torch
from numpy.typing import NDArray

from edgeclip import Manifest
from edgeclip.engine.devices import Device, usable_cpus
from edgeclip.engine.paired_timing import take_turns
from edgeclip.engine.session import TowerSession
from edgeclip.families.jina_clip import normalize_pixels
from edgeclip.manifest import TOWERS, ImageFacts, TowerName
from edgeclip.tables import format_bytes, format_table
from edgeclip_bench.measure.machine_facts import machine as hardware
from edgeclip_bench.rivals.plain_towers import load_plain_text, load_plain_vision
from edgeclip_export.tracing import OPSET

SHORT_TOKENS = 16

Run = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input shape of one tower: `tokens` is 0 for images."""

    tower: TowerName
    batch: int
    tokens: int
    rounds: int

    @property
    def name(self) -> str:
        """The name in the table."""
        what = f"text, {self.tokens} tokens" if self.tower == "text" else "image"
        return f"{what}, batch {self.batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The times of a case in milliseconds, and the ratio round by round."""

    case: Case
    samples: int
    bundle_median_ms: float
    bundle_p90_ms: float
    plain_median_ms: float
    plain_p90_ms: float
    ratio_median: float
    ratio_quartiles: tuple[float, float]
    largest_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident bytes of one graph in a process of its own."""

    graph: str
    tower: TowerName
    loaded_bytes: int
    anonymous_bytes: int
    peak_above_loaded_bytes: int
    tokens: int
    open_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="the bundle of that checkpoint, for the CPU")
    parser.add_argument("--rounds", type=int, default=1, help="multiplies the rounds of every case (1)")
    parser.add_argument("--plain", type=Path, help="keep the plain graphs in this folder, or take them from it")
    parser.add_argument("--out", type=Path, help="write the JSON here")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, write the JSON."""
    compare_bundle(options.checkpoint, options.bundle, plain=options.plain, rounds=options.rounds, out=options.out)
    return 0


def compare_bundle(checkpoint: Path, bundle: Path, *, plain: Path | None, rounds: int, out: Path | None) -> None:
    """Measure both graphs of both towers, print the tables, and write the JSON to `out`.

    The plain graphs are kept in `plain`, or taken from there; None for a folder that goes again.
    """
    manifest = Manifest.read(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        plain = plain or Path(scratch)
        latencies: list[Latency] = []
        memories: list[Memory] = []
        for tower in TOWERS:
            graph = plain_graph(checkpoint, plain, tower)
            ours = bundle / manifest.tower(tower).file
            latencies += list(compare(ours, graph, tower, manifest.image, rounds))
            memories.append(measure_in_process(ours, "bundle", tower, manifest.image, SHORT_TOKENS))
            memories.append(measure_in_process(graph, "plain", tower, manifest.image, SHORT_TOKENS))
        longest = manifest.tokenizer.max_length
        memories.append(measure_in_process(bundle / manifest.text.file, "bundle", "text", manifest.image, longest))
    report = {
        "benchmark": "edgeclip_bench.latency.plain_export",
        "machine": machine(),
        "source": manifest.source.name,
        "parameters": manifest.text.parameters + manifest.vision.parameters,
        "latency": [asdict(latency) for latency in latencies],
        "memory": [asdict(memory) for memory in memories],
    }
    _print_tables(latencies, memories)
    if out:
        out.write_text(json.dumps(report, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """The facts that a figure depends on besides the code."""
    return {**hardware(), "onnxruntime": onnxruntime.__version__, "torch": torch.__version__}


def plain_graph(checkpoint: Path, folder: Path, tower: TowerName) -> Path:
    """The rival's graph, as torch.onnx.export leaves it; exported once."""
    path = folder / f"plain_{tower}.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    module: torch.nn.Module
    dynamic = {0: "batch", 1: "sequence"} if tower == "text" else {0: "batch"}
    if tower == "text":
        module, example = load_plain_text(checkpoint), torch.full((2, 3), 2)
    else:
        vision = load_plain_vision(checkpoint)
        size = vision.config.image_size
        module, example = vision, torch.zeros(2, 3, size, size)
    program = torch.onnx.export(
        module, (example,), dynamo=True, opset_version=OPSET, dynamic_shapes=(dynamic,), verbose=False
    )
    assert program is not None
    program.save(path, external_data=True)
    return path


def compare(ours: Path, plain: Path, tower: TowerName, image: ImageFacts, rounds: int) -> Iterator[Latency]:
    """Run both graphs in turn on every case of a tower."""
    run, run_rival = _bundle_run(ours, tower), _plain_run(plain)
    cases = [
        Case(tower="text", batch=1, tokens=8, rounds=40),
        Case(tower="text", batch=1, tokens=SHORT_TOKENS, rounds=40),
        Case(tower="text", batch=1, tokens=64, rounds=20),
        Case(tower="text", batch=1, tokens=512, rounds=8),
        Case(tower="text", batch=16, tokens=SHORT_TOKENS, rounds=8),
        Case(tower="text", batch=64, tokens=SHORT_TOKENS, rounds=8),
        Case(tower="vision", batch=1, tokens=0, rounds=12),
    ]
    for case in (case for case in cases if case.tower == tower):
        for_ours, for_rival = _inputs(case, image)
        difference = float(np.abs(run(for_ours) - run_rival(for_rival)).max())
        works = {"bundle": partial(run, for_ours), "plain": partial(run_rival, for_rival)}
        times = take_turns(works, case.rounds * rounds, warm_up=1)
        both = np.stack(list(times.values()), axis=1) * 1000  # (rounds, 2)
        ratio = both[:, 0] / both[:, 1]
        low, high = np.percentile(ratio, [25, 75])
        yield Latency(
            case=case,
            samples=len(both),
            bundle_median_ms=float(np.median(both[:, 0])),
            bundle_p90_ms=float(np.percentile(both[:, 0], 90)),
            plain_median_ms=float(np.median(both[:, 1])),
            plain_p90_ms=float(np.percentile(both[:, 1], 90)),
            ratio_median=float(np.median(ratio)),
            ratio_quartiles=(float(low), float(high)),
            largest_difference=difference,
        )


def measure_memory(path: Path, label: str, tower: TowerName, image: ImageFacts, tokens: int) -> Memory:
    """Load one graph, run it once on a short input and once as asked for. Runs in a process of its own."""
    process = psutil.Process()
    before = process.memory_info()
    started = time.perf_counter()
    run = _bundle_run(path, tower) if label == "bundle" else _plain_run(path)
    open_s = time.perf_counter() - started
    which = 0 if label == "bundle" else 1
    run(_inputs(Case(tower=tower, batch=1, tokens=2, rounds=1), image)[which])
    loaded = process.memory_info()
    _reset_peak()
    run(_inputs(Case(tower=tower, batch=1, tokens=tokens, rounds=1), image)[which])
    return Memory(
        graph=label,
        tower=tower,
        loaded_bytes=loaded.rss - before.rss,
        anonymous_bytes=_anonymous(loaded) - _anonymous(before),
        peak_above_loaded_bytes=max(0, _peak_bytes() - loaded.rss),
        tokens=tokens if tower == "text" else 0,
        open_s=open_s,
    )


def _inputs(case: Case, image: ImageFacts) -> tuple[NDArray[Any], NDArray[Any]]:
    """One random input, as the bundle's graph takes it and as the plain one does."""
    draw = np.random.default_rng(0)
    if case.tower == "text":
        ids = draw.integers(5, 100, (case.batch, case.tokens))
        return ids, ids
    pixels = draw.integers(0, 256, (case.batch, image.size_px, image.size_px, 3), dtype=np.uint8)
    return pixels, normalize_pixels(pixels, image)


def _bundle_run(path: Path, tower: TowerName) -> Run:
    return TowerSession(path, tower, Device(kind="cpu"), usable_cpus()).run


def _plain_run(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = session.run(None, {name: batch})[0]
        return output

    return run


def measure_in_process(path: Path, label: str, tower: TowerName, image: ImageFacts, tokens: int) -> Memory:
    """`measure_memory` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_memory, path, label, tower, image, tokens).result()


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is the process's own
        Path("/proc/self/clear_refs").write_text("5")


def _anonymous(memory: Any) -> int:
    return int(memory.rss - getattr(memory, "shared", 0))  # only Linux reports what is shared


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) * 1024
    return int(psutil.Process().memory_info().rss)


def _print_tables(latencies: Sequence[Latency], memories: Sequence[Memory]) -> None:
    rows = [
        (
            found.case.name,
            f"{found.bundle_median_ms:.1f}",
            f"{found.plain_median_ms:.1f}",
            f"{found.ratio_median:.3f}",
            f"{found.ratio_quartiles[0]:.3f}-{found.ratio_quartiles[1]:.3f}",
            str(found.samples),
            f"{found.largest_difference:.0e}",
        )
        for found in latencies
    ]
    header = ("median ms", "bundle", "plain export", "ratio", "quartiles", "samples", "difference")
    print(format_table(header, rows), end="\n\n")
    memory_rows = [
        (
            f"{memory.tower}, {memory.graph}",
            f"{memory.open_s:.2f}",
            format_bytes(memory.loaded_bytes),
            format_bytes(memory.anonymous_bytes),
            format_bytes(memory.peak_above_loaded_bytes),
            str(memory.tokens or "-"),
        )
        for memory in memories
    ]
    print(format_table(("memory", "open s", "loaded", "of it anonymous", "peak above it", "tokens"), memory_rows))
