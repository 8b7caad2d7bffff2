"""Choose the options with which onnxruntime runs a tower on a device, and judge whether the device really runs it.

Every session option stands in this file. All functions are pure: `plan_session` gives the options, `check_nodes`
judges which provider took each node; `edgeclip.engine.session` acts on both.

Not set, on purpose: session.set_denormal_as_zero, because it also switches denormals off in the thread that opens the
session, so that the caller's own numpy rounds 1e-40 to 0 from then on (onnxruntime 1.31). Arena shrinkage on a GPU,
because it would free what CUDA graphs point into (`edgeclip.engine.cuda.bound_runs`); growth by request keeps the
arena small.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclip.engine.devices import PROVIDERS, Device
from edgeclip.errors import DeviceError
from edgeclip.manifest import Precision, Target

Options = Mapping[str, str]

# Add and LayerNormalization as two nodes beat the fused one on the CPU: 2.1 ms against 2.4 for the 48 of
# a 16-token text, 30 against 135 for 47 at 1297 tokens (onnxruntime 1.31).
_SLOWER_ON_CPU = ("SkipLayerNormFusion",)
# Without VNNI, x86 adds pairs of products of unsigned inputs and signed weights in 16 bits, which overflow; with this
# onnxruntime makes the weights unsigned, slower and right (onnxruntime #5644). It does so wherever x86 has AVX2, with
# VNNI too, where it takes twice the time for nothing: 3.8 ms for 256 rows of 1024 to 4096, 8.0 with it.
_RIGHT_WITHOUT_VNNI = ("session.x64quantprecision", "1")
# Kernels (`GraphFacts.kernels`) that need no such guard: floats; blocks, which are multiplied in another way; and
# weights of which neighbours have 128 together, 7 bits each, for 255 * 128 is less than 2^15.
_NEVER_OVERFLOW = frozenset(("fp32", "fp16", "int8 blocks", "int4 blocks", "int7 static", "int7 per row"))
# Off, as it is by default: on arm64 with bf16 it rounds the factors of fp32 products to 8 bits. Under emulation the
# worst cosine of an fp32 bundle was 0.60 with it; no board has been measured.
_NO_BFLOAT16 = ("mlas.enable_gemm_fastmath_arm64_bfloat16", "0")
# The pool's threads stop spinning when a call ends instead of up to a millisecond later: a 16-token text costs the
# same (0.98), and the cores are free for the caller, the other tower, or another process.
_SPIN_ONLY_INSIDE_CALLS = ("session.force_spinning_stop", "1")
# Makes the session remember which provider took each node.
_RECORD_NODES = ("session.record_ep_graph_assignment_info", "1")
# Without it OpenVINO compiles for its CPU, in silence, what a GPU or NPU refused.
_NO_CPU = ("session.disable_cpu_ep_fallback", "1")
# What shapes are computed with; onnxruntime keeps these on the CPU beside a GPU, a few numbers each. The same names
# stand for work on activations, which every GPU provider takes: an activation would bring others along.
_SHAPE_ARITHMETIC = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "ReduceMin", "ReduceMax", "ReduceSum", "Cast", "Identity"),
        *("And", "Or", "Not", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "If"),
        *("Shape", "Size", "Constant", "ConstantOfShape", "Range", "Concat", "Expand", "Gather", "Reshape", "Slice"),
        *("Split", "Squeeze", "Unsqueeze"),
    )
)
_TARGETS: dict[str, Target] = {"cuda": "cuda", "tensorrt": "tensorrt", "openvino": "tensorrt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a session is made with: providers by preference, config entries, and optimisers that are switched off."""

    providers: tuple[tuple[str, Options], ...]
    entries: tuple[tuple[str, str], ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An operator by onnxruntime's name (domain.type, without the standard domain), and its provider."""

    operator: str
    provider: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """Everything a TensorRT engine depends on: two towers with equal facts may share an engine.

    `files` are the sha256 of the graph and its weights, which are part of an engine.
    """

    files: tuple[str, ...]
    onnxruntime: str
    tensorrt: str
    gpu: str
    options: Options

    @property
    def key(self) -> str:
        """32 hex digits that stand for these facts."""
        facts = [self.files, self.onnxruntime, self.tensorrt, self.gpu, sorted(self.options.items())]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def plan_session(
    device: Device,
    precision: Precision,
    *,
    threads: int,
    adds_in_16_bits: bool = False,
    kernels: Mapping[str, int] | None = None,
    profiles: Options | None = None,
    stream: int | None = None,
) -> Plan:
    """The options for a tower of this precision on this device.

    `adds_in_16_bits` says of a CPU that its integer products overflow. They are guarded then, unless `kernels`, those
    of the graph's layers as the manifest counts them, cannot overflow. `profiles` are TensorRT's
    trt_profile_*_shapes. `stream` is the address of the CUDA stream for captured graphs. DeviceError for a precision
    that the device does not compute in, and for OpenVINO where products overflow, because it has no guard.
    """
    if device.kind == "cpu":
        is_guarded = adds_in_16_bits and (kernels is None or may_overflow(kernels))
        entries = (_SPIN_ONLY_INSIDE_CALLS, _NO_BFLOAT16, *((_RIGHT_WITHOUT_VNNI,) if is_guarded else ()))
        return Plan(providers=((device.provider, {}),), entries=entries, without=_SLOWER_ON_CPU)
    if device.kind == "openvino":
        if adds_in_16_bits and kernels is not None and may_overflow(kernels):
            raise DeviceError(
                f"{device}: 8-bit products overflow in OpenVINO on x86 without VNNI; quantise the fp32 bundle with "
                "--to int8 --cpu avx2, whose weights have 7 bits"
            )
        providers: tuple[tuple[str, Options], ...]
        providers = ((device.provider, _openvino_options(device, precision, threads)),)
        return Plan(providers=providers, entries=(_RECORD_NODES, *(() if device.unit == "CPU" else (_NO_CPU,))))
    cuda = (PROVIDERS["cuda"], _cuda_options(device, precision, stream))
    providers = (cuda,)
    if device.kind == "tensorrt":  # CUDA beside it for the shape arithmetic alone: `check_nodes`
        providers = ((device.provider, _tensorrt_options(device, precision, profiles or {})), cuda)
    return Plan(providers=providers, entries=(_RECORD_NODES,))


def may_overflow(kernels: Mapping[str, int]) -> bool:
    """Whether a layer's kernel can overflow on a CPU that adds products in 16 bits; one that is not known can."""
    return any(count and kernel not in _NEVER_OVERFLOW for kernel, count in kernels.items())


def cached_engines(plan: Plan, folder: Path) -> Plan:
    """The plan, changed so that TensorRT's engines and timings are kept in `folder`."""
    (name, options), *others = plan.providers
    kept = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
    return replace(plan, providers=((name, {**options, **kept}), *others))


def cache_root(environment: Mapping[str, str], find_home: Callable[[], Path] = Path.home) -> Path:
    """The folder for all that edgeclip can build again: $XDG_CACHE_HOME/edgeclip, else ~/.cache/edgeclip.

    DeviceError where neither is known, as in a container whose user has no entry in /etc/passwd.
    """
    named = environment.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():  # a relative one is to be ignored: XDG Base Directory Specification 0.8
        return Path(named) / "edgeclip"
    try:
        return find_home() / ".cache" / "edgeclip"
    except RuntimeError as error:
        raise DeviceError(
            "no place to keep engines: this user has no home; set XDG_CACHE_HOME to a folder that may be written"
        ) from error


def check_nodes(nodes: Iterable[Node], device: Device, graph: str) -> None:
    """DeviceError when the device did not take every node but shape arithmetic.

    The message counts the operators by the provider that took them. `graph` names the graph in it.
    """
    nodes = list(nodes)
    strays = Counter(
        (node.provider, node.operator)
        for node in nodes
        if node.provider != device.provider and node.operator not in _SHAPE_ARITHMETIC
    )
    if strays:
        counts = ", ".join(
            f"{count} {operator} on {provider}" for (provider, operator), count in sorted(strays.items())
        )
        raise DeviceError(
            f"device {device} does not run {sum(strays.values())} of the {len(nodes)} nodes of the {graph} graph "
            f"({counts}); make a bundle for it with `edgeclip export --target {_TARGETS[device.kind]}`"
        )
    if not any(node.provider == device.provider for node in nodes):
        raise DeviceError(f"device {device} runs none of the {len(nodes)} nodes of the {graph} graph")


def _cuda_options(device: Device, precision: Precision, stream: int | None) -> Options:
    options = {
        "device_id": str(device.index),
        # The next power of two, the default, takes up to twice what is asked for and keeps it (onnxruntime #22297).
        "arena_extend_strategy": "kSameAsRequested",
        # fp32 is fp32: TF32 keeps 10 bits of each factor. What is narrowed anyway is proved as it runs.
        "use_tf32": "0" if precision == "fp32" else "1",
        # The towers have no convolution (the patch embedding is a GEMM): nothing to search for seconds.
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": "1",
    }
    if stream is not None:
        options |= {"enable_cuda_graph": "1", "user_compute_stream": str(stream)}
    return options


def _tensorrt_options(device: Device, precision: Precision, profiles: Options) -> Options:
    return {
        "device_id": str(device.index),
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        # Q and DQ stand in the graph, so there is nothing to calibrate.
        "trt_int8_enable": "1" if precision == "int8" else "0",
        # LayerNormalization in fp16 overflows: cosine 0.65 (NVIDIA/TensorRT #4373).
        "trt_layer_norm_fp32_fallback": "1" if precision == "fp16" else "0",
        **profiles,
    }


def _openvino_options(device: Device, precision: Precision, threads: int) -> Options:
    if device.unit == "NPU" and precision == "fp32":
        raise DeviceError(
            f"device {device} computes in fp16 and the bundle is fp32; `edgeclip quantize --to fp16` makes one that "
            "is proved so"
        )
    # Its default is what the processor is fastest at: bf16 where it has AMX, fp16 on GPUs.
    is_half = device.unit == "NPU" or (device.unit == "GPU" and precision == "fp16")
    properties = {"INFERENCE_PRECISION_HINT": "f16" if is_half else "f32"}
    if device.unit == "CPU":
        properties |= {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
    return {"device_type": device.unit, "load_config": json.dumps({device.unit: properties})}
