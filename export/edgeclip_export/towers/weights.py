"""Weights that are read when they are needed: a tower is traced without them, and no step holds all of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

# Gives one tensor of a checkpoint by its official name, as a fresh copy in fp32.
Read = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A checkpoint's table of tokens, which is larger than any other tensor.

    `mapped` gives it in the type that it is stored in, of whose file only what is read comes into memory; `pieces`
    gives its rows in fp32, some at a time, and raises BuildError for numbers that are not finite.
    """

    mapped: Callable[[], Tensor]
    pieces: Callable[[], Iterator[Tensor]]


@dataclass(frozen=True, slots=True)
class LazyWeight:
    """One weight of a tower: its shape, and the function that computes it in fp32 from the checkpoint's tensors.

    `table` is there for a table that is used as it is stored. What `read` gives may be turned: by columns in memory.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    table: Table | None = None


# By the names of the tower's parameters and buffers.
Weights = Mapping[str, LazyWeight]


def lazy_linear(
    name: str, inputs: int, outputs: int, weight: Callable[[], Tensor], bias: Callable[[], Tensor] | None
) -> Weights:
    """A `Linear` layer's weight, and its bias where it has one; `weight` gives (out, in) as checkpoints store it."""
    weights = {f"{name}.weight": LazyWeight((inputs, outputs), lambda: weight().T)}
    return weights if bias is None else weights | {f"{name}.bias": LazyWeight((outputs,), bias)}


def lazy_norm(name: str, width: int, source: str, read: Read) -> Weights:
    """A LayerNorm's two weights, which the checkpoint has under the name `source`."""
    return {
        f"{name}.weight": LazyWeight((width,), lambda: read(f"{source}.weight")),
        f"{name}.bias": LazyWeight((width,), lambda: read(f"{source}.bias")),
    }
