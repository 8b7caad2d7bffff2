"""What a family of models decides at run time: inputs to items, outputs to vectors. Nothing here opens a session.

`edgeclip.engine.run` runs items, `edgeclip.engine.batch_policy` says how many at once. `edgeclip.families` lists the
families.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.inputs.images import ImageInput
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest, Modality, Space

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One input of one graph, its arrays without a batch axis.

    `tokens` is what it costs in a batch. Only items of one graph with the same `adapter` and the same value of
    `alike` share a batch. With `needs_mask` the attention over it holds tokens x tokens numbers for every head.

    Where another graph follows (`Family.follow`), `next_adapter` is the adapter of that graph, `next_tokens` what the
    item made of this one costs there, and `key` is a hash of the arrays: items with one key have the same outputs, so
    those of the last few are kept and not computed again.
    """

    graph: str
    arrays: Arrays
    tokens: int
    alike: Hashable
    adapter: str | None = None
    needs_mask: bool = False
    next_adapter: str | None = None
    next_tokens: int = 0
    key: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Texts as items, in their order, and the indices of those that were cut."""

    items: tuple[Item, ...]
    cut: tuple[int, ...]


class Family(Protocol):
    """How the models of one family take inputs and give vectors. Any number of threads may use it at once.

    A modality that the bundle does not take is an InputError.
    """

    def __init__(self, manifest: Manifest, tokenizer: Callable[[], TextTokenizer]) -> None:
        """`tokenizer` gives the bundle's tokenizer, which is parsed at the first call."""

    def texts(self, texts: Sequence[str], task: str | None, max_length: int | None) -> Prepared:
        """Texts as items of at most `max_length` tokens (None: the model's limit); InputError for a wrong task."""

    def token_ids(self, ids: Sequence[Sequence[int]], task: str | None, max_length: int | None) -> Prepared:
        """Texts that are given as token ids; opening and closing tokens are put around ids that have not both."""

    def image(self, image: ImageInput, task: str | None, *, max_pixels: int | None, label: str) -> Item:
        """An image as an item; InputError, whose message calls it `label`, for one that cannot be read."""

    def feed(self, items: Sequence[Item]) -> Arrays:
        """The arrays of one batch of items that are alike, stacked, by the names of the graph's inputs."""

    def follow(self, item: Item, outputs: Arrays) -> Item | None:
        """The next graph's item, made of what an item's graph gave (arrays without a batch axis).

        None: the outputs are the vectors.
        """

    def output(self, graph: str, space: Space) -> str:
        """The name of the graph's output that holds the vectors of a space."""

    def made_up(self, draw: Generator, modality: Modality, tokens: int) -> Item:
        """A random input, for warm-up, calibration and benchmarks; `tokens` counts for texts alone."""

    def billed(self, item: Item, size: tuple[int, int] | None) -> int:
        """The number of tokens that the hosted API counts for an item; `size` is an image's (width, height)."""


def stack(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of one shape with a new first axis. Neighbouring rows of one buffer are not copied."""
    first = rows[0]
    if len(rows) == 1:
        return first[None]
    base = first.base  # the buffer, or its bytes: numpy names what owns the memory, whatever views lie between
    if isinstance(base, np.ndarray) and base.flags.c_contiguous and _are_neighbours(rows):
        start = _address(first) - _address(base)
        taken = base.reshape(-1).view(np.uint8)[start : start + len(rows) * first.nbytes]
        return taken.view(first.dtype).reshape(len(rows), *first.shape)
    return np.stack(rows)


def _are_neighbours(rows: Sequence[NDArray[Any]]) -> bool:
    """Whether arrays are alike and lie one behind the other in the memory of one owner."""
    first, start = rows[0], _address(rows[0])
    return all(
        row.base is first.base
        and (row.shape, row.dtype) == (first.shape, first.dtype)
        and row.flags.c_contiguous
        and _address(row) == start + index * first.nbytes
        for index, row in enumerate(rows)
    )


def _address(array: NDArray[Any]) -> int:
    """The address of an array's first element."""
    address: int = array.__array_interface__["data"][0]
    return address


def refuse_max_pixels(max_pixels: int | None) -> None:
    """InputError for a limit of pixels, which models whose images all get one size do not have."""
    if max_pixels is not None:
        raise InputError(f"max_pixels is {max_pixels!r}: this model resizes every image to one size; leave it out")
