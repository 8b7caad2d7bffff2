"""A call of a lane: its items, each of which is let go once it is computed, and the answers to them.

A page's pixels are 2 MB and its features 6 MB, and a request may have a hundred pages. So an item of a graph that
another one follows is handed on at once, alone, and nothing of it is kept here.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeclip.engine.unit_vectors import Vectors
from edgeclip.families.family import Item
from edgeclip.manifest import Space

# Takes the next graph's item of a place in a call; what it returns is done when nobody needs that item any more.
HandOn = Callable[[int, Item], "asyncio.Future[Any]"]
# Stands where an item was that is computed.
_LET_GO = Item(graph="", arrays={}, tokens=0, alike=None)


@dataclass(slots=True, kw_only=True)
class LaneAnswer:
    """What a graph gave for the items of one call: vectors (N, D), None where all were handed on.

    Rows of items that were handed on hold nothing. In the space "multi" `matrices` has a matrix (T, D) by the place
    of its item instead.
    """

    vectors: Vectors | None = None
    matrices: dict[int, Vectors] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class LaneCall:
    """The items of one call and their answers. The lane's thread reads `items` alone; the loop changes the rest."""

    items: list[Item]
    space: Space
    future: "asyncio.Future[LaneAnswer]"
    since_s: float
    hand_on: HandOn | None
    missing: int
    answer: LaneAnswer = field(default_factory=LaneAnswer)

    def put(self, index: int, found: Any) -> "asyncio.Future[Any] | None":
        """Note what was found for an item: its vector (D,), its vectors (T, D), or the next graph's item.

        That item is handed on: the result is what `hand_on` returned.
        """
        following = None
        if isinstance(found, Item):
            assert self.hand_on is not None, "a graph that another one follows is called with `hand_on`"
            following = self.hand_on(index, found)
        elif self.space == "multi":
            self.answer.matrices[index] = np.array(found)  # a copy, or it would hold the whole batch's
        elif len(self.items) == 1:
            self.answer.vectors = found[None]
        else:
            if self.answer.vectors is None:
                self.answer.vectors = np.empty((len(self.items), len(found)), np.float32)
            self.answer.vectors[index] = found
        self.items[index] = _LET_GO
        self.missing -= 1
        return following

    def settle(self, failure: BaseException | None = None) -> None:
        """Answer the call, unless it has an answer or its client is gone."""
        if self.future.done():
            return
        if failure is not None:
            self.future.set_exception(failure)
        else:
            self.future.set_result(self.answer)
