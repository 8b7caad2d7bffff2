"""Turning channels is orthogonal, and refused where the residual stream is read by something else."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import PreconditionError

from edgeclip_graph.frame import constant, store
from edgeclip_graph.lazy import InPieces
from edgeclip_quant.passes.channels import Edits, Use, find_residual
from edgeclip_quant.passes.rotation import Rotate, can_rotate, make_turn, orthogonal

# The widths of the full model and of the golden one: residual streams, heads, products.
WIDTHS = (2048, 1280, 128, 80, 96, 64, 20, 3, 1)


@pytest.mark.parametrize("size", [one for one in WIDTHS if one <= 128] + [43, 60])
def test_a_matrix_is_orthogonal_and_its_entries_are_small(size: int) -> None:
    matrix = orthogonal(size).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-6)
    assert np.abs(matrix).max() <= np.sqrt(2 / size) + 1e-6


@pytest.mark.parametrize("width", [2048, 1280, 96, 64])
def test_a_turn_keeps_lengths_spreads_one_channel_and_is_taken_back(width: int) -> None:
    turn = make_turn(width)
    x = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    turned = turn.turn(x)
    np.testing.assert_allclose(turn.back(turned), x, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    single = np.eye(width, dtype=np.float32)[3]
    assert np.abs(turn.turn(single)).max() <= 2 / np.sqrt(width) + 1e-6
    weight = np.random.default_rng(1).normal(size=(2 * width, 7)).astype(np.float32)
    both = np.concatenate((turned, turned), axis=1) @ turn.rows(weight)
    np.testing.assert_allclose(both, np.concatenate((x, x), axis=1) @ weight, atol=1e-3)


def test_a_block_turns_its_own_channels_alone() -> None:
    turned = make_turn(11008, blocks=True).turn(np.eye(11008, dtype=np.float32)[100])
    assert set(np.flatnonzero(turned)) <= set(range(64, 128))
    assert np.abs(turned).max() == pytest.approx(1 / 8)


def test_a_table_that_comes_in_pieces_is_turned_as_its_rows_are(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(9, 64)).astype(np.float32)
    turn = make_turn(64)
    pieces = InPieces("table", ir.DataType.FLOAT, table.shape, lambda: iter((table[:4], table[4:])))
    graph = ir.Graph([], [], nodes=[], name="table")
    gather = ir.node("Gather", [store(graph, pieces), constant(graph, "ids", np.array([0]))])
    edits = Edits()
    edits.add(Use(gather, 0), turn.turn)
    edits.apply(graph)
    found = graph.initializers["table"].const_value
    assert isinstance(found, InPieces)
    np.testing.assert_array_equal(found.numpy(), turn.turn(table))
    with (tmp_path / "written").open("wb") as file:
        found.tofile(file)
    assert (tmp_path / "written").read_bytes() == turn.turn(table).tobytes()


STREAM = """
<ir_version: 10, opset_import: ["" : 23]>
stream (float[N, 8] x) => (float[N, 8] y)
<float[8] gain = {1, 2, 3, 4, 5, 6, 7, 8}>
{
    h = Add(x, x)
    normed = RMSNormalization <axis = -1> (h, gain)
    y = Add(h, normed)
}
"""


def test_a_stream_that_is_read_by_something_else_is_refused() -> None:
    model = ir.from_onnx_text(STREAM)
    assert not can_rotate(model)
    with pytest.raises(PreconditionError, match="h of the residual stream goes to Add"):
        find_residual(model.graph)
    with pytest.raises(PreconditionError):
        Rotate()(model)


def test_without_rms_norm_nothing_is_turned() -> None:
    model = ir.from_onnx_text(STREAM.replace("RMSNormalization <axis = -1> (h, gain)", "Mul(h, gain)"))
    assert not can_rotate(model)
