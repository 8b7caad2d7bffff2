"""What an export asks of a rewriting of its graphs to fewer bits, which it is handed and does not know.

Quantising without data needs nothing but the trace and its weights, so it can be done while a checkpoint is exported:
each weight is narrowed when it is written, and no fp32 graph is ever on the disk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.manifest import Precision

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowedTrace:
    """A graph that is ready to be written: new weights are computed when they are read, one at a time.

    `kernels` says how many linear layers have which kernel. `adapters` gives what becomes of an adapter's array, by
    the name of the graph's input; an array without an entry stays as it is.
    """

    model: ir.Model
    kernels: Mapping[str, int]
    adapters: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)


class Narrow(Protocol):
    """Rewrites a graph for the CPU to fewer bits, without data."""

    @property
    def precision(self) -> Precision:
        """The precision of what it gives."""

    @property
    def bits_per_weight(self) -> float:
        """The bits that a weight of a large matrix takes, scales included: what a bundle needs on disk."""

    @property
    def least_cosine(self) -> float:
        """The least cosine of a single vector to the checkpoint's, on the self-test, for a bundle to be written."""

    def __call__(self, model: ir.Model) -> NarrowedTrace:
        """Rewrite a graph whose linear layers are MatMul and Add, which may be changed."""
