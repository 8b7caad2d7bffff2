"""Families and splits of what is drawn: members that differ in one attribute, and combinations kept from training."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar, get_args

import numpy as np

from edgeclip.errors import BuildError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_T = TypeVar("_T")


def split_of_cells(cells: Iterable[int]) -> Split:
    """The split of what has these combinations, each a cell of a Latin square.

    One in eight is held out for test, one in eight for validation.
    """
    found = {cell % 8 for cell in cells}
    return "test" if 0 in found else "validation" if 3 in found else "train"


def draw_families(
    first: Callable[[], _T], vary: Callable[[_T], _T], known: Callable[[_T], Hashable | None], *, size: int, most: int
) -> Iterator[_T]:
    """Yield what is drawn without end, nothing twice, in families of `size`, of which one has at most `most`.

    `vary` gives one that differs from the first of its family, and `known` what two that are the same have in common,
    None for what is of another split.
    """
    if not 1 <= size <= most:
        raise BuildError(f"a family of {size}: wanted 1 to {most}")
    seen: set[Hashable] = {None}

    def is_new(drawn: _T) -> bool:
        if (key := known(drawn)) in seen:
            return False
        seen.add(key)
        return True

    while True:
        head = first()
        if not is_new(head):
            continue
        yield head
        members = 1
        while members < size:
            if is_new(member := vary(head)):
                members += 1
                yield member


def any_of(values: Sequence[_T], draw: np.random.Generator) -> _T:
    """One of the values, each as likely as another."""
    return values[int(draw.integers(len(values)))]


def other_than(value: _T, values: Sequence[_T], draw: np.random.Generator) -> _T:
    """One of the other values."""
    return any_of([other for other in values if other != value], draw)
