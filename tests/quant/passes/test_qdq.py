"""Int8 for TensorRT answers nearly as its source does, holds what TensorRT's documents accept, and is refused else.

No TensorRT is at hand: onnxruntime runs the graphs on the CPU, with its optimisations (integer GEMMs) and as they
are written. Their operators are held as text, tests/data/graphs/qdq_*.txt; `pytest --bless` renews them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError

from edgeclip import BuildError, Manifest
from edgeclip.families.family import Arrays
from edgeclip.manifest import Target
from edgeclip_bench.demo.dataset import write_dataset
from edgeclip_export import export_checkpoint
from edgeclip_graph.census import count_operators
from edgeclip_graph.linear import linear_layers
from edgeclip_quant.inputs.layer_inputs import Observation, observe
from edgeclip_quant.inputs.made_up import Samples
from edgeclip_quant.passes import qdq
from edgeclip_quant.passes.qdq import (
    pack_rows,
    plan_pairs,
    plan_rounding,
    rounded_product,
)
from edgeclip_quant.passes.tensorrt_parser import ACCEPTED
from edgeclip_quant.pick.kernel_plan import relative_error
from tests.conftest import DATA
from tests.quant.test_quantize import with_outliers
from tests.scenes.described_graphs import describe
from tests.scenes.graph_feeds import GRAPHS, feeds, made_up, open_feeder
from tests.scenes.qdq_graphs import drawn, layer_model, narrow, observed, path_of, run_graph

# Worst cosines to the source: measured 0.9988 (golden vision, from 8 images) to 0.9997 (trained text), 0.9987 with
# outlier channels, and 0.9988 where the trained model was calibrated on made-up inputs.
WORST_COSINE = 0.995
# onnxruntime's integer GEMMs against the graph as it is written: a value at the edge of two levels falls the other
# way, in a component 3.1e-3 at most; in cosine between the two 0.99999.
SAME_COSINE = 0.9999
VISION = "vision"
Seen = Mapping[str, Observation]


def calibrate(bundle: Path, graph: str, batches: Sequence[Arrays], folder: Path) -> Seen:
    return observe(ir.load(path_of(bundle, graph)), batches, folder, lambda *_: None, threads=1)[0]


def cosines(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    return (found.astype(np.float64) * wanted).sum(axis=1)


def quantized(bundle: Path, graph: str, seen: Seen, folder: Path, **options: float) -> tuple[Path, ir.Model]:
    """The graph's graph as int8, written under `folder`."""
    model = ir.load(path_of(bundle, graph))
    narrow(model, seen, **options)
    folder.mkdir()
    ir.save(model, folder / "int8.onnx", external_data="int8.data")
    return folder / "int8.onnx", model


@pytest.fixture(scope="module")
def samples(bundles: dict[Target, Path]) -> tuple[Samples, Samples]:
    """What the golden bundle is calibrated on and proved on, as `quantize_bundle` makes them up."""
    bundle = bundles["tensorrt"]
    return made_up(bundle, texts=64, images=16).halves()


@pytest.fixture(scope="module")
def golden_seen(
    bundles: dict[Target, Path], samples: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Seen]:
    """What the golden towers' layers saw."""
    folder = tmp_path_factory.mktemp("seen")
    return {
        name: calibrate(bundles["tensorrt"], name, feeds(bundles["tensorrt"], name, samples[0]), folder)
        for name in GRAPHS
    }


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_tower_answers_nearly_as_it_did(
    bundles: dict[Target, Path],
    samples: tuple[Samples, Samples],
    golden_seen: dict[str, Seen],
    graph: str,
    tmp_path: Path,
) -> None:
    """With onnxruntime's optimisations and without, and each the other's."""
    bundle, proof = bundles["tensorrt"], feeds(bundles["tensorrt"], graph, samples[1])
    path, _ = quantized(bundle, graph, golden_seen[graph], tmp_path / "out")
    wanted = run_graph(path_of(bundle, graph), proof)
    written, optimised = run_graph(path, proof), run_graph(path, proof, is_optimised=True)
    for found in (written, optimised):
        assert cosines(found, wanted).min() >= WORST_COSINE
        assert (np.abs(found - wanted).max(axis=1) > 1e-5).all()  # int8 it is
    assert cosines(written, optimised).min() >= SAME_COSINE


def test_the_trained_model_keeps_its_answers_even_if_calibrated_on_other_inputs(
    trained_bundles: dict[Target, Path], tmp_path: Path
) -> None:
    """Static ranges cut off what they did not see, so made-up inputs calibrate and real ones prove, and real both."""
    bundle = trained_bundles["tensorrt"]
    feeder, data = open_feeder(bundle), tmp_path / "data"
    write_dataset(data, images=40)
    lines = [json.loads(line) for line in (data / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [text for line in lines for said in line["captions"].values() for text in said]
    images = tuple(
        feeder.family.image(str(path), None, max_pixels=None, label=path.name) for path in sorted(data.glob("*.png"))
    )
    real = Samples(name="real", text=feeder.family.texts(texts, None, None).items, image=images).halves()
    other = made_up(bundle, texts=64, images=16).halves()
    for graph in GRAPHS:
        proof = feeds(bundle, graph, real[1])
        wanted = run_graph(path_of(bundle, graph), proof)
        for calibration in (real[0], other[0]):
            seen = calibrate(bundle, graph, feeds(bundle, graph, calibration), tmp_path)
            path, model = quantized(bundle, graph, seen, tmp_path / f"{graph}-{calibration.name}")
            assert cosines(run_graph(path, proof), wanted).min() >= WORST_COSINE, calibration.name
            assert not linear_layers(model.graph)  # each within the limit


@pytest.mark.parametrize("factor", [30.0, 100.0])
def test_outlier_channels_are_smoothed(tmp_path: Path, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without smoothing the same graph falls below 0.9, and the limit would leave the layers in question fp32."""
    bundle = tmp_path / "bundle"
    export_checkpoint(with_outliers(tmp_path / "checkpoint", factor), bundle, target="tensorrt")
    calibration, proof = (feeds(bundle, VISION, half) for half in made_up(bundle, texts=2, images=16).halves())
    seen = calibrate(bundle, VISION, calibration, tmp_path)
    wanted = run_graph(path_of(bundle, VISION), proof)
    path, model = quantized(bundle, VISION, seen, tmp_path / "smoothed", max_error=10.0)
    assert not linear_layers(model.graph)
    assert cosines(run_graph(path, proof), wanted).min() >= WORST_COSINE
    monkeypatch.setattr(qdq, "_STRENGTHS", ())
    path, _ = quantized(bundle, VISION, seen, tmp_path / "naive", max_error=10.0)
    assert cosines(run_graph(path, proof), wanted).min() < 0.9
    path, model = quantized(bundle, VISION, seen, tmp_path / "limited")
    assert len(linear_layers(model.graph)) >= 6
    assert cosines(run_graph(path, proof), wanted).min() >= WORST_COSINE


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_graph_is_the_one_that_was_reviewed(
    bundles: dict[Target, Path],
    golden_seen: dict[str, Seen],
    graph: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Every layer within the limit is one pair and one int8 weight, and no operator is of another kind."""
    bundle = bundles["tensorrt"]
    path, model = quantized(bundle, graph, golden_seen[graph], tmp_path / "out", max_error=10.0)
    held = DATA / "graphs" / f"qdq_{graph}.txt"
    found = describe(ir.load(path))
    if request.config.getoption("--bless"):
        held.write_text(found)
    assert found == held.read_text()
    layers = len(linear_layers(ir.load(path_of(bundle, graph)).graph))
    assert count_operators(model)["QuantizeLinear"] == layers
    assert count_operators(model)["DequantizeLinear"] == 2 * layers
    assert set(count_operators(model)) <= set(ACCEPTED)
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("graph", GRAPHS)
def test_it_is_smaller_and_the_source_is_as_it_was(
    bundles: dict[Target, Path], golden_seen: dict[str, Seen], graph: str, tmp_path: Path
) -> None:
    bundle = bundles["tensorrt"]
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    path, _ = quantized(bundle, graph, golden_seen[graph], tmp_path / "out", max_error=10.0)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    source = path_of(bundle, graph)
    saved = source.with_name(f"{source.name}_data").stat().st_size - path.with_name("int8.data").stat().st_size
    parameters = Manifest.read(bundle).graphs[graph].parameters
    assert saved > 2.2 * parameters  # four bytes become one and a share of a scale; biases and patches stay


def test_once_more_changes_nothing(bundles: dict[Target, Path], golden_seen: dict[str, Seen]) -> None:
    """Also where a layer was left as fp32."""
    for graph in GRAPHS:
        model = ir.load(path_of(bundles["tensorrt"], graph))
        every = {name: some[0].error for name, some in plan_pairs(model, golden_seen[graph], max_error=10.0).items()}
        errors = narrow(model, golden_seen[graph], max_error=1.2e-2)
        kept = [layer.name for layer in linear_layers(model.graph)]
        assert kept == [name for name in golden_seen[graph] if name not in errors]
        assert all(every[name] > 1.2e-2 for name in kept) and max(errors.values()) <= 1.2e-2
        assert 0 < len(kept) < len(every)
        before = describe(model)
        assert narrow(model, golden_seen[graph], max_error=1.2e-2) == {}
        assert describe(model) == before


def test_a_layer_above_the_limit_has_no_pair(bundles: dict[Target, Path], golden_seen: dict[str, Seen]) -> None:
    model = ir.load(path_of(bundles["tensorrt"], VISION))
    before = count_operators(model)
    assert narrow(model, golden_seen[VISION], max_error=0.0) == {}
    assert count_operators(model) == before


def answers(model: ir.Model, rows: NDArray[Any]) -> NDArray[np.float32]:
    return run_graph(ir.to_proto(model).SerializeToString(), [{str(model.graph.inputs[0].name): rows}])


@pytest.mark.parametrize("factor", [1.0, 200.0], ids=["plain", "smoothed"])
def test_a_layer_computes_what_numpy_does(factor: float) -> None:
    rows, weight = drawn(64, 8), drawn(8, 6, seed=1)
    rows[:, 3] *= factor
    weight[3] /= factor
    seen = observed(rows)
    rounding = plan_rounding([weight], seen)
    assert (rounding.factors is None) == (factor == 1)
    model = layer_model([weight])
    (error,) = narrow(model, {"w0": seen}).values()
    assert count_operators(model).get("Mul", 0) == (factor != 1)
    found = answers(model, rows)
    wanted = rounded_product(rows, weight, rounding.factors, rounding.largest) + 1
    assert np.abs(found - wanted).max() < 1e-4
    assert 0.003 < relative_error(found - 1, rows @ weight) < 0.02
    assert 0.003 < error < 0.02


def test_a_norm_takes_the_factors_in() -> None:
    """So smoothing costs no operator; the answer is as near as without the norm."""
    rows, weight = drawn(64, 8), drawn(8, 6, seed=1)
    is_far = np.arange(8) == 3
    weight[3] /= 100
    source, model = layer_model([weight], has_norm=True), layer_model([weight], has_norm=True)
    scale = np.where(is_far, 200, 2).astype(np.float32)
    for one in (source, model):
        one.graph.initializers["scale"].const_value = ir.tensor(scale)
    normed = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True) * scale + 1
    (error,) = narrow(model, {"w0": observed(normed)}).values()
    assert "Mul" not in count_operators(model)
    assert "QuantizeLinear" in count_operators(model)
    assert relative_error(answers(model, rows), answers(source, rows)) < 0.02
    assert error < 0.02


def test_one_tensor_is_rounded_once_however_many_read_it() -> None:
    rows, weights = drawn(64, 8), [drawn(8, 6, seed=1), drawn(8, 6, seed=2)]
    model = layer_model(weights)
    errors = narrow(model, {"w0": observed(rows), "w1": observed(rows)})
    assert list(errors) == ["w0", "w1"]
    assert count_operators(model) == {"Add": 3, "DequantizeLinear": 3, "MatMul": 2, "QuantizeLinear": 1}
    assert relative_error(answers(model, rows), rows @ weights[0] + rows @ weights[1] + 2) < 0.02


def test_what_exceeds_the_calibration_is_cut_off() -> None:
    """The risk of static ranges: inside the range two levels apart at most, beyond it whatever is beyond is lost."""
    weight = np.eye(4, dtype=np.float32)
    model = layer_model([weight])
    rows = 2 * drawn(64, 4)
    rows[0], rows[-1] = 2, -2
    narrow(model, {"w0": observed(rows)})
    probe = np.array([[1.9, -1.9, 0.3, 0.0], [2.5, -2.5, 60.0, -1e9]], np.float32)
    found = answers(model, probe) - 1
    assert np.abs(found[0] - probe[0]).max() < 2 / 127
    assert found[1] == pytest.approx([2.0, -2.0 * 128 / 127, 2.0, -2.0 * 128 / 127], abs=1e-3)


def test_smoothing_must_halve_the_error_on_rows_it_was_not_made_from() -> None:
    rows, weight = drawn(256, 16), drawn(16, 8, seed=1)
    rows[:, 3] *= 2
    plain = plan_rounding([weight], observed(rows))
    assert plain.factors is None
    assert plain.largest == np.abs(rows).max()
    rows[:, 3] *= 50
    weight[3] /= 100
    smoothed = plan_rounding([weight], observed(rows))
    assert smoothed.factors is not None
    assert smoothed.factors[3] > 5 * np.median(smoothed.factors)
    # Rows that grow show one half of them a range that the other exceeds.
    growing = rows * np.linspace(0.1, 4, len(rows), dtype=np.float32)[:, None]
    in_sample = rounded_product(growing, weight, *qdq._fit(np.abs(growing).max(axis=0), weight, 0.5))
    assert plan_rounding([weight], observed(growing)).errors[0] > 5 * relative_error(in_sample, growing @ weight)


def test_a_single_row_and_a_dead_input_have_a_plan() -> None:
    weight = drawn(4, 3, seed=1)
    assert plan_rounding([weight], observed(drawn(1, 4))).errors[0] < 0.05
    dead = plan_rounding([weight], observed(np.zeros((6, 4), np.float32)))
    assert (dead.largest, dead.errors) == (0.0, (0.0,))
    model = layer_model([weight])
    narrow(model, {"w0": observed(np.zeros((6, 4), np.float32))})
    assert (answers(model, np.zeros((2, 4), np.float32)) == 1).all()


@pytest.mark.parametrize("seen", [{}, {"w0": Observation(largest=np.full(8, np.nan, np.float32), rows=drawn(4, 8))}])
def test_a_layer_that_was_not_calibrated_is_refused(seen: Seen) -> None:
    with pytest.raises(PreconditionError, match="w0 was not calibrated, or on what is no number"):
        plan_pairs(layer_model([drawn(8, 6)]), seen)


def test_what_tensorrt_would_refuse_is_not_made() -> None:
    model = layer_model([drawn(8, 6)])
    model.graph.opset_imports[""] = 23
    with pytest.raises(BuildError, match="opset 23"):
        narrow(model, {"w0": observed(drawn(64, 8))})


def lookup_model(table: NDArray[np.float32], ids_shape: Sequence[str]) -> ir.Model:
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(ids_shape))
    graph = ir.Graph([ids], [], nodes=[], opset_imports={"": 20}, name="lookup")
    value = ir.Value(name="tokens", const_value=ir.tensor(table, name="tokens"))
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(table.shape)
    graph.register_initializer(value)
    gather = ir.node("Gather", [value, ids], {"axis": 0})
    y = gather.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape([*ids_shape, table.shape[1]])
    graph.append(gather)
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("width", [12, 13, 14])
@pytest.mark.parametrize("shape", [(10,), (2, 5)])
def test_the_table_gives_rounded_rows(shape: tuple[int, ...], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdq, "_ROWS_AT_ONCE", 4)
    table = drawn(10, width) * np.logspace(-3, 3, 10)[:, None].astype(np.float32)
    table[4] = 0
    table[5, :2] = np.abs(table[5]).max() * np.array([3, -3], np.float32)
    model = lookup_model(table, ["a", "b"][: len(shape)])
    narrow(model, {})
    stored = model.graph.initializers["tokens_words"]
    assert (stored.dtype, stored.const_value.shape) == (ir.DataType.INT32, (10, 1, -(-width // 3)))
    assert stored.const_value.numpy().min() >= 0
    assert stored.const_value.numpy().max() < 2**24
    ids = np.random.default_rng(0).permutation(10).reshape(shape)
    found = answers(model, ids)
    scales = np.abs(table).max(axis=1, keepdims=True) / 127
    rounded = np.rint(table / np.where(scales == 0, 1, scales)) * scales
    np.testing.assert_allclose(found, rounded[ids], rtol=1e-6)
    assert (np.abs(found - table[ids]) <= 0.501 * scales[ids]).all()


def test_rows_of_the_extremes_fit_a_word() -> None:
    """And the largest is a float32, which is what OpenVINO divides."""
    words, scales = pack_rows(np.array([[127, 127, 127], [-127, -127, -127]], np.float32))
    assert words.tolist() == [[[255**3 - 1]], [[0]]]
    assert 255**3 < 2**24
    assert scales.tolist() == [[[1.0]], [[1.0]]]
