"""Blocks of weights are packed as onnxruntime unpacks them, and their scales are the best of those tried."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeclip_graph.frame import constant
from edgeclip_quant.kernels import Plan, replace_layer
from edgeclip_quant.passes import weight_blocks as blocks
from edgeclip_quant.passes.token_table import NarrowTable
from edgeclip_quant.passes.weight_blocks import (
    BLOCK,
    TABLE_BLOCK,
    blocks_product,
    quantize_blocks,
    widen_blocks,
)
from tests.scenes.layer_graphs import layer_model, only_layer, run_graph, run_model

Array = NDArray[np.float32]

# fp32's roundings of a value of about 1.
SAME = 1e-6
# Full blocks, one, a part of one, several and a part.
WIDTHS = [256, 128, 40, 130, 7]


def gaussian(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_4_bits_are_packed_two_in_a_byte_the_low_first() -> None:
    found = quantize_blocks(np.array([[-8, 7, 1, 0, 2, -2, 0, 0]], np.float32), 4, 4)
    assert found.scales.tolist() == [[1.0, 2 / -8]]  # the farthest from zero is level 0, whatever its sign
    assert found.packed.tolist() == [[[0x0 | 0xF << 4, 0x9 | 0x8 << 4], [0x0 | 0xF << 4, 0x8 | 0x8 << 4]]]
    np.testing.assert_array_equal(widen_blocks(found, 4, 8), [[-8, 7, 1, 0, 2, -1.75, 0, 0]])


def test_8_bits_are_packed_one_in_a_byte() -> None:
    found = quantize_blocks(np.array([[-128, 127, 1, 0], [0, 0, 64, 32]], np.float32), 8, 4)
    assert found.scales.tolist() == [[1.0], [-0.5]]
    assert found.packed.tolist() == [[[0, 255, 129, 128]], [[128, 128, 0, 64]]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_last_block_is_filled_up_and_cut_off_again(width: int, bits: int) -> None:
    rows = gaussian(5, width) * np.geomspace(1e-3, 1e3, 5, dtype=np.float32)[:, None]
    found = quantize_blocks(rows, bits, BLOCK)
    count = -(-width // BLOCK)
    assert found.packed.shape == (5, count, BLOCK * bits // 8) and found.packed.dtype == np.uint8
    assert found.scales.shape == (5, count) and found.scales.dtype == np.float32
    wide = widen_blocks(found, bits, width)
    assert wide.shape == rows.shape
    # Half a step, and at the end of the range that has one step less, a whole one.
    steps = np.repeat(np.abs(found.scales), BLOCK, axis=1)[:, :width]
    reach = ((1 << (bits - 1)) - 1.5) * steps
    is_inside = np.abs(rows) <= reach
    assert (np.abs(wide - rows)[is_inside] <= 0.5001 * steps[is_inside]).all()
    assert is_inside.mean() > 0.8
    if bits == 8:
        assert (np.abs(wide - rows) <= 1.0001 * steps).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros_and_a_block_of_one_value_is_exact(bits: int) -> None:
    rows = np.zeros((2, 2 * BLOCK), np.float32)
    rows[1, BLOCK:] = -0.3
    found = widen_blocks(quantize_blocks(rows, bits, BLOCK), bits, 2 * BLOCK)
    np.testing.assert_allclose(found, rows, rtol=1e-6)


def test_an_outlier_spoils_its_own_block_only() -> None:
    rows = gaussian(1, 2 * BLOCK)
    spoiled = rows.copy()
    spoiled[0, 3] = 1000
    before, after = (widen_blocks(quantize_blocks(one, 4, BLOCK), 4, 2 * BLOCK) for one in (rows, spoiled))
    np.testing.assert_array_equal(before[0, BLOCK:], after[0, BLOCK:])
    assert np.abs(after[0, :BLOCK]).sum() == 1000  # all else is rounded to zero


@pytest.mark.parametrize("seed", range(3))
def test_no_scale_is_worse_than_the_widest(seed: int) -> None:
    """Nor than any other that is tried; Gaussian blocks of 128 lose an eighth of their error (0.87 to 0.89)."""
    rows = np.concatenate((gaussian(60, 256, seed=seed), 0.1 * gaussian(20, 256, seed=seed + 9) ** 3))
    cut = rows.reshape(80, 2, BLOCK)
    far = np.take_along_axis(cut, np.abs(cut).argmax(axis=2)[..., None], axis=2)[..., 0]
    widest = (far / -8).astype(np.float32)

    def errors(scales: Array) -> Array:
        levels = np.clip(np.rint(cut / scales[..., None]), -8, 7)
        error: Array = np.square(levels * scales[..., None] - cut).sum(axis=2)
        return error

    found = quantize_blocks(rows, 4, BLOCK)
    best = errors(found.scales)
    for reach in blocks._REACHES:
        assert (best <= errors((widest * reach).astype(np.float32)) * 1.0001).all()
    assert best[:60].sum() < 0.9 * errors(widest)[:60].sum()
    np.testing.assert_allclose(np.square(widen_blocks(found, 4, 256) - rows).sum(), best.sum(), rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_onnxruntime_unpacks_what_was_packed(width: int, bits: int) -> None:
    """Rows of the identity are exact in 8 bits: the product is the weight as it is stored."""
    weight = gaussian(width, 9)
    model = layer_model(weight, np.zeros(9, np.float32))
    replace_layer(model.graph, only_layer(model), Plan(kernel="int4 blocks" if bits == 4 else "int8 blocks"))
    (found,) = run_model(model, np.eye(width, dtype=np.float32))
    stored = widen_blocks(quantize_blocks(weight.T, bits, BLOCK), bits, width).T
    assert np.abs(found - stored).max() < SAME
    assert np.abs(blocks_product(np.eye(width, dtype=np.float32), weight, bits) - stored).max() < SAME


@pytest.mark.parametrize("width", [1024, TABLE_BLOCK, 96, 130, 48, 20, 8])
def test_rows_of_a_table_are_gathered_as_they_were_packed(width: int) -> None:
    """A width that does not fill its last block is not made wider by it."""
    table = gaussian(11, width)
    ids = ir.Value(name="x", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"]))
    graph = ir.Graph([ids], [], nodes=[], opset_imports={"": 23}, name="table")
    tape = ir.tape.Tape()
    rows = tape.op("Gather", [constant(graph, "tokens", table), ids], {"axis": 0})
    rows.name, rows.dtype = "y", ir.DataType.FLOAT
    graph.extend(tape.nodes)
    graph.outputs.append(rows)
    NarrowTable(4)(ir.Model(graph, ir_version=10))
    graph.initializers.pop("tokens")
    (attribute,) = (node.attributes["block_size"].as_int() for node in graph)
    asked = np.random.default_rng(1).integers(0, 11, (2, 3))
    (found,) = run_graph(graph, asked)
    assert found.shape == (2, 3, width)
    stored = widen_blocks(quantize_blocks(table, 4, attribute), 4, width)
    np.testing.assert_allclose(found, stored[asked], atol=SAME)
    assert np.linalg.norm(stored - table) < 0.12 * np.linalg.norm(table)
    size = sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
    assert size <= 11 * (width // 2 + 4 * -(-width // attribute))
