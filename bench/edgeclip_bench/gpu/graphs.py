"""A bundle's graphs on a GPU: latency in every way that CUDA can run them, parity with the CPU, and PyTorch beside.

BUNDLE is the checkpoint's fp32 bundle for CUDA, FP16 the one narrowed from it. Ways are CUDA graphs, bound buffers
alone, and plain session.run. The file is written again after each figure, so that a run that is stopped by a time
limit loses nothing; an error stands where its figure would.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.closeness import row_cosines
from edgeclip.bundle.files import open_manifest
from edgeclip.engine.cuda.cuda_session import CUDA_WAYS, CudaWay
from edgeclip.engine.devices import Device, usable_cpus
from edgeclip.engine.opening import GraphToOpen, open_graph
from edgeclip.engine.paired_timing import take_turns
from edgeclip.inputs.square import normalize_pixels
from edgeclip.manifest import Manifest
from edgeclip.tables import format_table
from edgeclip_bench.measure.cosines import summarize_cosines
from edgeclip_bench.measure.documents import add_out, make_document, save
from edgeclip_bench.measure.percentiles import summarize
from edgeclip_bench.measure.report_table import NONE
from edgeclip_bench.rivals.recipes import INPUTS, made_up_batches

Run = Callable[[NDArray[Any]], NDArray[np.float32]]
# (graph, inputs, tokens); tokens of an image are its own.
CASES = (
    ("text", 1, 16),
    ("vision", 1, 0),
    ("vision", 32, 0),
    ("text", 1, 64),
    ("text", 1, 512),
    ("vision", 8, 0),
)
_TEXT_SHAPES = ((1, 2), (1, 16), (1, 64), (3, 16), (2, 65), (2, 512))
_IMAGE_COUNTS = (1, 3)
_WARM_UPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Where the files are, and how long a case is timed; `found` are the figures so far."""

    checkpoint: Path
    bundle: Path
    fp16: Path
    device: str
    seconds: float
    out: Path
    manifest: Manifest
    found: dict[str, Any] = field(default_factory=dict)

    def batch(self, graph: str, count: int, tokens: int) -> NDArray[Any]:
        """Made-up inputs: ids (B, T) or pixels (B, S, S, 3)."""
        some = made_up_batches(self.bundle, self.manifest, graph, texts=8, images=1, seed=tokens)
        if graph == "text":
            return np.resize(np.concatenate([ids[:, 1:-1] for ids in some], axis=1), (count, tokens))
        return np.repeat(some[0], count, axis=0)

    def note(self) -> None:
        """Write what was found so far."""
        save(make_document(__name__, self.found), self.out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    for name in ("checkpoint", "bundle", "fp16"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each latency (2)")
    parser.add_argument("--no-compile", action="store_true", help="PyTorch eager alone, for a quick test")
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Measure all of it, print the table; 1 where a figure is an error."""
    if options.out is None:
        options.usage_error("--out is needed: the figures are written there as they come")
    names = ("checkpoint", "bundle", "fp16", "device", "seconds", "out")
    setup = Setup(manifest=open_manifest(options.bundle), **{name: getattr(options, name) for name in names})
    if options.device == "cuda":
        import torch

        torch.cuda.init()  # type: ignore[no-untyped-call]  # loads the CUDA libraries of torch's wheels, for onnxruntime to find
    latency(setup)
    parity(setup)
    rivals(setup, compiles=not options.no_compile)
    print(summary(setup.found))
    errors = [case for case in setup.found["cases"] if "error" in case]
    errors += [found for ways in setup.found["parity"].values() for found in ways.values() if "error" in found]
    return 1 if errors else 0


def latency(setup: Setup) -> None:
    """Time one batch after the other, host to host, in every way."""
    cases: list[dict[str, Any]] = setup.found.setdefault("cases", [])
    opened_s = setup.found.setdefault("open_s", {})
    for graph in setup.manifest.graphs:
        for way in _ways(setup):
            run: Run | None = None
            refused: dict[str, Any] = {}
            started = time.perf_counter()
            with note_error(refused):
                run = _open(setup.fp16, graph, Device(kind=setup.device), way)
                opened_s[f"{graph}, {way}"] = time.perf_counter() - started
            for name, count, tokens in CASES:
                if name == graph:
                    case = {"graph": graph, "way": way, "batch": count, "tokens": tokens or None, **refused}
                    if run is not None:
                        with note_error(case):
                            case |= timed(partial(run, setup.batch(graph, count, tokens)), count, setup.seconds)
                    cases.append(case)
                    setup.note()
            del run


def parity(setup: Setup) -> None:
    """Compare fp16 on the device with fp32 on the CPU, in every way, and a row alone with the row in a batch."""
    for graph in setup.manifest.graphs:
        batches = list(_parity_batches(setup, graph))
        exact = _open(setup.bundle, graph, Device(kind="cpu"))
        wanted = np.concatenate([exact(batch) for batch in batches])
        del exact
        ways: dict[str, Any] = setup.found.setdefault("parity", {}).setdefault(graph, {})
        for way in _ways(setup):
            found: dict[str, Any] = {}
            ways[way] = found
            with note_error(found):
                run = _open(setup.fp16, graph, Device(kind=setup.device), way)
                rows = [np.array([run(batch) for _ in range(3)]) for batch in batches]
                singles = [batch[index : index + 1] for batch in batches for index in range(len(batch))]
                alone = np.concatenate([run(single) for single in singles])
                together = np.concatenate([row[0] for row in rows])
                found |= {
                    "rows": len(together),
                    "worst_cosine": summarize_cosines(row_cosines(together, wanted)).worst,
                    "largest_difference": _largest(together, wanted),
                    "largest_difference_between_runs": max(_largest(row, row[:1]) for row in rows),
                    "largest_difference_alone_and_in_a_batch": _largest(alone, together),
                    "is_finite": bool(np.isfinite(together).all()),
                }
                del run
            setup.note()


def rivals(setup: Setup, *, compiles: bool) -> None:
    """Time the torch towers at fp16, eager and perhaps compiled, on the same inputs, host to host."""
    import torch

    from edgeclip_bench.rivals.torch_towers import MODES, compiled, feed, open_rival, runner

    modules = {graph: open_rival(setup.checkpoint, graph, setup.device, 512) for graph in setup.manifest.graphs}
    for mode in MODES if compiles else MODES[:1]:
        for graph, count, tokens in CASES:
            case: dict[str, Any] = {"graph": graph, "way": f"torch {mode}", "batch": count, "tokens": tokens or None}
            with note_error(case):
                batch = setup.batch(graph, count, tokens)
                if graph == "vision":
                    batch = normalize_pixels(batch, setup.manifest.need_image())
                call = runner(compiled(modules[graph], mode), feed(batch, setup.device), setup.device)
                started = time.perf_counter()
                call()
                case["first_s"] = time.perf_counter() - started
                case |= timed(call, count, setup.seconds)
            setup.found["cases"].append(case)
            setup.note()
            if mode != "eager":
                torch.compiler.reset()


def summary(found: Mapping[str, Any]) -> str:
    """The table for people: latencies of each shape side by side, then parity."""
    cases = sorted(found["cases"], key=lambda one: CASES.index((one["graph"], one["batch"], one["tokens"] or 0)))
    rows = [(_label(case), case["way"], *_figures(case)) for case in cases]
    for graph, ways in found["parity"].items():
        for way, one in ways.items():
            words = one.get("error") or f"worst cosine {one['worst_cosine']:.6f}"
            rows.append((f"parity {graph}", way, words, "", ""))
    return format_table(("median ms", "way", "p50", "p99", "inputs/s"), rows)


def _label(case: Mapping[str, Any]) -> str:
    return f"{case['graph']} {case['batch']}" + (f" x {case['tokens']}" if case["tokens"] else "")


def _figures(case: Mapping[str, Any]) -> tuple[str, str, str]:
    if "p50_ms" not in case:
        return str(case.get("error", "not measured"))[:60], "", ""
    p99 = NONE if case["p99_ms"] is None else f"{case['p99_ms']:.3f}"
    return f"{case['p50_ms']:.3f}", p99, f"{case['inputs_per_s']:.1f}"


def timed(run: Callable[[], object], count: int, seconds: float) -> dict[str, Any]:
    """The latencies of calls for some seconds, at least ten after the warm-up, and inputs per second."""
    times = take_turns({"": run}, sys.maxsize, seconds=seconds, least=10, warm_up=_WARM_UPS, is_alone=False)
    distribution = summarize(times[""] * 1000)
    return {**asdict(distribution), "inputs_per_s": count * 1000 / distribution.p50_ms}


@contextmanager
def note_error(into: dict[str, Any]) -> Iterator[None]:
    """Write an error as "error" where its figures would stand, and go on."""
    try:
        yield
    except Exception as error:
        into["error"] = f"{type(error).__name__}: {error}"
        print(f"  {into['error']}", file=sys.stderr)


def _ways(setup: Setup) -> tuple[CudaWay, ...]:
    return CUDA_WAYS if setup.device != "cpu" else ("plain",)


def _open(bundle: Path, graph: str, device: Device, way: CudaWay = "graphs") -> Run:
    """Open a bundle's graph on a device; the function takes ids or pixels and gives rows."""
    manifest = open_manifest(bundle)
    opened = open_graph(
        GraphToOpen(
            path=bundle / manifest.graphs[graph].file,
            graph=graph,
            device=device,
            threads=usable_cpus(),
            manifest=manifest,
            cuda_way=way,
        )
    )
    return lambda batch: next(iter(opened.run({INPUTS[graph]: batch}).values()))


def _parity_batches(setup: Setup, graph: str) -> Iterator[NDArray[Any]]:
    """Texts of several lengths, one of them with padding, or images."""
    if graph == "vision":
        yield from (setup.batch(graph, count, 0) for count in _IMAGE_COUNTS)
        return
    yield from (setup.batch(graph, count, tokens) for count, tokens in _TEXT_SHAPES)
    padded = setup.batch(graph, 2, 16)
    padded[0, 9] = setup.manifest.need_text().pad_id
    yield padded


def _largest(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max())
