"""What an export asks of a rewriting of its graphs to fewer bits, which it is handed and does not know.

Quantising without data needs nothing but the trace and its weights, so it can be done while a checkpoint is exported:
each weight is narrowed when it is written, and no fp32 graph is ever on the disk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.manifest import Measurement, Precision

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowedTrace:
    """A graph that is ready to be written: new weights are computed when they are read, one at a time.

    `kernels` says how many linear layers have which kernel. `change_adapter` makes an adapter's array, which is given
    by the name of the graph's input, into the one that this graph takes.
    """

    model: ir.Model
    precision: Precision
    kernels: Mapping[str, int]
    change_adapter: Callable[[str, Array], Array]


class Narrow(Protocol):
    """Rewrites a graph for the CPU to fewer bits, without data."""

    @property
    def name(self) -> Precision:
        """The precision that was asked for; a graph may have another."""

    @property
    def attempts(self) -> int:
        """How many attempts there are, each finer than the one before."""

    def bits_per_weight(self, *, is_followed: bool) -> float:
        """The bits that a weight of a large matrix takes, scales included: what a bundle needs on disk."""

    def __call__(self, model: ir.Model, name: str, *, is_followed: bool, attempt: int) -> NarrowedTrace:
        """Rewrite the graph of that name, whose linear layers are MatMul and Add, and which may be changed.

        `is_followed`: another graph takes what it gives. `attempt` counts from 0.
        """

    def objections(self, measured: Sequence[Measurement], kernels: Mapping[str, int]) -> Sequence[str]:
        """What is wrong with vectors of a graph with these kernels, a sentence each; none where it may be written."""
