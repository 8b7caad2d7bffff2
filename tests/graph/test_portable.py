"""The portable form of a graph, lowered again, is the graph of the bundle to the last bit, for every target."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import InPlacePass, PassError, PostconditionError, PreconditionError, common

from edgeclip import BuildError
from edgeclip.manifest import TARGETS, Target
from edgeclip_graph.frame import array_of
from edgeclip_graph.lazy import Columns
from edgeclip_graph.linear import linear_layers
from edgeclip_graph.passes import lower_portable
from edgeclip_graph.passes.gemm import WeightsInPlace
from edgeclip_graph.passes.split_linear import SeparateParts
from edgeclip_graph.portable import load_portable, portable_path, save_portable
from edgeclip_graph.traits import Traits
from tests.scenes.described_graphs import describe
from tests.scenes.layer_graphs import layer_model, only_layer

GRAPHS = ("text", "vision")
# Of the golden graphs' portable forms; their weights take 0.5 to 2 MB.
MOST_BYTES = 64_000
WEIGHT = np.random.default_rng(0).standard_normal((64, 80), dtype=np.float32)
BIAS = np.arange(1, 81, dtype=np.float32)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("to", TARGETS)
def test_lowered_again_it_is_the_bundles_graph(bundles: dict[Target, Path], to: Target, name: str) -> None:
    """From the data of each target's bundle, in which the weights lie in other forms."""
    wanted = ir.load(bundles[to] / f"{name}.onnx")
    for source in TARGETS:
        found = lower_portable(name, bundles[source] / f"{name}.onnx", to)
        assert describe(found) == describe(wanted), source
        assert set(found.graph.initializers) == set(wanted.graph.initializers), source
        for key, value in wanted.graph.initializers.items():
            np.testing.assert_array_equal(array_of(found.graph.initializers[key]), array_of(value), err_msg=key)


@pytest.mark.parametrize("name", GRAPHS)
def test_it_holds_no_weights(bundles: dict[Target, Path], name: str) -> None:
    for target in TARGETS:
        assert portable_path(bundles[target] / f"{name}.onnx").stat().st_size < MOST_BYTES


def test_plain_layers_are_matmul_and_add(bundle: Path) -> None:
    """Four a block in the text graph; in the last block of the other, q is apart from k and v. No way is chosen."""
    for name, layers in (("text", 3 * 4), ("vision", 3 * 4 + 1)):
        model = lower_portable(name, bundle / f"{name}.onnx", "cpu", layers="plain")
        assert len({layer.name for layer in linear_layers(model.graph)}) == layers
    assert [len(node.outputs) for node in model.graph if node.op_type == "Split"] == [3, 2, 3, 2, 2, 2]


def lowered_by(step: InPlacePass, model: ir.Model) -> ir.Model:
    """The model after a pass, without the weights that nothing reads any more."""
    return common.RemoveUnusedNodesPass()(step(model).model).model


def saved(model: ir.Model, lowered: ir.Model, folder: Path) -> Path:
    """The path of a graph that was written with its portable form."""
    path = folder / "layer.onnx"
    ir.save(lowered, path, external_data="layer.onnx_data", size_threshold_bytes=0)
    save_portable(model, lowered, path, Traits(has_silu=True))
    return path


def test_weights_are_made_again_of_what_was_stored_instead(tmp_path: Path) -> None:
    for number, (step, parts) in enumerate(((WeightsInPlace, ()), (SeparateParts, (30, 50)))):
        folder = tmp_path / str(number)
        folder.mkdir()
        model = layer_model(WEIGHT, BIAS, parts=parts)
        copy = model.clone()
        path = saved(copy, lowered_by(step(), model), folder)
        found, traits = load_portable(portable_path(path))
        assert traits == Traits(has_silu=True)
        layer = only_layer(found)
        assert (layer.name, layer.bias_value.name) == ("weight", "bias")
        np.testing.assert_array_equal(layer.weight, WEIGHT)
        np.testing.assert_array_equal(layer.bias, BIAS)


def test_a_part_of_a_bias_that_is_zero_is_made_again(tmp_path: Path) -> None:
    """It is stored nowhere."""
    bias = BIAS.copy()
    bias[30:] = 0
    model = layer_model(WEIGHT, bias, parts=(30, 50))
    copy = model.clone()
    path = saved(copy, lowered_by(SeparateParts(), model), tmp_path)
    found, _ = load_portable(portable_path(path))
    np.testing.assert_array_equal(only_layer(found).bias, bias)


def test_a_part_that_is_missing_is_an_error(tmp_path: Path) -> None:
    model = layer_model(WEIGHT, BIAS, parts=(30, 50))
    copy = model.clone()
    lowered = lowered_by(SeparateParts(), model)
    other = lowered.clone()
    part = other.graph.initializers["weight_part_1"]
    part.const_value = ir.tensor(array_of(part), name=part.name)  # of unknown origin
    with pytest.raises((PassError, PreconditionError)) as caught:
        saved(copy, other, tmp_path)
    assert "weight: entries 30 to 80 are not in the data" in f"{caught.value} {caught.value.__cause__}"


def test_a_large_weight_that_the_data_lack_is_an_error(tmp_path: Path) -> None:
    other = layer_model(WEIGHT, BIAS)
    with pytest.raises(PostconditionError, match=r"weight \(20480 bytes\) is not in the data"):
        saved(layer_model(WEIGHT, BIAS), other, tmp_path)


def test_another_graph_is_no_portable_form(bundle: Path, copied_bundle: Path) -> None:
    with pytest.raises(PreconditionError, match="text.onnx is no portable graph"):
        load_portable(bundle / "text.onnx")
    portable_path(copied_bundle / "text.onnx").unlink()
    with pytest.raises(BuildError, match=r"text\.portable\.onnx is missing, .*; export the bundle again"):
        lower_portable("text", copied_bundle / "text.onnx", "cpu")


def test_columns_are_the_last_axis() -> None:
    assert Columns(2, 5).apply(WEIGHT).tolist() == WEIGHT[:, 2:5].tolist()
    assert Columns(2, 5).apply(BIAS).tolist() == [3, 4, 5]
