"""Bundles for x86 without VNNI: products that cannot overflow in 16 bits, proved as others, in every family."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest

from edgeclip import BuildError, Encoder, Manifest
from edgeclip.bundle.selftest import repeat_proof, run_selftest
from edgeclip.engine import opening
from edgeclip.engine.devices import Device, Unit
from edgeclip.engine.providers import may_overflow
from edgeclip.errors import DeviceError
from edgeclip_quant import graph_runner, quantize_bundle
from edgeclip_quant.graph_runner import open_run
from edgeclip_quant.kernels import Kernel, has_pairs
from edgeclip_quant.quantize import find_cpu
from edgeclip_quant.recipes import COMPARED, INT4, INT8, for_cpu, is_default, usable_recipes
from tests.conftest import Bundles, made_once
from tests.scenes.command import Captured, refusal
from tests.scenes.graph_feeds import feeds, made_up
from tests.scenes.small_families import FAMILIES, small_bundle

GUARD = ("session.x64quantprecision", "1")
# Largest sum of two products in 16 bits.
MOST = 2**15 - 1


@pytest.fixture(scope="module", autouse=True)
def _no_pauses() -> Iterator[None]:
    """What a timing waits for before each run is nothing to wait for here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeclip.engine.paired_timing.PAUSE_S", 0)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def narrow(request: pytest.FixtureRequest, shared: Path) -> Path:
    family: str = request.param
    source = small_bundle(family, shared)
    return made_once(shared / f"{family}-avx2", lambda out: quantize_bundle(source, out, to="int8", cpu="avx2"))


def integer_weights(path: Path) -> list[np.ndarray]:
    """The weights (in, out) of every product of integers in a graph."""
    nodes = [node for node in ir.load(path).graph if node.op_type == "MatMulIntegerToFloat"]
    return [node.inputs[1].const_value.numpy().astype(np.int64) for node in nodes]  # type: ignore[union-attr]


def largest_sum(weight: np.ndarray) -> int:
    """The largest magnitude that two neighbouring products have together, of inputs of 255."""
    even = np.concatenate([weight, np.zeros((len(weight) % 2, weight.shape[1]), np.int64)])
    pairs = even.reshape(-1, 2, weight.shape[1])
    return max(255 * int(np.maximum(sign * pairs, 0).sum(axis=1).max()) for sign in (1, -1))


def test_no_product_can_overflow(narrow: Path) -> None:
    """Of any inputs: all of 255 beside the weights of one sign is the worst."""
    manifest = Manifest.read(narrow)
    for facts in manifest.graphs.values():
        assert facts.precision == "int8" and facts.kernels["int7 per row"] > 0
        assert set(facts.kernels) <= {"int7 static", "int7 per row", "fp32"}
        weights = integer_weights(narrow / facts.file)
        assert len(weights) >= facts.kernels["int7 per row"]
        assert max(map(largest_sum, weights)) <= MOST


def test_it_is_proved_and_checked_as_any_other(narrow: Path) -> None:
    manifest = Manifest.read(narrow)
    assert {one.against for one in manifest.measured} == {"fp32 checkpoint", "fp32 bundle"}
    with Encoder.open(narrow, device="cpu") as encoder:
        run_selftest(manifest, encoder.ask, narrow, device="cpu")
        assert repeat_proof(manifest, encoder.run_graph, narrow, device="cpu")


def test_the_runtime_guards_what_can_overflow_and_nothing_else(
    narrow: Path, int8_bundle: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "adds_in_16_bits", lambda: True)
    for folder, is_guarded in ((narrow, False), (int8_bundle, True), (bundle, False)):
        with Encoder.open(folder, device="cpu") as encoder:
            for graph in encoder.manifest.graphs:
                assert (GUARD in encoder.plan(graph).entries) is is_guarded
    monkeypatch.setattr(opening, "pairs_overflow", lambda: True)
    with Encoder.open(narrow, device="cpu") as encoder:
        assert all(GUARD in encoder.plan(graph).entries for graph in encoder.manifest.graphs)


def test_the_guard_changes_no_bit(narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it weights are unsigned and products are added in 32 bits: on any x86 that is the exact sum."""
    monkeypatch.setattr(graph_runner, "adds_in_16_bits", lambda: True)
    for name, facts in Manifest.read(narrow).graphs.items():
        path = narrow / facts.file
        plain, guarded = open_run(path, facts.kernels), open_run(path)
        for feed in feeds(narrow, name, made_up(narrow, texts=2, images=1))[:2]:
            for found, wanted in zip(plain(feed).values(), guarded(feed).values(), strict=True):
                np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_the_runtime_knows_which_kernels_can_overflow(kernel: Kernel) -> None:
    is_safe = kernel == "fp32" or has_pairs(kernel) or kernel.endswith("blocks")
    assert may_overflow({kernel: 1}) is not is_safe


def test_recipes_for_each_kind_of_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [for_cpu(one, "vnni") for one in COMPARED] == list(COMPARED)
    narrow = for_cpu(INT8, "avx2")
    assert (narrow.name, narrow.kernels) == ("int8-avx2", ("int7 static", "int7 per row"))
    assert for_cpu(INT4, "avx2").kernels == ("int4 blocks", "int7 per row")
    assert for_cpu(INT4, "avx2").finer_kernels == ("int7 per row", "int8 blocks")
    assert [one.name for one in (for_cpu(one, "avx2") for one in COMPARED) if is_default(one)] == ["int8-avx2"]
    for one in usable_recipes(is_made_up=False, cpu="avx2"):
        assert not {"int8 static", "int8 per row"} & {*one.kernels, *one.finer_kernels}
    for is_without, cpu in ((True, "avx2"), (False, "vnni")):
        monkeypatch.setattr("edgeclip_quant.quantize.adds_in_16_bits", lambda is_without=is_without: is_without)
        assert find_cpu("auto") == cpu


def test_it_is_refused_where_it_means_nothing(bundles: Bundles, tmp_path: Path, capsys: Captured) -> None:
    source = bundles["cuda"]
    told = refusal("quantize", source, tmp_path / "out", "--to", "fp16", "--cpu", "avx2", capsys=capsys)
    assert told == f"{source}: is for cuda, and --cpu avx2 is for bundles for the cpu or tensorrt"
    with pytest.raises(BuildError, match="is for bundles for the cpu or tensorrt"):
        quantize_bundle(source, tmp_path / "out", to="fp16", cpu="auto")
    assert not (tmp_path / "out").exists()


def test_pairs_for_openvino_have_seven_bits_too(bundles: Bundles, tmp_path: Path) -> None:
    """OpenVINO adds two products in 16 bits, and has no guard: it is to run no weights of 8 bits there."""
    manifest = quantize_bundle(bundles["tensorrt"], tmp_path / "int8", cpu="avx2")
    for name, facts in manifest.graphs.items():
        weights = [
            value.const_value.numpy().astype(int)
            for value in ir.load(tmp_path / "int8" / facts.file).graph.initializers.values()
            if value.dtype == ir.DataType.INT8 and len(value.shape or ()) == 2 and value.const_value is not None
        ]
        assert set(facts.kernels) <= {"int7 static", "fp32"}
        assert len(weights) == facts.kernels["int7 static"] > 3, name
        assert max(map(largest_sum, weights)) <= MOST


@pytest.mark.parametrize("kernels", [{"int8 static": 3}, {"int7 static": 3, "fp32": 1}, {"fp32": 4}])
@pytest.mark.parametrize(("unit", "is_without"), [("CPU", True), ("CPU", False), ("GPU", True)])
def test_openvino_runs_no_weights_of_eight_bits_there(
    bundles: Bundles, kernels: dict[str, int], unit: Unit, is_without: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "adds_in_16_bits", lambda: is_without)
    monkeypatch.setattr(opening, "pairs_overflow", lambda: False)
    manifest = Manifest.read(bundles["tensorrt"])
    graphs = {name: replace(facts, kernels=kernels, precision="int8") for name, facts in manifest.graphs.items()}
    is_refused = unit == "CPU" and is_without and "int8 static" in kernels
    with pytest.raises(DeviceError, match="openvino:CPU.*--cpu avx2") if is_refused else nullcontext():
        opening.plan_graph("text", Device(kind="openvino", unit=unit), 1, replace(manifest, graphs=graphs))
