"""LoRA (Hu et al. 2021, arXiv:2106.09685): one adapter's factors, and weights with an adapter merged into them."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from edgeclip_export.towers.weights import Read
from edgeclip_export.towers.xlmr_layout import PARAMETRIZED, LoraSizes

_ROWS_AT_ONCE = 64  # as many as stay in a processor's cache


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter: `factors` gives A and B of a layer or a table by its official name, without the scale.

    A linear layer's are (rank, in) and (out, rank), a table's (rows, rank) and (rank, width).
    """

    scale: float
    factors: Callable[[str], tuple[Tensor, Tensor]]


def official_adapter(read: Read, sizes: LoraSizes, index: int) -> Adapter:
    """The adapter of that index in the official layout's banks."""

    def factors(name: str) -> tuple[Tensor, Tensor]:
        return read(f"{name}{PARAMETRIZED}0.lora_A")[index], read(f"{name}{PARAMETRIZED}0.lora_B")[index]

    return Adapter(scale=sizes.scale, factors=factors)


def read_linear(name: str, base: Read, adapter: Adapter | None) -> Tensor:
    """A linear layer's weight (out, in), with an adapter merged into it if one is given; `base` reads it without."""
    weight = base(name)
    if adapter is not None:
        a, b = adapter.factors(name)
        _add_product(weight, b, a, adapter.scale)
    return weight


def read_table(name: str, base: Read, adapter: Adapter | None) -> Tensor:
    """A table (rows, width), with an adapter merged into it if one is given; `base` reads it without."""
    table = base(name)
    if adapter is not None:
        a, b = adapter.factors(name)
        _add_product(table, a, b, adapter.scale)
    return table


def _add_product(matrix: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add scale * left @ right to a matrix, some rows at a time: as a whole it takes four times as long and twice as
    much memory.
    """
    for start in range(0, len(matrix), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        matrix[rows] += (left[rows] @ right).mul_(scale)
