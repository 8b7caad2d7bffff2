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

from edgeclip_graph.frame import store
from edgeclip_graph.lazy import lazy
from edgeclip_graph.operators import CONTRIB

Array = NDArray[np.float32]

# The more weights share a scale, the fewer bytes: 128 adds a quarter of a bit to each, 32 a whole one.
BLOCK = 128
TABLE_BLOCK = 64
_LEAST_BLOCK = 16  # of GatherBlockQuantized
_INT8_INPUT = 4  # accuracy_level
_NUMBERS_AT_ONCE = 1 << 17  # as many as stay in a processor's cache with what is tried
# Shares of the largest weight that a scale may reach to, tried in 4 bits.
_REACHES = np.linspace(1.0, 0.6, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """`packed` (rows, blocks, bytes) uint8, two 4-bit levels in a byte, the low first; `scales` (rows, blocks)."""

    packed: NDArray[np.uint8]
    scales: Array


def quantize_blocks(rows: Array, bits: int, block: int) -> Blocks:
    """(rows, width) in blocks along the width, symmetric about 2^(bits-1); a last block is filled up with zeros."""
    count, width = len(rows), -(-rows.shape[1] // block)
    packed = np.empty((count, width, block * bits // 8), np.uint8)
    scales = np.empty((count, width), np.float32)
    step = max(1, _NUMBERS_AT_ONCE // rows.shape[1])
    for start in range(0, count, step):
        some = slice(start, start + step)
        blocks = _divide(rows[some], block)
        scales[some] = _scales(blocks, bits)
        packed[some] = _pack(blocks, scales[some], bits)
    return Blocks(packed=packed, scales=scales)


def _scales(blocks: Array, bits: int) -> Array:
    """The scales of blocks (rows, blocks, block)."""
    middle = 1 << (bits - 1)
    # The value farthest from zero goes to the end of the range that has one step more.
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    far = np.where(-low > high, low, high)
    widest = np.where(far == 0, np.float32(1.0), far / np.float32(-middle))
    return widest if bits == 8 else _least_error(blocks, widest, middle)


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
    shape: tuple[int, int],
    bias: ir.Value | None,
    name: str,
    bits: int,
) -> ir.Value:
    """Compute x W + b with a weight of this shape (in, out) in blocks, which are computed when they are read."""
    inputs, outputs = shape
    blocks = -(-inputs // BLOCK)
    remembered: list[Array] = []

    def quantize() -> NDArray[np.uint8]:
        found = quantize_blocks(weight().T, bits, BLOCK)
        remembered[:] = [found.scales]
        return found.packed

    def scales() -> Array:
        if not remembered:
            quantize()
        return remembered[0]

    # In this order, in which they are written, a weight is read and rounded once.
    packed = lazy(f"{name}_int{bits}_blocks", ir.DataType.UINT8, (outputs, blocks, BLOCK * bits // 8), quantize)
    stored = (
        store(graph, packed),
        store(graph, lazy(f"{name}_block_scales", ir.DataType.FLOAT, (outputs, blocks), scales)),
    )
    return tape.op(
        "MatMulNBits",
        [x, *stored, None, None, bias],
        {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": _INT8_INPUT},
        domain=CONTRIB,
    )


def table_block(width: int) -> int:
    """The columns of a table of this width that share a scale."""
    return min(TABLE_BLOCK, max(_LEAST_BLOCK, 1 << (width.bit_length() - 1)))


def quantize_table(rows: Array) -> tuple[NDArray[np.uint8], Array]:
    """Rows of a table (rows, an even width) in 4 bits, two in a byte, and their scales (rows, blocks)."""
    blocks = quantize_blocks(rows, 4, table_block(rows.shape[1]))
    # GatherBlockQuantized gives as many columns as are packed, those that fill up the last block too.
    return blocks.packed.reshape(len(rows), -1)[:, : rows.shape[1] // 2], blocks.scales


def _divide(rows: Array, block: int) -> Array:
    """(rows, width) -> (rows, blocks, block)."""
    count, width = rows.shape
    if width % block == 0:
        return np.ascontiguousarray(rows).reshape(count, -1, block)
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
