"""Weights of 8 or 4 bits with a scale per block of an output's inputs, as onnxruntime's MatMulNBits stores them.

The input is rounded to 8 bits with a scale per block of a row (accuracy_level 4), so an outlier spoils its own block
only, and no other row. In 4 bits, the choice of scale matters much: of a dozen scales the one with the least squared
error is taken, not the smallest that holds the largest weight.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip_graph.frame import constant, store
from edgeclip_graph.operators import CONTRIB

Array = NDArray[np.float32]

# The more weights share a scale, the fewer bytes: 128 adds a quarter of a bit to each, 32 a whole one.
BLOCK = 128
TABLE_BLOCK = 64
_LEAST_BLOCK = 16  # of GatherBlockQuantized
_INT8_INPUT = 4  # accuracy_level
_NUMBERS_AT_ONCE = 1 << 24
# Shares of the largest weight that a scale may reach to, tried in 4 bits.
_REACHES = np.linspace(1.0, 0.6, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """`packed` (rows, blocks, bytes) uint8, two 4-bit levels in a byte, the low first; `scales` (rows, blocks)."""

    packed: NDArray[np.uint8]
    scales: Array


def quantize_blocks(rows: Array, bits: int, block: int) -> Blocks:
    """(rows, width) in blocks along the width, symmetric about 2^(bits-1); a last block is filled up with zeros.

    Some rows at a time: trying scales takes several times the memory of what is tried.
    """
    step = max(1, _NUMBERS_AT_ONCE // rows.shape[1])
    parts = [_quantize(rows[start : start + step], bits, block) for start in range(0, len(rows), step)]
    return Blocks(
        packed=np.concatenate([part.packed for part in parts]), scales=np.concatenate([part.scales for part in parts])
    )


def _quantize(rows: Array, bits: int, block: int) -> Blocks:
    blocks = _divide(rows, block)
    middle = 1 << (bits - 1)
    # The value farthest from zero goes to the end of the range that has one step more.
    far = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
    widest = np.where(far == 0, 1.0, far / -middle).astype(np.float32)
    scales = widest if bits == 8 else _least_error(blocks, widest, middle)
    return Blocks(packed=_pack(blocks, scales, bits), scales=scales)


def widen_blocks(blocks: Blocks, bits: int, width: int) -> Array:
    """The rows (rows, width) that the result of `quantize_blocks` stands for."""
    packed = blocks.packed
    levels = packed if bits == 8 else np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:2], -1)
    wide = (levels.astype(np.float32) - (1 << (bits - 1))) * blocks.scales[..., None]
    found: Array = wide.reshape(len(wide), -1)[:, :width]
    return found


def blocks_product(rows: Array, weight: Array, bits: int) -> Array:
    """The result of MatMulNBits for rows (R, in) and a weight (in, out)."""
    wide = widen_blocks(quantize_blocks(weight.T, bits, BLOCK), bits, len(weight))
    padded = np.zeros((len(rows), -(-len(weight) // BLOCK) * BLOCK), np.float32)
    padded[:, : len(weight)] = rows
    blocks = padded.reshape(len(rows), -1, BLOCK)
    steps = np.abs(blocks).max(axis=2, keepdims=True) / 127
    steps[steps == 0] = 1.0
    rounded = (np.rint(blocks / steps) * steps).reshape(len(rows), -1)[:, : len(weight)]
    found: Array = rounded @ wide.T
    return found


def matmul_blocks(
    graph: ir.Graph,
    tape: ir.tape.Tape,
    x: ir.Value,
    weight: Callable[[], Array],
    bias: ir.Value | None,
    name: str,
    bits: int,
) -> ir.Value:
    """Compute x W + b with a weight (in, out) in blocks, which are packed when they are read."""
    first = weight()
    inputs, outputs = first.shape
    scales = quantize_blocks(first.T, bits, BLOCK).scales

    def pack() -> ir.TensorProtocol:
        return ir.tensor(_pack(_divide(weight().T, BLOCK), scales, bits), name=packed_name)

    packed_name = f"{name}_int{bits}_blocks"
    shape = ir.Shape((*scales.shape, BLOCK * bits // 8))
    packed = store(graph, ir.LazyTensor(pack, dtype=ir.DataType.UINT8, shape=shape, name=packed_name))
    return tape.op(
        "MatMulNBits",
        [x, packed, constant(graph, f"{name}_block_scales", scales), None, None, bias],
        {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": _INT8_INPUT},
        domain=CONTRIB,
    )


def gather_blocks(graph: ir.Graph, tape: ir.tape.Tape, table: Array, ids: ir.Value, name: str) -> ir.Value:
    """Gather the rows `ids` of a table (rows, an even width) kept in 4 bits; only those are widened."""
    block = min(TABLE_BLOCK, max(_LEAST_BLOCK, 1 << (table.shape[1].bit_length() - 1)))
    blocks = quantize_blocks(table, 4, block)
    # The operator gives as many columns as are packed, those that fill up the last block too.
    rows = np.ascontiguousarray(blocks.packed.reshape(len(table), -1)[:, : table.shape[1] // 2])
    packed = constant(graph, f"{name}_int4", rows)
    scales = constant(graph, f"{name}_block_scales", blocks.scales)
    attributes = {"bits": 4, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    return tape.op("GatherBlockQuantized", [packed, ids, scales], attributes, domain=CONTRIB)


def _divide(rows: Array, block: int) -> Array:
    """(rows, width) -> (rows, blocks, block)."""
    count, width = rows.shape
    padded = np.zeros((count, -(-width // block) * block), np.float32)
    padded[:, :width] = rows
    return padded.reshape(count, -1, block)


def _pack(blocks: Array, scales: Array, bits: int) -> NDArray[np.uint8]:
    levels = _levels(blocks, scales, 1 << (bits - 1)).astype(np.uint8)
    return np.ascontiguousarray(levels if bits == 8 else levels[..., ::2] | (levels[..., 1::2] << 4))


def _levels(blocks: Array, scales: Array, middle: int) -> Array:
    levels: Array = np.clip(np.rint(blocks / scales[..., None]) + middle, 0, 2 * middle - 1)
    return levels


def _least_error(blocks: Array, widest: Array, middle: int) -> Array:
    best, least = widest, np.full(widest.shape, np.inf, np.float32)
    for reach in _REACHES:
        scales = (widest * reach).astype(np.float32)
        wide = (_levels(blocks, scales, middle) - middle) * scales[..., None]
        error = np.square(wide - blocks).sum(axis=2)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return best
