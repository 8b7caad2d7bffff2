"""A plain graph computes what the one that was written for the CPU did."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgeclip import Manifest
from edgeclip_graph.linear import linear_layers
from edgeclip_quant.passes.plain_graph import MakePlain

# Sums in another order.
SAME = 1e-6


def test_the_plain_graph_computes_what_the_chosen_one_did(bundle: Path, tmp_path: Path) -> None:
    """With padding, without, and with more rows than the choice's limit."""
    path = bundle / Manifest.read(bundle).graphs["text"].file
    plain = MakePlain()(ir.load(path)).model
    ir.save(plain, tmp_path / "plain.onnx", external_data="plain.data")
    sessions = [
        onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"])
        for one in (path, tmp_path / "plain.onnx")
    ]
    draw = np.random.default_rng(0)
    for shape in ((1, 5), (3, 7), (2, 90)):
        for is_padded in (False, True):
            ids = draw.integers(4, 60, shape)
            if is_padded:
                ids[0, -2:] = 1
            wanted, found = (session.run(None, {"input_ids": ids})[0] for session in sessions)
            assert np.abs(found - wanted).max() < SAME, (shape, is_padded)


def test_parts_are_one_layer_again(bundle: Path, tmp_path: Path) -> None:
    """Which computes what they did, and is split where it was; a part of another layer's input is refused."""
    path = bundle / Manifest.read(bundle).graphs["vision"].file
    plain = MakePlain()(ir.load(path)).model
    assert [len(node.outputs) for node in plain.graph if node.op_type == "Split"] == [3, 2, 3, 2, 2, 2]
    ir.save(plain, tmp_path / "plain.onnx", external_data="plain.data")
    sessions = [
        onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"])
        for one in (path, tmp_path / "plain.onnx")
    ]
    size = Manifest.read(bundle).image.size_px
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    wanted, found = (session.run(None, {"pixel_values": pixels})[0] for session in sessions)
    assert np.abs(found - wanted).max() < SAME
    model = ir.load(path)
    part = next(node for node in model.graph if node.op_type == "MatMul" and "_part_1" in str(node.inputs[1].name))
    part.replace_input_with(0, model.graph[-1].inputs[0])
    with pytest.raises(ir.passes.PreconditionError, match="its parts are not those of one layer"):
        MakePlain()(model)


def test_its_layers_are_found_once_and_a_plain_graph_stays_as_it_is(bundle: Path) -> None:
    """Four a block in the text tower; in the last block of the other, q is apart from k and v."""
    for name, layers in (("text", 3 * 4), ("vision", 3 * 4 + 1)):
        model = MakePlain()(ir.load(bundle / f"{name}.onnx")).model
        names = [layer.name for layer in linear_layers(model.graph)]
        assert len(names) == len(set(names)) == layers
        assert MakePlain()(model).modified is False
