"""Pillow's resize and torch's in numpy, equal in every bit.

`resize` is Pillow's. It is used for arrays where Pillow is not installed, and for images whose resized form would be
far larger than the crop that is wanted: it computes a window of the output and nothing else. `resize_like_torch` is
for models whose reference resizes uint8 tensors.

The maths is that of Pillow's src/libImaging/Resample.c for 8-bit images, which torch follows. Each axis is a
convolution with a kernel that widens by the scale when the image shrinks; its weights are normalised in float64 and
rounded to 22 fractional bits by Pillow, to as many as 16-bit integers hold by torch; the result of one axis is
rounded and clipped to 8 bits before the other follows; an axis that keeps its size is left alone. Counted in steps of
2**-22, a weighted sum of bytes stays below 2**31, so float64 holds it and every partial sum exactly, in whatever
order a matrix product adds them: the sums can run through BLAS and still be equal.

Which axis is resized first shows in the last bit. torch resizes the columns first (the width). Pillow changed it:
columns up to 12.1, a special case for very tall images in 12.2, the rule of `rows_first` since 13.0. This module
follows the last.

`edgeclip.inputs.square` and `edgeclip.inputs.patches` decide the size and the window.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.manifest import Interpolation

_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}  # the kernel's half width, in output pixels
_PILLOW_BITS = _MOST_BITS = 22
# torch keeps weights in signed integers of 16 bits.
_TORCH_WEIGHTS = 1 << 15

# Outputs per matrix product, the inputs they may span, and the input converted at a time. On two x86
# cores 4000 x 3000 -> 682 x 512 takes 0.1 s with these, 0.2 s with 64 outputs (most weights are then
# zeros), 0.3 to 1 s with chunks that outgrow the cache.
_BLOCK_OUTPUTS = 16
_BLOCK_INPUTS = 4096
_CHUNK_BYTES = 1 << 19


class _Axis(NamedTuple):
    """The outputs `first` to `last` of an axis that is resized from `source` to `target` pixels."""

    source: int
    target: int
    first: int
    last: int
    interpolation: Interpolation
    weight_bits: int = _PILLOW_BITS


def resize(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    interpolation: Interpolation,
    box: tuple[int, int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """The part `box` of Pillow 13's `resize(size, interpolation)`, at the cost of `box` alone.

    `pixels` is (height, width, channels) uint8 of any strides, `size` is (width, height), and `box` is (left, top,
    right, bottom) in pixels of the output, by default all of it. Returns a new array (bottom - top, right - left,
    channels). InputError for other pixels, for a box that is empty or not inside the output, and for an unknown
    interpolation.
    """
    width, height = size
    left, top, right, bottom = box if box is not None else (0, 0, width, height)
    _check_pixels(pixels)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        found = f"box {(left, top, right, bottom)}"
        raise InputError(f"resize: found {found}, wanted one that holds pixels of {width} x {height}")
    if interpolation not in _SUPPORT:
        raise InputError(f"resize: interpolation is {interpolation!r}, wanted {' or '.join(_SUPPORT)}")

    across = _Axis(pixels.shape[1], width, left, right, interpolation)
    down = _Axis(pixels.shape[0], height, top, bottom, interpolation)
    needed = pixels[_inputs(down), _inputs(across)]
    if rows_first((across.source, down.source), size):
        resized = _resize_columns(_resize_rows(needed, down), across)
    else:
        resized = _resize_rows(_resize_columns(needed, across), down)
    return np.array(resized, order="C")


def resize_like_torch(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """What torch's `interpolate(size, mode="bicubic", antialias=True)` makes of uint8 pixels.

    `pixels` is (height, width, channels) uint8 of any strides, `size` is (width, height). Returns (height, width,
    channels), a new array. InputError for other pixels, and for a size without pixels.
    """
    _check_pixels(pixels)
    if min(size) < 1:
        raise InputError(f"resize: found a size of {size[0]} x {size[1]} pixels, wanted 1 or more")
    across, down = (
        _with_torch_bits(_Axis(source, target, 0, target, "bicubic"))
        for source, target in zip(pixels.shape[1::-1], size, strict=True)
    )
    return np.array(_resize_rows(_resize_columns(pixels, across), down), order="C")


def rows_first(source: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether the rows are resized before the columns, as in Pillow 13; sizes are (width, height).

    That is so where the height loses more than twice the pixels that the width loses. Two calls of any Pillow's
    resize that change one axis each, in this order, give what Pillow 13 gives in one.
    """
    width_loss, height_loss = source[0] - target[0], source[1] - target[1]
    return height_loss > max(0, 2 * width_loss)


def _check_pixels(pixels: NDArray[np.uint8]) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or 0 in pixels.shape:
        found = f"{pixels.shape} array of {pixels.dtype}"
        raise InputError(f"resize: found a {found}, wanted uint8 (height, width, channels)")


def _with_torch_bits(axis: _Axis) -> _Axis:
    """The axis with the most fractional bits that its largest weight can have in an integer of 16 bits."""
    if axis.source == axis.target:
        return axis
    largest = max(float(_normalised(block).max()) for block in _blocks(axis))
    bits = (bits for bits in range(_MOST_BITS, 0, -1) if int(largest * 2**bits + 0.5) < _TORCH_WEIGHTS)
    return axis._replace(weight_bits=next(bits))


def _resize_rows(pixels: NDArray[np.uint8], axis: _Axis) -> NDArray[np.uint8]:
    return _resize_columns(pixels.swapaxes(0, 1), axis).swapaxes(0, 1)


def _resize_columns(pixels: NDArray[np.uint8], axis: _Axis) -> NDArray[np.uint8]:
    """The columns of `axis`, from pixels that hold only the columns they need."""
    if axis.source == axis.target:
        return pixels
    rows, _, channels = pixels.shape
    origin = _inputs(axis).start
    resized = np.empty((rows, axis.last - axis.first, channels), np.uint8)
    for block in _blocks(axis):
        inputs, weights = _inputs(block), _weights(block)
        columns = pixels[:, inputs.start - origin : inputs.stop - origin]
        outputs = slice(block.first - axis.first, block.last - axis.first)
        chunk = max(1, _CHUNK_BYTES // (8 * channels * len(weights)))
        for row in range(0, rows, chunk):
            planes = columns[row : row + chunk].transpose(2, 0, 1).astype(np.float64, order="C")
            sums = planes @ weights  # (channels, rows, outputs)
            sums += 0.5  # the cast below cuts off, so this rounds halves up
            np.clip(sums, 0, 255, out=sums)
            resized[row : row + chunk, outputs] = sums.transpose(1, 2, 0)
    return resized


def _blocks(axis: _Axis) -> Iterator[_Axis]:
    """The axis divided into runs of consecutive outputs."""
    step = max(1, min(_BLOCK_OUTPUTS, _BLOCK_INPUTS * axis.target // axis.source))
    for first in range(axis.first, axis.last, step):
        yield axis._replace(first=first, last=min(first + step, axis.last))


def _inputs(axis: _Axis) -> slice:
    """The range of inputs that the axis's outputs are made from."""
    if axis.source == axis.target:
        return slice(axis.first, axis.last)
    _, low, high = _windows(axis)
    return slice(int(low[0]), int(high[-1]))


def _windows(axis: _Axis) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Each output's centre among the inputs, its first input, and the one after its last."""
    scale = axis.source / axis.target
    support = _SUPPORT[axis.interpolation] * max(scale, 1.0)
    centre = (np.arange(axis.first, axis.last, dtype=np.float64) + 0.5) * scale
    low = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    high = np.minimum((centre + support + 0.5).astype(np.int64), axis.source)
    return centre, low, high


def _weights(axis: _Axis) -> NDArray[np.float64]:
    """How much each input counts in each output: (inputs, outputs), in multiples of 2**-weight_bits."""
    one = float(1 << axis.weight_bits)
    weights = _normalised(axis)
    fixed: NDArray[np.float64] = np.trunc(weights * one + np.copysign(0.5, weights))
    return fixed / one


def _normalised(axis: _Axis) -> NDArray[np.float64]:
    """How much each input counts in each output, before rounding: (inputs, outputs)."""
    centre, low, high = _windows(axis)
    position = np.arange(low[0], high[-1])[:, np.newaxis]  # (inputs, 1)
    distance = np.abs((position - centre + 0.5) * (1.0 / max(axis.source / axis.target, 1.0)))
    kernel = _bicubic(distance) if axis.interpolation == "bicubic" else _bilinear(distance)
    weights = np.where((position >= low) & (position < high), kernel, 0.0)
    weights /= np.cumsum(weights, axis=0)[-1]  # Pillow adds one after another; np.sum adds in pairs
    return weights


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = -0.5, for x >= 0."""
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The triangle, for x >= 0."""
    return np.where(x < 1.0, 1.0 - x, 0.0)
