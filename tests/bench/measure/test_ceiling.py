"""The ceiling: work counted by hand and by onnxruntime's profile is the same, and shares are of the right limit."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeclip import Encoder
from edgeclip.errors import BuildError
from edgeclip_bench.measure.ceiling import (
    Gemm,
    NodeRun,
    Work,
    best_gemm,
    count_work,
    gemm_kind,
    make_ceiling,
    measure_copy,
    measure_gemm,
    profile_graph,
)

GEMM = Gemm(kind="fp32", m=16, k=64, n=64, gflop_per_s=100.0)


def node(operator: str, *inputs: tuple[int, ...], out: tuple[int, ...], parameters: int = 0) -> NodeRun:
    return NodeRun(operator=operator, inputs=inputs, outputs=(out,), table_bytes=parameters, ms=1.0)


def test_products_and_attention_are_counted() -> None:
    nodes = [
        node("Gather", (100, 8), (3,), out=(3, 8), parameters=800),
        node("MatMul", (2, 3, 8), out=(2, 3, 16)),
        node("MatMulIntegerToFloat", (6, 8), out=(6, 16)),
        node("MultiHeadAttention", (2, 3, 8), (2, 5, 8), (2, 5, 8), out=(2, 3, 8)),
        node("Add", (2, 3, 8), (2, 3, 8), out=(2, 3, 8)),
    ]
    work = count_work(nodes, file_bytes=1000)
    assert work.products == (((6, 8, 16), 2 * 2 * 6 * 8 * 16),)
    assert work.attention_flops == 4 * 2 * 3 * 5 * 8
    assert work.flops == 2 * 2 * 6 * 8 * 16 + 4 * 2 * 3 * 5 * 8
    assert work.weight_bytes == 200


def test_attention_with_heads_apart_is_the_same() -> None:
    apart = node("Attention", (2, 4, 3, 8), (2, 4, 5, 8), (2, 4, 5, 8), out=(2, 4, 3, 8))
    together = node("MultiHeadAttention", (2, 3, 32), (2, 5, 32), (2, 5, 32), out=(2, 3, 32))
    assert count_work([apart], 0).attention_flops == count_work([together], 0).attention_flops


def test_an_operator_that_nobody_counted_is_an_error() -> None:
    with pytest.raises(BuildError, match="the work of Conv cannot be counted"):
        count_work([node("Conv", (1, 3, 8, 8), out=(1, 4, 8, 8))], 0)


def test_the_floor_is_the_larger_of_compute_and_memory() -> None:
    work = Work(flops=10**9, attention_flops=0, weight_bytes=10**9, products=(), operators_ms={})
    by_memory = make_ceiling(work, 50.0, GEMM, 50.0)
    assert (by_memory.bound, by_memory.floor_ms, by_memory.share) == ("memory", 20.0, pytest.approx(0.4))
    by_compute = make_ceiling(work, 50.0, GEMM, 200.0)
    assert (by_compute.bound, by_compute.floor_ms, by_compute.share) == ("compute", 10.0, pytest.approx(0.2))
    assert (by_compute.gflop_per_s, by_compute.weights_gb_per_s) == pytest.approx((20.0, 20.0))
    assert by_compute.share_of_gemm == pytest.approx(0.2)
    assert make_ceiling(work, 50.0, GEMM, None).bound == "compute"


@pytest.mark.parametrize(("batch", "tokens"), [(1, 5), (3, 16)])
def test_a_text_graphs_work_is_its_architectures(bundle: Path, encoder: Encoder, batch: int, tokens: int) -> None:
    """Three layers, 64 wide, MLPs of 160: q, k, v and output, the MLP's two, attention; pooling is a product too."""
    items = encoder.family.token_ids([[7] * (tokens - 2)] * batch, None, None).items
    assert {item.tokens for item in items} == {tokens}
    work = profile_graph(encoder, items, 1)
    layers, width, mlp = 3, 64, 160
    rows = batch * tokens
    linear = layers * 2 * rows * (4 * width * width + 2 * width * mlp)
    attention = layers * 4 * batch * tokens * tokens * width
    assert work.attention_flops == attention
    pooling = 2 * batch * tokens * width
    assert work.flops == linear + attention + pooling
    initializers = ir.load(bundle / encoder.manifest.graphs["text"].file).graph.initializers.values()
    rows_of_table = max(int(one.shape[0]) for one in initializers if one.shape and one.shape[-1] == width)
    sizes = [file.size_bytes for file in encoder.manifest.files if file.name.startswith("text.onnx")]
    assert work.weight_bytes == sum(sizes) - 4 * width * rows_of_table


def test_the_int8_bundles_work_is_the_same(int8_bundle: Path, encoder: Encoder) -> None:
    """Another arithmetic, the same products; and fewer bytes."""
    items = [encoder.prepare_image(np.zeros((40, 40, 3), np.uint8))]
    with Encoder.open(int8_bundle, device="cpu") as narrowed:
        found = profile_graph(narrowed, items, 1)
    wanted = profile_graph(encoder, items, 1)
    assert found.flops == wanted.flops
    assert found.weight_bytes < wanted.weight_bytes


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_a_bare_gemm_runs(kind: str) -> None:
    assert measure_gemm(kind, (16, 64, 32), "cpu", 1) > 0.01  # type: ignore[arg-type]


def test_the_faster_of_the_heaviest_products_counts() -> None:
    work = Work(
        flops=1, attention_flops=0, weight_bytes=1, products=(((4, 8, 8), 512), ((1, 8, 8), 128)), operators_ms={}
    )
    rates = [measure_gemm("fp32", shape, "cpu", 1) for shape, _ in work.products]
    assert best_gemm(work, "fp32", "cpu", 1).gflop_per_s == max(rates)
    with pytest.raises(BuildError, match="no product"):
        best_gemm(Work(flops=0, attention_flops=0, weight_bytes=0, products=(), operators_ms={}), "fp32", "cpu", 1)


def test_a_bare_copy_runs() -> None:
    assert 0.01 < measure_copy(2) < 10_000


def test_the_gemm_is_in_the_graphs_arithmetic() -> None:
    assert gemm_kind("int8", "cpu") == "int8"
    assert gemm_kind("int4", "cpu") == "int8"
    assert gemm_kind("fp32", "cuda:0") == "fp32"
    assert gemm_kind("fp16", "cuda:1") == "fp16"
    assert gemm_kind("fp16", "cpu") == "fp32"
