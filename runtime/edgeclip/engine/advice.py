"""Which bundle for the CPU a machine should run: fp32, int8, int8 of 7 bits or int4.

It follows from what onnxruntime's matrix products do here (`edgeclip.engine.products`), and from times that were
measured on one processor with instruction sets hidden from onnxruntime (docs/devices.md). Nothing is timed.
"""

import platform
from dataclasses import dataclass

from edgeclip.engine.products import Products, probe_products
from edgeclip.engine.providers import may_overflow
from edgeclip.host.processor import visible_features
from edgeclip.manifest import Manifest

_X86 = frozenset(("x86_64", "amd64", "i386", "i686", "x86"))
_ARM64 = frozenset(("aarch64", "arm64"))
SEVEN_BITS = "int8 of 7 bits"
_BLOCKS_LAST = "int4 where memory is short: half of int8's bytes, slower from a few rows on"
_OPENVINO = "texts alone: 1.05 to 1.08 times as fast through OpenVINO, in twice the memory (docs/devices.md)"
_NO_BLOCKS = "no int4: its 4-bit blocks take 11 times fp32's time at one row, 3 times for a text of 16 tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The bundle that a machine should run, the options of `edgeclip quantize` that make it (none for fp32), and why.

    `int4` says when int4 is the better choice, `openvino` when another wheel of onnxruntime is.
    """

    bundle: str
    options: str
    why: str
    int4: str
    openvino: str | None = None

    @property
    def choice(self) -> str:
        """The bundle and the command that makes it."""
        return f"{self.bundle} (edgeclip quantize BUNDLE OUT {self.options})" if self.options else self.bundle

    def __str__(self) -> str:
        return "; ".join((f"{self.choice}: {self.why}", *self.exceptions))

    @property
    def exceptions(self) -> tuple[str, ...]:
        """When something else is the better choice."""
        return (self.int4,) if self.openvino is None else (self.int4, self.openvino)


def advise(products: Products, machine: str, features: frozenset[str]) -> Advice:
    """Choose by the products, by the architecture's name (`platform.machine()`), and by instruction sets as the
    kernel names them.
    """
    if products.adds_in_16_bits:
        return Advice(
            bundle=SEVEN_BITS,
            options="--to int8 --cpu avx2",
            why="x86 without VNNI, where 8 bits need a guard against overflow that costs most of their gain",
            int4=_BLOCKS_LAST,
        )
    if machine.lower() in _X86 and not products.fuses:
        if "avx" in features:
            why = "x86 with AVX and without AVX2, where integers take 1.1 times fp32's time; int8 saves memory"
            return Advice(bundle="fp32", options="", why=why, int4=_NO_BLOCKS)
        return Advice(
            bundle="int8", options="--to int8", why="x86 without AVX, where integers are faster", int4=_NO_BLOCKS
        )
    openvino = None
    if machine.lower() in _X86:
        why, openvino = "x86 with VNNI", _OPENVINO
    elif machine.lower() in _ARM64 and products.wraps_beside_zero:
        why = "arm64 without dotprod, which multiplies no weight of these bundles wrongly; not timed on a board"
    elif machine.lower() in _ARM64:
        why = "arm64 with dotprod; not timed on a board"
    else:
        why = f"{machine or 'this processor'} was not timed"
    return Advice(bundle="int8", options="--to int8", why=why, int4=_BLOCKS_LAST, openvino=openvino)


def advise_here() -> Advice:
    """The advice for this machine; runs two small products in onnxruntime."""
    return advise(probe_products(), platform.machine(), visible_features())


def is_guarded(manifest: Manifest, products: Products) -> bool:
    """Whether a bundle's products need a guard against overflow on this CPU, which costs time."""
    kernels = [facts.kernels for facts in manifest.graphs.values()]
    return products.adds_in_16_bits and (products.pairs_overflow or any(map(may_overflow, kernels)))
