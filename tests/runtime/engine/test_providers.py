"""What a session is made with, by device and precision; and whose nodes may lie on another provider."""

import json
from pathlib import Path
from typing import get_args

import pytest

from edgeclip.engine.devices import Device, Unit
from edgeclip.engine.providers import (
    EngineFacts,
    Node,
    cache_root,
    cached_engines,
    check_nodes,
    plan_session,
)
from edgeclip.errors import DeviceError
from edgeclip.manifest import Precision

CPU = Device(kind="cpu")
CUDA = Device(kind="cuda", index=3)
TENSORRT = Device(kind="tensorrt", index=3)
ON_CPU, ON_CUDA, ON_TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def test_the_cpu() -> None:
    plan = plan_session(CPU, "fp32", threads=2)
    assert plan.providers == ((ON_CPU, {}),)
    assert plan.without == ("SkipLayerNormFusion",)
    assert dict(plan.entries) == {
        "session.force_spinning_stop": "1",
        "mlas.enable_gemm_fastmath_arm64_bfloat16": "0",
    }
    overflowing = plan_session(CPU, "int8", threads=2, adds_in_16_bits=True)
    assert dict(overflowing.entries) == {**dict(plan.entries), "session.x64quantprecision": "1"}


@pytest.mark.parametrize(
    ("kernels", "is_guarded"),
    [
        (None, True),
        ({"int8 per row": 1}, True),
        ({"int7 per row": 9, "int8 static": 1}, True),
        ({"int9": 1}, True),  # not known
        ({"int8 per row": 0, "fp32": 3}, False),
        ({"int7 per row": 9, "int7 static": 1, "int8 blocks": 2, "int4 blocks": 2, "fp32": 3}, False),
        ({}, False),
    ],
)
def test_only_products_that_can_overflow_are_guarded(kernels: dict[str, int] | None, is_guarded: bool) -> None:
    plan = plan_session(CPU, "int8", threads=2, adds_in_16_bits=True, kernels=kernels)
    assert ("session.x64quantprecision" in dict(plan.entries)) is is_guarded
    exact = plan_session(CPU, "int8", threads=2, adds_in_16_bits=False, kernels=kernels)
    assert "session.x64quantprecision" not in dict(exact.entries)


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("adds_in_16_bits", [False, True])
def test_products_are_never_rounded_to_bfloat16(precision: Precision, adds_in_16_bits: bool) -> None:
    """On arm64 onnxruntime's fast path gave an fp32 bundle a worst cosine of 0.60, under emulation."""
    plan = plan_session(CPU, precision, threads=2, adds_in_16_bits=adds_in_16_bits)
    assert dict(plan.entries)["mlas.enable_gemm_fastmath_arm64_bfloat16"] == "0"


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "1")])
def test_cuda(precision: Precision, tf32: str) -> None:
    """fp32 is fp32, memory grows by request, and the fused LayerNorm is kept."""
    plan = plan_session(CUDA, precision, threads=2, adds_in_16_bits=True)
    [(name, options)] = plan.providers
    assert name == ON_CUDA
    assert options["device_id"] == "3" and options["use_tf32"] == tf32
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert "enable_cuda_graph" not in options
    assert plan.without == ()
    assert plan.entries == (("session.record_ep_graph_assignment_info", "1"),)


def test_cuda_graphs_run_on_their_callers_stream() -> None:
    [(_, options)] = plan_session(CUDA, "fp16", threads=2, stream=12345).providers
    assert (options["enable_cuda_graph"], options["user_compute_stream"]) == ("1", "12345")


@pytest.mark.parametrize(("precision", "fp16", "int8"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "0", "1")])
def test_tensorrt_computes_in_the_bundles_precision(precision: Precision, fp16: str, int8: str) -> None:
    profiles = {"trt_profile_min_shapes": "input_ids:1x2"}
    (name, options), (second, _) = plan_session(TENSORRT, precision, threads=2, profiles=profiles).providers
    assert (name, second) == (ON_TENSORRT, ON_CUDA)
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == (fp16, int8)
    assert options["trt_layer_norm_fp32_fallback"] == fp16
    assert options["trt_profile_min_shapes"] == "input_ids:1x2"
    assert options["device_id"] == "3"


def test_engines_are_kept_where_it_is_said(tmp_path: Path) -> None:
    plan = plan_session(TENSORRT, "fp16", threads=2)
    (_, options), second = cached_engines(plan, tmp_path).providers
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert dict(options) | dict(plan.providers[0][1]) == options and second == plan.providers[1]
    assert cached_engines(plan, tmp_path).entries == plan.entries


def test_an_engine_is_known_by_all_that_it_depends_on() -> None:
    facts = {"files": ("a", "b"), "onnxruntime": "1", "tensorrt": "10", "gpu": "T4", "options": {"x": "1", "y": "2"}}
    key = EngineFacts(**facts).key
    assert len(key) == 32
    assert EngineFacts(**{**facts, "options": {"y": "2", "x": "1"}}).key == key
    others = [("files", ("ab",)), ("onnxruntime", "2"), ("tensorrt", "11"), ("gpu", "H200"), ("options", {"x": "1"})]
    keys = {EngineFacts(**{**facts, name: value}).key for name, value in others}
    assert len(keys | {key}) == len(others) + 1


@pytest.mark.parametrize(
    ("unit", "precision", "hint"),
    [
        *(("CPU", "fp32", "f32"), ("CPU", "int8", "f32"), ("CPU", "fp16", "f32"), ("GPU", "fp32", "f32")),
        *(("GPU", "int8", "f32"), ("GPU", "fp16", "f16"), ("NPU", "fp16", "f16"), ("NPU", "int8", "f16")),
    ],
)
def test_openvino_rounds_only_what_the_bundle_rounds(unit: Unit, precision: Precision, hint: str) -> None:
    """Left alone it takes bf16 or fp16 where the hardware has it."""
    plan = plan_session(Device(kind="openvino", unit=unit), precision, threads=3)
    [(name, options)] = plan.providers
    assert (name, options["device_type"]) == ("OpenVINOExecutionProvider", unit)
    properties = json.loads(options["load_config"])[unit]
    assert properties["INFERENCE_PRECISION_HINT"] == hint
    assert properties.get("INFERENCE_NUM_THREADS") == ("3" if unit == "CPU" else None)
    assert (("session.disable_cpu_ep_fallback", "1") in plan.entries) is (unit != "CPU")


def test_an_npu_refuses_what_it_would_round_in_silence() -> None:
    with pytest.raises(DeviceError, match="computes in fp16 and the bundle is fp32; `edgeclip quantize --to fp16`"):
        plan_session(Device(kind="openvino", unit="NPU"), "fp32", threads=1)


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({}, "/home/a/.cache/edgeclip"),
        ({"XDG_CACHE_HOME": ""}, "/home/a/.cache/edgeclip"),
        ({"XDG_CACHE_HOME": "here"}, "/home/a/.cache/edgeclip"),
        ({"XDG_CACHE_HOME": "/var/cache"}, "/var/cache/edgeclip"),
    ],
)
def test_the_cache_lies_where_the_user_keeps_caches(environment: dict[str, str], root: str) -> None:
    assert cache_root(environment, lambda: Path("/home/a")) == Path(root)


def test_a_user_without_a_home() -> None:
    """Path.home() raises RuntimeError for one; nobody asks it where the place is named."""

    def find_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    assert cache_root({"XDG_CACHE_HOME": "/var/cache"}, find_home) == Path("/var/cache/edgeclip")
    with pytest.raises(DeviceError, match="has no home; set XDG_CACHE_HOME"):
        cache_root({}, find_home)


def nodes(**operators: str) -> list[Node]:
    return [Node(operator=operator.replace("_", "."), provider=provider) for operator, provider in operators.items()]


@pytest.mark.parametrize(
    "stray", ["Shape", "Gather", "Concat", "Unsqueeze", "Equal", "If", "Cast", "ReduceMin", "Mul"]
)
def test_shape_arithmetic_may_stay_on_the_cpu(stray: str) -> None:
    check_nodes([*nodes(MatMul=ON_CUDA), Node(operator=stray, provider=ON_CPU)], CUDA, "text")


@pytest.mark.parametrize(
    "stray",
    [
        *("MatMul", "Gemm", "Conv", "Softmax", "LayerNormalization", "Gelu", "QuantizeLinear", "Sigmoid"),
        *("com.microsoft.MultiHeadAttention", "com.microsoft.MatMulIntegerToFloat", "my.own.Add"),
    ],
)
def test_work_may_not(stray: str) -> None:
    with pytest.raises(DeviceError) as caught:
        check_nodes([*nodes(Mul=ON_CUDA), *[Node(operator=stray, provider=ON_CPU)] * 2], CUDA, "text")
    assert str(caught.value) == (
        f"device cuda:3 does not run 2 of the 3 nodes of the text graph (2 {stray} on {ON_CPU}); "
        "make a bundle for it with `edgeclip export --target cuda`"
    )


def test_every_stray_operator_is_named() -> None:
    """On TensorRT also those that CUDA took."""
    mixed = [*nodes(MatMul=ON_TENSORRT, Gelu=ON_CUDA, Softmax=ON_CPU, Shape=ON_CPU)]
    with pytest.raises(DeviceError, match=r"2 of the 4 .*1 Softmax on CPU.*, 1 Gelu on CUDA.*--target tensorrt"):
        check_nodes(mixed, TENSORRT, "vision")


@pytest.mark.parametrize("left", [[], nodes(Shape=ON_CPU, Gather=ON_CPU)])
def test_a_device_that_runs_nothing(left: list[Node]) -> None:
    with pytest.raises(DeviceError, match=f"cuda:3 runs none of the {len(left)} nodes"):
        check_nodes(left, CUDA, "text")
