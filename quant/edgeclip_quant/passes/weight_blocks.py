"""Weights of 8 or 4 bits with a scale per block of an output's inputs, as onnxruntime's MatMulNBits stores them.

The input is rounded to 8 bits with a scale per block of a row (accuracy_level 4), so an outlier spoils its own block
only, and no other row. In 8 bits the levels lie about zero. In 4 bits the choice of levels matters much: each block
has a zero point, and of some ranges the one with the least squared error is taken, not the smallest that holds all
weights. Zero points cost no time (2048 x 11008 on two cores with VNNI: 0.99 to 1.01 at 1 to 512 rows).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip_graph.frame import store
from edgeclip_graph.lazy import by_rows, lazy
from edgeclip_graph.operators import CONTRIB

Array = NDArray[np.float32]

# The more weights share a scale, the fewer bytes: 128 adds a quarter of a bit to each, 32 a whole one.
BLOCK = 128
TABLE_BLOCK = 64
_LEAST_BLOCK = 16  # of GatherBlockQuantized
_INT8_INPUT = 4  # accuracy_level
_NUMBERS_AT_ONCE = 1 << 17  # as many as stay in a processor's cache with what is tried
# Shares of a block's range that 4 bits may reach over. More of them lessen the error by less than a hundredth.
_REACHES = (1.0, 0.9, 0.8, 0.7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """`packed` (rows, blocks, bytes) uint8, two 4-bit levels in a byte, the low first; `scales` and `zeros` (rows,
    blocks): a step, and the level that stands for 0.
    """

    packed: NDArray[np.uint8]
    scales: Array
    zeros: NDArray[np.uint8]


def quantize_blocks(rows: Array, bits: int, block: int) -> Blocks:
    """(rows, width) in blocks along the width, whose last one is filled up with zeros; 8 bits are symmetric."""
    count, width = len(rows), -(-rows.shape[1] // block)
    packed = np.empty((count, width, block * bits // 8), np.uint8)
    scales, zeros = np.empty((count, width), np.float32), np.empty((count, width), np.float32)
    step = max(1, _NUMBERS_AT_ONCE // rows.shape[1])
    for start in range(0, count, step):
        some = slice(start, start + step)
        blocks = _divide(rows[some], block)
        scales[some], zeros[some] = _symmetric(blocks) if bits == 8 else _least_error(blocks)
        levels = _levels(blocks, np.reciprocal(scales[some]), zeros[some], bits) + zeros[some, :, None]
        packed[some] = _pack(levels.astype(np.uint8), bits)
    return Blocks(packed=packed, scales=scales, zeros=zeros.astype(np.uint8))


def widen_blocks(blocks: Blocks, bits: int, width: int) -> Array:
    """The rows (rows, width) that the result of `quantize_blocks` stands for."""
    packed = blocks.packed
    levels = packed if bits == 8 else np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:2], -1)
    wide = (levels.astype(np.float32) - blocks.zeros[..., None]) * blocks.scales[..., None]
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
    remembered: list[Blocks] = []

    def quantize() -> NDArray[np.uint8]:
        found = quantize_blocks(weight().T, bits, BLOCK)
        remembered[:] = [replace(found, packed=np.empty(0, np.uint8))]  # a part of it would keep all of it in memory
        return found.packed

    def rest() -> Blocks:
        if not remembered:
            quantize()
        return remembered[0]

    # In this order, in which they are written, a weight is read and rounded once.
    packed = lazy(f"{name}_int{bits}_blocks", ir.DataType.UINT8, (outputs, blocks, BLOCK * bits // 8), quantize)
    stored = [
        store(graph, packed),
        store(graph, lazy(f"{name}_block_scales", ir.DataType.FLOAT, (outputs, blocks), lambda: rest().scales)),
    ]
    if bits == 4:
        shape = outputs, -(-blocks // 2)
        zeros = lazy(f"{name}_block_zeros", ir.DataType.UINT8, shape, lambda: _pack_zeros(rest().zeros))
        stored.append(store(graph, zeros))
    return tape.op(
        "MatMulNBits",
        [x, *stored, *[None] * (4 - len(stored)), bias],
        {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": _INT8_INPUT},
        domain=CONTRIB,
    )


def table_block(width: int) -> int:
    """The columns of a table of this width that share a scale."""
    return min(TABLE_BLOCK, max(_LEAST_BLOCK, 1 << (width.bit_length() - 1)))


def quantize_table(rows: Array) -> tuple[NDArray[np.uint8], Array, NDArray[np.uint8]]:
    """Rows of a table (rows, an even width) in 4 bits, two in a byte, their scales (rows, blocks) and zero points."""
    blocks = quantize_blocks(rows, 4, table_block(rows.shape[1]))
    # GatherBlockQuantized gives as many columns as are packed, those that fill up the last block too.
    packed = blocks.packed.reshape(len(rows), -1)[:, : rows.shape[1] // 2]
    return packed, blocks.scales, _pack_zeros(blocks.zeros)


def _pack_zeros(zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Zero points (rows, blocks) of 4 bits, two in a byte, as operators take them."""
    return _pack(np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))), 4)


def _divide(rows: Array, block: int) -> Array:
    """(rows, width) -> (rows, blocks, block)."""
    count, width = rows.shape
    if width % block == 0:
        return by_rows(rows).reshape(count, -1, block)
    padded = np.zeros((count, -(-width // block) * block), np.float32)
    padded[:, :width] = rows
    return padded.reshape(count, -1, block)


def _pack(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(levels if bits == 8 else levels[..., ::2] | (levels[..., 1::2] << 4))


def _levels(blocks: Array, steps: Array, zeros: Array, bits: int, out: Array | None = None) -> Array:
    """Blocks times `steps` in whole numbers, as many above and below 0 as `zeros` leave."""
    levels: Array = np.multiply(blocks, steps[..., None], out=out)
    np.rint(levels, out=levels)
    np.maximum(levels, -zeros[..., None], out=levels)
    return np.minimum(levels, (1 << bits) - 1 - zeros[..., None], out=levels)


def _symmetric(blocks: Array) -> tuple[Array, Array]:
    """Scales and zero points of 8 bits: the value farthest from zero goes to the end that has one step more."""
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    far = np.where(-low > high, low, high)
    scales = np.where(far == 0, np.float32(1.0), far / np.float32(-128))
    return scales, np.full(scales.shape, 128, np.float32)


def _least_error(blocks: Array) -> tuple[Array, Array]:
    """Scales and zero points of 4 bits: of the ranges tried, and the best scale for each one's levels, the best.

    Levels l of a block b are best at the scale (b l) / (l l), which leaves b b - (b l)^2 / (l l).
    """
    low, high = blocks.min(axis=2, initial=0), blocks.max(axis=2, initial=0)
    reach = np.where(high == low, np.float32(1), high - low)
    scales, zeros, gain = (np.full(low.shape, start, np.float32) for start in (1, 8, 0))
    levels = np.empty_like(blocks)
    for share in _REACHES:
        steps = np.reciprocal(reach) * np.float32(15 / share)
        middles = np.clip(np.rint(np.float32(7.5) - (low + high) / 2 * steps), 0, 15)
        _levels(blocks, steps, middles, 4, out=levels)
        along, square = (np.einsum("rbk,rbk->rb", levels, other) for other in (blocks, levels))
        gained = np.square(along) / np.maximum(square, 1)
        is_better = gained > gain
        scales = np.where(is_better, along / np.maximum(square, 1), scales)
        zeros, gain = np.where(is_better, middles, zeros), np.maximum(gained, gain)
    return scales, zeros
