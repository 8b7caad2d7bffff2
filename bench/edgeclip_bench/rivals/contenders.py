"""Open and run a graph of any contender by one interface: a bundle's, onnxruntime's, OpenVINO's and torch's.

All get the same number of threads. A bundle's vision graph takes uint8 pixels and the others the reference's floats;
`feed` makes them, outside of what is timed.
"""

import importlib
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.devices import Device
from edgeclip.engine.opening import GraphToOpen, open_graph
from edgeclip.engine.ort import start_session
from edgeclip.inputs.square import normalize_pixels
from edgeclip.manifest import ImageFacts
from edgeclip_bench.measure.resident_memory import anonymous_bytes, peak_bytes, reset_peak, resident_bytes
from edgeclip_bench.rivals.recipes import INPUTS, Engine, LeftOut, first_line

Run = Callable[[NDArray[Any]], NDArray[np.float32]]

_MODULES = {
    "merged": ("edgeclip_bench.rivals.merged_graph", "onnxruntime"),
    "openvino": ("openvino",),
    "torch": ("edgeclip_bench.rivals.torch_towers",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A graph to be measured: "text" or "vision", in `path`. `recipe` says in a line how it was made."""

    name: str
    recipe: str
    engine: Engine | Literal["bundle"]
    graph: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """The memory of a graph in a process of its own, opened and run once, and how far it rises in one more run."""

    loaded_bytes: int
    anonymous_bytes: int
    peak_above_loaded_bytes: int
    open_s: float


def feed(contender: Contender, batch: NDArray[Any], image: ImageFacts | None) -> NDArray[Any]:
    """A bundle's batch, ids (B, T) or pixels (B, S, S, 3), as the contender's graph takes it."""
    if contender.graph == "text" or contender.engine == "bundle":
        return batch
    assert image is not None, "a bundle with a vision graph says how its images are normalised"
    return normalize_pixels(batch, image)


def open_run(contender: Contender, threads: int) -> Run:
    """Open the contender and return the function that runs it; the errors are those of its engine."""
    if contender.engine == "bundle":
        opened = open_graph(
            GraphToOpen(
                path=contender.path, graph=contender.graph, device=Device(kind="cpu"), threads=threads, manifest=None
            )
        )
        name = INPUTS[contender.graph]
        return lambda batch: next(iter(opened.run({name: batch}).values()))
    if contender.engine == "onnxruntime":  # its own choice of everything but the number of threads
        session = start_session(contender.path, threads=threads)
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})[0]
    if contender.engine == "merged":
        from edgeclip_bench.rivals.merged_graph import open_merged

        return open_merged(contender.path, contender.graph, threads)
    if contender.engine == "openvino" or contender.engine == "openvino-bf16":
        return _openvino(contender.path, threads, "f32" if contender.engine == "openvino" else "bf16")
    from edgeclip_bench.rivals.torch_towers import open_on_cpu

    return open_on_cpu(contender.path, contender.graph, contender.engine, threads)


def _openvino(path: Path, threads: int, precision: Literal["f32", "bf16"]) -> Run:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,  # else two threads of one core count as one
        # Pinned threads wait for other work on their core: up to 69 ms for a run of 0.3 ms (openvino 2026.4).
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision,  # else bfloat16 where the processor has it
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    if (found := compiled.get_property("INFERENCE_NUM_THREADS")) != threads:
        raise LeftOut(f"openvino takes {found} threads, the others {threads}")
    if (found := compiled.get_property("INFERENCE_PRECISION_HINT").to_string()) != precision:
        raise LeftOut(f"openvino computes in {found} on this processor, whatever it is asked for")
    return lambda batch: compiled(batch, share_inputs=True)[0]


def measure_resident(contender: Contender, batch: NDArray[Any], threads: int) -> Resident:
    """Open the contender and run it twice, in a fresh process; LeftOut for a rival that cannot be opened."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_resident, contender, batch, threads).result()
        except BrokenProcessPool as error:
            raise LeftOut("the process that opened it died; is there memory enough?") from error


def _resident(contender: Contender, batch: NDArray[Any], threads: int) -> Resident:
    for module in _MODULES.get(contender.engine.partition("-")[0], ("onnxruntime",)):
        importlib.import_module(module)  # else its code counts as the graph's
    before, anonymous_before = resident_bytes(), anonymous_bytes()
    started = time.perf_counter()
    try:
        run = open_run(contender, threads)
        open_s = time.perf_counter() - started
        run(batch[:1, :2] if contender.graph == "text" else batch)  # loads what every run needs
        loaded, anonymous = resident_bytes(), anonymous_bytes()
        reset_peak()
        run(batch)
    except Exception as error:  # engines' errors have no class in common
        raise error if contender.engine == "bundle" else LeftOut(first_line(error)) from None
    return Resident(
        loaded_bytes=loaded - before,
        anonymous_bytes=anonymous - anonymous_before,
        peak_above_loaded_bytes=max(0, peak_bytes() - loaded),
        open_s=open_s,
    )
