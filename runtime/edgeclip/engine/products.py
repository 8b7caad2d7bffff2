"""Find out how onnxruntime multiplies matrices on this processor, by computing two small products.

onnxruntime chooses its kernels by instruction sets that it looks for itself, and says nowhere which it found. What it
computes shows it, under an emulator and where a hypervisor hides instructions too.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.ort import start_session

# y = MatMulInteger(x, w) and c = MatMul(a, b) as one model: x (2, 32) uint8; w (32, 8) int8, columns of 127, of -128,
# of 127 and 1 in turns, and of -127 and -1 in turns, two of each; a (1, 2) float32; b (2, 16) float32, a row of 1 and
# a row of 1 + 2^-12.
_MODEL = (
    b'\x08\x08:\xa2\x04\n\x18\n\x01x\n\x01w\x12\x01y"\rMatMulInteger\n\x11\n\x01a\n\x01b\x12\x01c"\x06MatMul\x12\x01g'
    b"*\x8c\x02\x08 \x08\x08\x10\x03B\x01wJ\x80\x02"
    + b"\x7f\x7f\x80\x80\x7f\x7f\x81\x81\x7f\x7f\x80\x80\x01\x01\xff\xff" * 16
    + b"*\x8c\x01\x08\x02\x08\x10\x10\x01B\x01bJ\x80\x01"
    + b"\x00\x00\x80?" * 16
    + b"\x00\x08\x80?" * 16
    + b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x02\n\x02\x08 "
    b"Z\x13\n\x01a\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x02"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x02\n\x02\x08\x08"
    b"b\x13\n\x01c\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x10B\x04\n\x00\x10\r"
)
_DEPTH = 32
_WEIGHTS = np.array([[127, 127, -128, -128, 127, 127, -127, -127], [127, 127, -128, -128, 1, 1, -1, -1]] * 16)
_IN_PAIRS = slice(4, None)  # columns whose neighbours have 128 together
_INPUTS = np.array([[255] * _DEPTH, [0] * _DEPTH], np.uint8)
# Times 1 and 1 + 2^-12: the exact sum is 2^-24. Where products are rounded before they are added, it is 0.
_FACTORS = np.array([[-(1 + 2**-11), 1 + 2**-12]], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """What onnxruntime's matrix products do on this processor.

    `adds_in_16_bits`: x86 without VNNI adds pairs of products of unsigned inputs and signed weights in 16 bits, where
    two of 255 * 127 overflow. `pairs_overflow`: so do two neighbours that have 128 together, because others than
    neighbours are added; no onnxruntime is known that does. `wraps_beside_zero`: arm64 without dotprod makes an input
    of 0 a -128 and adds pairs in 16 bits, where two of -128 * -128 overflow; -128 * -127 do not. `fuses`: float
    products are added without being rounded before, as AVX2 (FMA3), AVX-512 and arm64 do, and SSE and AVX do not.
    """

    adds_in_16_bits: bool
    pairs_overflow: bool
    wraps_beside_zero: bool
    fuses: bool


@functools.cache
def probe_products() -> Products:
    """Compute the two products in onnxruntime, once per process."""
    found, fused = start_session(_MODEL, threads=1).run(None, {"x": _INPUTS, "a": _FACTORS})
    return read_products(found, fused)


def read_products(found: NDArray[Any], fused: NDArray[Any]) -> Products:
    """Judge the integer product (2, 8) of full and of zero inputs, and the float product (1, 16)."""
    is_wrong = found != _INPUTS.astype(np.int64) @ _WEIGHTS
    return Products(
        adds_in_16_bits=bool(is_wrong[0].any()),
        pairs_overflow=bool(is_wrong[0, _IN_PAIRS].any()),
        wraps_beside_zero=bool(is_wrong[1].any()),
        fuses=bool((fused != 0).all()),
    )


def pairs_overflow() -> bool:
    """Whether weights of 7 bits overflow too (`Products`)."""
    return probe_products().pairs_overflow


def adds_in_16_bits() -> bool:
    """Whether this processor's integer products overflow in 16 bits (`Products`)."""
    return probe_products().adds_in_16_bits
