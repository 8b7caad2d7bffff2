"""The share of the machine's limits that a graph reaches: its work beside a bare matrix product and a bare copy.

The work is counted, not estimated: onnxruntime's profile of one run has the real shape of every node, also in
branches and in the last block, which computes one token alone. It counts matrix products (2 M N K) and attention (4 B
S T H for queries S, keys T and heads H wide together); the rest is small beside them, and its time is part of what
keeps the share below 1. The bytes are those of the weights, which every run reads whole (of the token table only some
rows, so it is left out); a graph that fits the cache reads them faster than a copy, and its share can be above 1.

    floor = max(FLOPs / product's rate, bytes / copy's rate)

A long text or an image is bound by the first, a short query by the second. Products of the graph's own two heaviest
shapes are measured, in its own arithmetic, and the faster rate counts. Its attention stays fp32 where the layers are
int8, so an int8 graph cannot reach 1.
"""

import functools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine.adapters import Adapters
from edgeclip.engine.ort import first_line, import_onnxruntime, start_session
from edgeclip.engine.paired_timing import take_turns
from edgeclip.engine.providers import Plan
from edgeclip.errors import BuildError
from edgeclip.families.family import Item
from edgeclip.manifest import Precision

GemmKind = Literal["fp32", "fp16", "int8"]

_FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
_INTEGER_PRODUCTS = (
    *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "MatMulNBits"),
)
_PRODUCTS = frozenset((*_FLOAT_PRODUCTS, *_INTEGER_PRODUCTS))
_ATTENTIONS = frozenset(("MultiHeadAttention", "Attention"))
# They multiply too, and their shapes say something else: better no ceiling than a wrong one.
_UNCOUNTED = frozenset(("Conv", "FusedConv", "ConvInteger", "QLinearConv", "PackedMultiHeadAttention", "QAttention"))
_SHAPES_TRIED = 2
_GEMM_S = 0.4
_GEMM_RUNS = 5
_PAUSE_S = 0.03
_COPY_BYTES = 256 * 2**20
_COPIES = 5
_OPERATORS_KEPT = 8
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "CUDAExecutionProvider"}

Shape = tuple[int, ...]
Product = tuple[int, int, int]  # M, K, N
# By onnxruntime's names, of what a table may hold.
_ITEM_BYTES = {"float": 4, "float16": 2, "int8": 1, "uint8": 1, "int32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRun:
    """One node of a profiled run."""

    operator: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    table_bytes: int
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of one run of a graph, with the products by shape, heaviest first."""

    flops: int
    attention_flops: int
    weight_bytes: int
    products: tuple[tuple[Product, int], ...]
    operators_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """A bare matrix product that was measured."""

    kind: GemmKind
    m: int
    k: int
    n: int
    gflop_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """A graph's compute time beside the machine's limits: `share` is the floor divided by the measured time."""

    gflop: float
    attention_gflop: float
    weight_bytes: int
    compute_ms: float
    gflop_per_s: float
    gemm: Gemm
    share_of_gemm: float
    weights_gb_per_s: float
    copy_gb_per_s: float | None
    floor_ms: float
    bound: Literal["compute", "memory"]
    share: float
    operators_ms: Mapping[str, float]


def count_work(nodes: Sequence[NodeRun], file_bytes: int) -> Work:
    """The work in the nodes of one run, for a graph with files of this size; BuildError for an unknown operator."""
    if unknown := sorted({node.operator for node in nodes} & _UNCOUNTED):
        raise BuildError(f"the work of {', '.join(unknown)} cannot be counted")
    products: Counter[Product] = Counter()
    attention = table_bytes = 0
    times: Counter[str] = Counter()
    for node in nodes:
        times[node.operator] += node.ms  # type: ignore[assignment]
        if node.operator in _PRODUCTS:
            out, k = node.outputs[0], node.inputs[0][-1]
            products[prod(out[:-1]), k, out[-1]] += 1
        elif node.operator in _ATTENTIONS:
            query, key = node.inputs[:2]  # (B, S, H) or (B, heads, S, D), and the same with T
            attention += 4 * prod(query) * key[-2]
        elif node.operator == "Gather":
            table_bytes += node.table_bytes
    weighed = sorted(((shape, 2 * prod(shape) * count) for shape, count in products.items()), key=lambda one: -one[1])
    return Work(
        flops=sum(flops for _, flops in weighed) + attention,
        attention_flops=attention,
        weight_bytes=max(0, file_bytes - table_bytes),
        products=tuple(weighed),
        operators_ms={name: round(ms, 3) for name, ms in times.most_common(_OPERATORS_KEPT)},
    )


def make_ceiling(work: Work, compute_ms: float, gemm: Gemm, copy_gb_per_s: float | None) -> Ceiling:
    """Compare the work with the machine's limits."""
    seconds = compute_ms / 1000
    compute_floor_s = work.flops / (gemm.gflop_per_s * 1e9)
    memory_floor_s = work.weight_bytes / (copy_gb_per_s * 1e9) if copy_gb_per_s else 0.0
    floor_s = max(compute_floor_s, memory_floor_s)
    reached = work.flops / seconds / 1e9
    return Ceiling(
        gflop=work.flops / 1e9,
        attention_gflop=work.attention_flops / 1e9,
        weight_bytes=work.weight_bytes,
        compute_ms=compute_ms,
        gflop_per_s=reached,
        gemm=gemm,
        share_of_gemm=reached / gemm.gflop_per_s,
        weights_gb_per_s=work.weight_bytes / seconds / 1e9,
        copy_gb_per_s=copy_gb_per_s,
        floor_ms=floor_s * 1000,
        bound="memory" if memory_floor_s > compute_floor_s else "compute",
        share=floor_s / seconds,
        operators_ms=work.operators_ms,
    )


def gemm_kind(precision: Precision, device: str) -> GemmKind:
    """The arithmetic of a graph's layers on a device; int8 for TensorRT is compared with fp16."""
    if device.partition(":")[0] in ("cuda", "tensorrt"):
        return "fp32" if precision == "fp32" else "fp16"
    return "int8" if precision in ("int8", "int4") else "fp32"


def profile_graph(encoder: Encoder, items: Sequence[Item], threads: int) -> Work:
    """The work of one run of a batch of items that are alike, profiled on the CPU for every device."""
    facts = encoder.manifest.graphs[items[0].graph]
    feed = encoder.family.feed(items)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            session = start_session(encoder.folder / facts.file, threads=threads, profile=Path(scratch) / "profile")
            wanted = {one.name: tuple(one.shape) for one in session.get_inputs() if one.name not in feed}
            adapters = Adapters(encoder.folder, items[0].graph, encoder.manifest, wanted)
            for _ in range(2):  # the last is read
                session.run(None, {**feed, **adapters.get(items[0].adapter)})
        except Exception as error:  # onnxruntime's have no class in common
            raise BuildError(f"onnxruntime cannot profile it ({first_line(error)})") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    size = sum(file.size_bytes for file in encoder.manifest.files if file.name.startswith(facts.file))
    return count_work(list(read_profile(events)), size)


def read_profile(events: Sequence[Mapping[str, Any]]) -> Iterable[NodeRun]:
    """The nodes of the last run in onnxruntime's profile."""
    began = max(event["ts"] for event in events if event.get("name") == "model_run")
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time") or event["ts"] < began:
            continue
        name, inputs = event["args"]["op_name"], event["args"]["input_type_shape"]  # each {type: shape}
        yield NodeRun(
            operator=name,
            inputs=_shapes(inputs),
            outputs=_shapes(event["args"]["output_type_shape"]),
            # Not the profile's parameter_size, which is 0 for a table that is a mapped file (onnxruntime 1.31).
            table_bytes=sum(prod(shape) * _ITEM_BYTES.get(kind, 0) for kind, shape in inputs[0].items())
            if name == "Gather"
            else 0,
            ms=event["dur"] / 1000,
        )


def _shapes(listed: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(next(iter(one.values()), ())) for one in listed)


def best_gemm(work: Work, kind: GemmKind, device: str, threads: int) -> Gemm:
    """The faster of the work's two heaviest products, measured bare."""
    tried = [
        Gemm(kind=kind, m=m, k=k, n=n, gflop_per_s=measure_gemm(kind, (m, k, n), device, threads))
        for (m, k, n), _ in work.products[:_SHAPES_TRIED]
    ]
    if not tried:
        raise BuildError("the graph holds no product of matrices")
    return max(tried, key=lambda gemm: gemm.gflop_per_s)


@functools.cache
def measure_gemm(kind: GemmKind, shape: Product, device: str, threads: int) -> float:
    """GFLOP/s of one product (M, K) x (K, N) by onnxruntime on a device, the best of many runs, without copies."""
    name, _, index = device.partition(":")
    provider = _PROVIDERS.get(name, _PROVIDERS["cpu"])
    place, number = ("cuda", int(index or 0)) if provider != _PROVIDERS["cpu"] else ("cpu", 0)
    session = start_session(_gemm_model(kind, shape), plan=Plan(providers=((provider, {}),)), threads=threads)
    draw = np.random.default_rng(0)
    m, k, n = shape
    rows: NDArray[Any] = draw.standard_normal((m, k), dtype=np.float32)
    rows = draw.integers(0, 255, (m, k), dtype=np.uint8) if kind == "int8" else rows
    rows = rows.astype(np.float16) if kind == "fp16" else rows
    binding = session.io_binding()
    binding.bind_ortvalue_input("a", import_onnxruntime().OrtValue.ortvalue_from_numpy(rows, place, number))
    binding.bind_output("y", place, number)
    time.sleep(_PAUSE_S)  # the threads of the encoder's session spin for a while

    def multiply() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return 2 * m * k * n / _least_s(multiply, sys.maxsize, seconds=_GEMM_S, least=_GEMM_RUNS) / 1e9


def _least_s(work: Callable[[], object], rounds: int, **limits: Any) -> float:
    """The seconds of the quickest call, after one that does not count."""
    return float(take_turns({"": work}, rounds, warm_up=1, is_alone=False, **limits)[""].min())


def _gemm_model(kind: GemmKind, shape: Product) -> bytes:
    from onnx import numpy_helper, parser

    m, k, n = shape
    draw = np.random.default_rng(1)
    if kind == "int8":  # as the int8 bundle's layers
        integers = draw.integers(-127, 128, (k, n), dtype=np.int8)
        constants = {"b": integers, "s": np.float32(0.01), "t": np.full(n, 0.01, np.float32), "z": np.uint8(128)}
        given, taken, product = "uint8", "float", "com.microsoft.MatMulIntegerToFloat"
    else:
        given = taken = "float16" if kind == "fp16" else "float"
        weights = draw.standard_normal((k, n), dtype=np.float32) / 100
        constants = {"b": weights.astype(np.float16) if kind == "fp16" else weights}
        product = "MatMul"
    graph = f"gemm ({given}[{m},{k}] a) => ({taken}[{m},{n}] y) {{ y = {product}(a, {', '.join(constants)}) }}"
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["": 20, "com.microsoft": 1]> {graph}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(one), name) for name, one in constants.items())
    written: bytes = model.SerializeToString()
    return written


@functools.cache
def measure_copy(threads: int) -> float:
    """GB/s of a copy in memory with so many threads, bytes read and written both counted, the best of several."""
    size = int(min(_COPY_BYTES, psutil.virtual_memory().available // 8))
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    bounds = np.linspace(0, size, threads + 1, dtype=int)

    def copy(part: int) -> None:
        span = slice(bounds[part], bounds[part + 1])
        np.copyto(target[span], source[span])

    with ThreadPoolExecutor(threads) as pool:
        return 2 * size / _least_s(lambda: list(pool.map(copy, range(threads))), _COPIES) / 1e9
