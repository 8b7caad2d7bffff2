"""The plain graph of a text tower computes what the one that chooses by rows did."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgeclip import Manifest
from edgeclip_quant.linear import linear_layers
from edgeclip_quant.plain import MakePlain

# Sums in another order.
SAME = 1e-6


def test_the_plain_graph_computes_what_the_chosen_one_did(bundle: Path, tmp_path: Path) -> None:
    """With padding, without, and with more rows than the choice's limit."""
    path = bundle / Manifest.read(bundle).text.file
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


def test_its_layers_are_found_once_and_a_plain_graph_stays_as_it_is(bundle: Path) -> None:
    """Four a block in the text tower; in the last block of the other, q is apart from k and v."""
    for name, layers in (("text", 3 * 4), ("vision", 3 * 4 + 1)):
        model = MakePlain()(ir.load(bundle / f"{name}_model.onnx")).model
        names = [layer.name for layer in linear_layers(model.graph)]
        assert len(names) == len(set(names)) == layers
        assert MakePlain()(model).modified is False
