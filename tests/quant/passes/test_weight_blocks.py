"""Blocks of weights are packed as onnxruntime unpacks them, and their levels are the best of those tried."""

import gc
import weakref

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeclip_graph.frame import constant
from edgeclip_quant.kernels import Kernel, Plan, replace_layer
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
    rows = np.array([[-8, 7, 1, 0, -5, 2.5, 0.5, 0]], np.float32)
    found = quantize_blocks(rows, 4, 4)
    assert found.scales.tolist() == [[1.0, 0.5]]
    assert found.zeros.tolist() == [[8, 10]]  # where the range from the least to the greatest has 0
    assert found.packed.tolist() == [[[0x0 | 0xF << 4, 0x9 | 0x8 << 4], [0x0 | 0xF << 4, 0xB | 0xA << 4]]]
    np.testing.assert_array_equal(widen_blocks(found, 4, 8), rows)


def test_8_bits_are_packed_one_in_a_byte() -> None:
    found = quantize_blocks(np.array([[-128, 127, 1, 0], [0, 0, 64, 32]], np.float32), 8, 4)
    assert found.scales.tolist() == [[1.0], [-0.5]]  # the farthest from zero is level 0, whatever its sign
    assert (found.zeros == 128).all()
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
    # Half a step within the levels; beyond them, where 4 bits may cut, the last level.
    steps, zeros = (
        np.repeat(one, BLOCK, axis=1)[:, :width] for one in (found.scales, found.zeros.astype(np.float32))
    )
    levels = np.clip(np.rint(rows / steps), -zeros, (1 << bits) - 1 - zeros)
    np.testing.assert_allclose(wide, levels * steps, rtol=1e-6)
    is_inside = (rows / steps > -zeros - 0.5) & (rows / steps < (1 << bits) - 0.5 - zeros)
    assert is_inside.mean() > 0.9
    if bits == 8:
        assert (np.abs(wide - rows) <= 1.0001 * np.abs(steps)).all()


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
    assert np.abs(after[0, :BLOCK]).sum() == pytest.approx(1000)  # all else is rounded to zero


def symmetric_error(cut: Array, reach: float) -> Array:
    """The squared error of blocks (rows, blocks, block) in 4 bits about 0, whose last level is `reach` times the
    largest weight.
    """
    far = np.take_along_axis(cut, np.abs(cut).argmax(axis=2)[..., None], axis=2)
    scales = far / -8 * reach
    error: Array = np.square(np.clip(np.rint(cut / scales), -8, 7) * scales - cut).sum(axis=2)
    return error


@pytest.mark.parametrize("seed", range(3))
def test_levels_lose_less_than_any_about_zero(seed: int) -> None:
    """Than the best of eleven scales for each block: by 0.03 of Gaussian weights' squared error and by 0.25 of what
    has long tails. A scale that holds the largest weight loses a sixth more.
    """
    gauss, tails = gaussian(200, 2, BLOCK, seed=seed), 0.1 * gaussian(200, 2, BLOCK, seed=seed + 9) ** 3
    for cut, least in ((gauss, 0.98), (tails, 0.85)):
        rows = cut.reshape(200, 2 * BLOCK)
        found = np.square(widen_blocks(quantize_blocks(rows, 4, BLOCK), 4, 2 * BLOCK) - rows).sum()
        tried = np.min([symmetric_error(cut, reach) for reach in np.linspace(1, 0.6, 11)], axis=0)
        assert found < least * tried.sum()
        assert found < 0.9 * symmetric_error(cut, 1.0).sum()


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
    blocks = -(-width // attribute)
    assert size <= 11 * (width // 2 + 4 * blocks + -(-blocks // 2))


@pytest.mark.parametrize("bits", ["int4 blocks", "int8 blocks"])
def test_levels_are_freed_when_they_are_written(bits: Kernel) -> None:
    """Scales and zero points are kept; with the levels of every layer a full-size export took 1.2 GB more."""
    model = layer_model(gaussian(256, 64), gaussian(64))
    replace_layer(model.graph, only_layer(model), Plan(kernel=bits))
    (packed,) = (
        value.const_value for name, value in model.graph.initializers.items() if str(name).endswith("_blocks")
    )
    assert packed is not None
    levels = packed.numpy()
    while isinstance(levels.base, np.ndarray):
        levels = levels.base
    freed = weakref.ref(levels)
    del levels
    gc.collect()
    assert freed() is None
