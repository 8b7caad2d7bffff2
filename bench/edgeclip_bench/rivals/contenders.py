"""Open and run a tower of any contender by one interface: a bundle's, onnxruntime's, OpenVINO's and torch's.

All get the same number of threads. A bundle's vision tower takes uint8 pixels and the others the reference's floats;
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
import psutil
from numpy.typing import NDArray

from edgeclip.engine.devices import Device
from edgeclip.engine.session import TowerSession
from edgeclip.families.jina_clip import normalize_pixels
from edgeclip.manifest import ImageFacts, TowerName
from edgeclip_bench.rivals.recipes import Engine, LeftOut, first_line

Run = Callable[[NDArray[Any]], NDArray[np.float32]]

_ERRORS_ONLY = 3
_MODULES = {
    "merged": ("edgeclip_bench.rivals.merged_graph", "onnxruntime"),
    "openvino": ("openvino",),
    "torch": ("edgeclip_bench.rivals.torch_towers",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A graph to be measured. `recipe` says in a line how it was made."""

    name: str
    recipe: str
    engine: Engine | Literal["bundle"]
    tower: TowerName
    graph: Path
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """The memory of a graph in a process of its own, opened and run once; the anonymous part cannot be dropped."""

    loaded_bytes: int
    anonymous_bytes: int
    open_s: float


def feed(contender: Contender, batch: NDArray[Any], image: ImageFacts) -> NDArray[Any]:
    """A bundle's batch, ids (B, T) or pixels (B, S, S, 3), as the contender's graph takes it."""
    return batch if contender.tower == "text" or contender.engine == "bundle" else normalize_pixels(batch, image)


def open_run(contender: Contender, threads: int) -> Run:
    """Open the contender and return the function that runs it; the errors are those of its engine."""
    if contender.engine == "bundle":
        return TowerSession(contender.graph, contender.tower, Device(kind="cpu"), threads).run
    if contender.engine == "onnxruntime":
        return _onnxruntime(contender.graph, threads)
    if contender.engine == "merged":
        from edgeclip_bench.rivals.merged_graph import open_merged

        return open_merged(contender.graph, contender.tower, threads)
    if contender.engine == "openvino" or contender.engine == "openvino-bf16":
        return _openvino(contender.graph, threads, "f32" if contender.engine == "openvino" else "bf16")
    from edgeclip_bench.rivals.torch_towers import open_on_cpu

    return open_on_cpu(contender.graph, contender.tower, contender.engine, threads)


def _onnxruntime(graph: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = session.run(None, {name: batch})[0]
        return output

    return run


def _openvino(graph: Path, threads: int, precision: Literal["f32", "bf16"]) -> Run:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,  # else two threads of one core count as one
        # Pinned threads wait for other work on their core: up to 69 ms for a run of 0.3 ms (openvino 2026.4).
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision,  # else bfloat16 where the processor has it
    }
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    if (found := compiled.get_property("INFERENCE_NUM_THREADS")) != threads:
        raise LeftOut(f"openvino takes {found} threads, the others {threads}")
    if (found := compiled.get_property("INFERENCE_PRECISION_HINT").to_string()) != precision:
        raise LeftOut(f"openvino computes in {found} on this processor, whatever it is asked for")

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = compiled(batch, share_inputs=True)[0]
        return output

    return run


def measure_resident(contender: Contender, batch: NDArray[Any], threads: int) -> Resident:
    """Open the contender and run it once, in a fresh process; LeftOut for a rival that cannot be opened."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_resident, contender, batch, threads).result()
        except BrokenProcessPool as error:
            raise LeftOut("the process that opened it died; is there memory enough?") from error


def _resident(contender: Contender, batch: NDArray[Any], threads: int) -> Resident:
    for module in _MODULES.get(contender.engine.partition("-")[0], ("onnxruntime",)):
        importlib.import_module(module)  # else its code counts as the graph's
    process = psutil.Process()
    before = process.memory_info()
    started = time.perf_counter()
    try:
        run = open_run(contender, threads)
        open_s = time.perf_counter() - started
        run(batch)
    except Exception as error:  # engines' errors have no class in common
        raise error if contender.engine == "bundle" else LeftOut(first_line(error)) from None
    after = process.memory_info()
    return Resident(
        loaded_bytes=after.rss - before.rss,
        anonymous_bytes=_anonymous(after) - _anonymous(before),
        open_s=open_s,
    )


def _anonymous(memory: Any) -> int:
    return int(memory.rss - getattr(memory, "shared", 0))  # only Linux reports what is shared
