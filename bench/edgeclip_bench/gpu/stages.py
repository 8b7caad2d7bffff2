"""The stages of `edgeclip_bench.gpu.check`; each returns the contents of its JSON file.

A stage runs in a process of its own, so none inherits another's memory or a GPU in a bad state. `note` writes the
results so far: a stage that is stopped by its time limit loses nothing.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.bundle.files import open_manifest
from edgeclip.bundle.selftest import repeat_proof, run_selftest
from edgeclip.engine.cuda.cuda_session import CUDA_WAYS, CudaWay
from edgeclip.engine.devices import Device, usable_cpus
from edgeclip.engine.session import TowerSession
from edgeclip.errors import EdgeclipError
from edgeclip.manifest import TOWERS, TowerName
from edgeclip_bench.measure.percentiles import summarize

Note = Callable[[dict[str, Any]], None]
Run = Callable[[], NDArray[np.float32]]

# (tower, inputs, tokens); tokens of an image are its own.
CASES: tuple[tuple[TowerName, int, int], ...] = (
    ("text", 1, 16),
    ("vision", 1, 0),
    ("vision", 32, 0),
    ("text", 1, 64),
    ("text", 1, 512),
    ("vision", 8, 0),
)
_WARM_UPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Where the files are, and how much time there is."""

    checkpoint: Path
    bundle: Path
    narrow: Path
    device: str
    is_tiny: bool
    case_s: float
    soak_s: float

    @property
    def where(self) -> Device:
        """The device, in the form that a session takes."""
        return Device(kind=self.device)


def make_checkpoint(setup: Setup, note: Note) -> dict[str, Any]:
    """Write random weights, unless the folder is there."""
    from edgeclip_bench.families.random_checkpoint import full_config, tiny_config, write_checkpoint

    if not setup.checkpoint.exists():
        write_checkpoint(setup.checkpoint, tiny_config() if setup.is_tiny else full_config())
    return {"bytes": sum(file.stat().st_size for file in setup.checkpoint.iterdir())}


def export(setup: Setup, note: Note) -> dict[str, Any]:
    """Export the fp32 bundle for CUDA, unless it is there."""
    from edgeclip_export import export_checkpoint

    if not setup.bundle.exists():
        export_checkpoint(setup.checkpoint, setup.bundle, target="cuda")
    return {"measured": [asdict(one) for one in open_manifest(setup.bundle).measured]}


def narrow(setup: Setup, note: Note) -> dict[str, Any]:
    """Write the fp16 bundle with its proof, unless it is there."""
    from edgeclip_quant import quantize_bundle

    if not setup.narrow.exists():
        quantize_bundle(setup.bundle, setup.narrow, to="fp16")
    return {"measured": [asdict(one) for one in open_manifest(setup.narrow).measured]}


def check(setup: Setup, note: Note) -> dict[str, Any]:
    """Do what `edgeclip check` does on the device, the self-test and the proof, and time how long opening takes."""
    started = time.perf_counter()
    with Encoder.open(setup.narrow, device=setup.device) as encoder:
        opened_s = time.perf_counter() - started
        found = {"device": encoder.device, "open_s": opened_s}
        found["selftest"] = [asdict(one) for one in run_selftest(encoder, setup.narrow)]
        note(found)
        found["proof"] = [asdict(one) for one in repeat_proof(encoder, setup.narrow)]
    return found


def parity(setup: Setup, note: Note) -> dict[str, Any]:
    """Compare fp16 on the device with fp32 on the CPU, in every mode, and a row alone with the row in a batch."""
    image = open_manifest(setup.bundle).image
    pad = open_manifest(setup.bundle).tokenizer.pad_id
    draw = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for tower in TOWERS:
        if tower == "text":
            batches = [_ids(setup, *shape) for shape in ((1, 2), (1, 16), (1, 64), (3, 16), (2, 65), (2, 512))]
            padded = _ids(setup, 2, 16)
            padded[0, 9] = pad
            batches.append(padded)
        else:
            size = image.size_px
            batches = [draw.integers(0, 256, (count, size, size, 3), np.uint8) for count in (1, 3)]
        exact = TowerSession(_graph(setup.bundle, tower), tower, Device(kind="cpu"), usable_cpus())
        wanted = [exact.run(batch) for batch in batches]
        del exact
        ways: dict[str, Any] = {}
        found[tower] = ways
        for way in _ways(setup):
            with suppress_error(ways, way):
                session = _session(setup, tower, way)
                rows = [np.array([session.run(batch) for _ in range(3)]) for batch in batches]
                singles = [batch[index : index + 1] for batch in batches for index in range(len(batch))]
                alone = np.concatenate([session.run(single) for single in singles])
                together = np.concatenate([row[0] for row in rows])
                cosines = (together.astype(np.float64) * np.concatenate(wanted)).sum(axis=1)
                ways[way] = {
                    "rows": len(together),
                    "worst_cosine": float(cosines.min()),
                    "largest_difference": _largest(together, np.concatenate(wanted)),
                    "largest_difference_between_runs": max(_largest(row, row[:1]) for row in rows),
                    "largest_difference_alone_and_in_a_batch": _largest(alone, together),
                    "is_finite": bool(np.isfinite(together).all()),
                }
                del session
            note(found)
    return found


def latency(setup: Setup, note: Note) -> dict[str, Any]:
    """Time one batch after the other, host to host: with CUDA graphs, with bound buffers alone, by plain
    session.run.
    """
    found: dict[str, Any] = {"cases": []}
    for tower in TOWERS:
        for way in _ways(setup):
            try:
                started = time.perf_counter()
                session = _session(setup, tower, way)
            except EdgeclipError as error:
                found["cases"].append({"tower": tower, "way": way, "error": str(error)})
                note(found)
                continue
            found.setdefault("open_s", {})[f"{tower}, {way}"] = time.perf_counter() - started
            for name, count, tokens in CASES:
                if name == tower:
                    case = {"tower": tower, "way": way, "batch": count, "tokens": tokens or None}
                    batch = _batch(setup, name, count, tokens)
                    with suppress_error(case, "error"):
                        case |= timed(lambda session=session, batch=batch: session.run(batch), count, setup.case_s)  # type: ignore[misc]
                    found["cases"].append(case)
                    note(found)
            del session
    return found


def rivals(setup: Setup, note: Note) -> dict[str, Any]:
    """Time the torch towers at fp16, eager and compiled, on the same inputs, host to host."""
    import torch

    from edgeclip_bench.rivals.torch_towers import MODES, compiled, feed, open_rival, runner

    image = open_manifest(setup.bundle).image
    modules = {tower: open_rival(setup.checkpoint, tower, setup.device, 512) for tower in TOWERS}
    found: dict[str, Any] = {"torch": torch.__version__, "cases": []}
    for mode in MODES:
        if mode != "eager" and setup.is_tiny:
            continue  # half a minute of compiling, to learn nothing
        for tower, count, tokens in CASES:
            case: dict[str, Any] = {"tower": tower, "way": f"torch {mode}", "batch": count, "tokens": tokens or None}
            with suppress_error(case, "error"):
                inputs = feed(_batch(setup, tower, count, tokens), tower, image, setup.device)
                call = runner(compiled(modules[tower], mode), inputs, setup.device)
                started = time.perf_counter()
                call()
                case["first_s"] = time.perf_counter() - started
                case |= timed(call, count, setup.case_s)
            found["cases"].append(case)
            note(found)
            if mode != "eager":
                torch.compiler.reset()
    return found


def soak(setup: Setup, note: Note) -> dict[str, Any]:
    """Encode texts of random lengths and images of random sizes; record memory after the warm-up."""
    draw = np.random.default_rng(0)
    words = ["a", "red", "bicycle", "on", "the", "wall", "of", "an", "old", "house", "by", "the", "sea"]
    samples: list[dict[str, float]] = []
    found: dict[str, Any] = {"seconds": setup.soak_s, "samples": samples}
    with Encoder.open(setup.narrow, device=setup.device) as encoder:
        started, texts, images = time.perf_counter(), 0, 0
        while (now := time.perf_counter() - started) < setup.soak_s:
            lengths = np.exp(draw.uniform(0, np.log(400), draw.integers(1, 24))).astype(int)
            encoder.encode_text([" ".join(draw.choice(words, length)) for length in lengths], progress=False)
            sizes = draw.integers(8, 900, (int(draw.integers(1, 4 if setup.is_tiny else 40)), 2))
            encoder.encode_image([np.zeros((*size, 3), np.uint8) for size in sizes], progress=False)
            texts, images = texts + len(lengths), images + len(sizes)
            if not samples or now - samples[-1]["s"] >= min(1.0, setup.soak_s / 20):
                samples.append({"s": now, **_memory(setup)})
                found |= {"texts": texts, "images": images}
                note(found)
    later = [sample for sample in samples if sample["s"] >= setup.soak_s / 2]
    for kind in ("resident_bytes", "gpu_bytes"):
        values = [sample[kind] for sample in later if kind in sample]
        if values:
            found[f"{kind}_growth_in_second_half"] = values[-1] - values[0]
            found[f"{kind}_most"] = max(values)
    return found


STAGES: dict[str, tuple[Callable[[Setup, Note], dict[str, Any]], float]] = {
    # by name: what it does, and the most seconds of it
    "checkpoint": (make_checkpoint, 120),
    "export": (export, 180),
    "narrow": (narrow, 180),
    "check": (check, 60),
    "latency": (latency, 90),
    "parity": (parity, 75),
    "rivals": (rivals, 150),
    "soak": (soak, 75),
}


def timed(run: Run, count: int, seconds: float) -> dict[str, Any]:
    """The latencies of calls for some seconds after the warm-up, at least ten, and inputs per second."""
    for _ in range(_WARM_UPS):
        run()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples) < 10:
        started = time.perf_counter()
        run()
        samples.append((time.perf_counter() - started) * 1000)
    distribution = summarize(samples)
    return {**asdict(distribution), "inputs_per_s": count * 1000 / distribution.p50_ms}


class suppress_error(suppress):  # noqa: N801 (a context manager, as contextlib names its own)
    """Write an error where its result would stand, and go on with the stage."""

    def __init__(self, into: dict[str, Any], key: str) -> None:
        super().__init__(Exception)
        self._into, self._key = into, key

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if error is not None:
            self._into[self._key] = f"{type(error).__name__}: {error}"
            print(f"  {self._key}: {self._into[self._key]}", file=sys.stderr)
        return super().__exit__(kind, error, trace)


def _ways(setup: Setup) -> tuple[CudaWay, ...]:
    return CUDA_WAYS if setup.device != "cpu" else ("plain",)


def _session(setup: Setup, tower: TowerName, way: CudaWay) -> TowerSession:
    manifest = open_manifest(setup.narrow)
    return TowerSession(_graph(setup.narrow, tower), tower, setup.where, usable_cpus(), manifest, way=way)


def _graph(bundle: Path, tower: TowerName) -> Path:
    return bundle / open_manifest(bundle).tower(tower).file


def _batch(setup: Setup, tower: TowerName, count: int, tokens: int) -> NDArray[Any]:
    size = open_manifest(setup.bundle).image.size_px
    if tower == "text":
        return _ids(setup, count, tokens)
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def _ids(setup: Setup, count: int, tokens: int) -> NDArray[np.int64]:
    """Made-up ids, none of them special; a tiny vocabulary may have only 146."""
    return np.random.default_rng(tokens).integers(5, 130 if setup.is_tiny else 100_000, (count, tokens))


def _largest(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max())


def _memory(setup: Setup) -> dict[str, float]:
    import psutil

    found = {"resident_bytes": float(psutil.Process().memory_info().rss)}
    if setup.device == "cuda":
        from edgeclip.engine.cuda.cudart import CudaStream

        free, total = CudaStream(0).memory()
        found["gpu_bytes"] = float(total - free)
    return found
