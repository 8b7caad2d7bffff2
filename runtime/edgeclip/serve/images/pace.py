"""How long the images of a request take in their graphs, by what each costs there and by the recent pace.

A page costs what it has of patches in one graph and of tokens in the next, so a hundred stamps may be little work and
ten pages much.
"""

from collections.abc import Sequence
from typing import Protocol

from edgeclip.families.family import Item

# How much a new image counts in the running mean of what images cost.
_NEWEST = 0.2
# What an image costs at least in its first graph, before it is opened.
_LEAST_COST = 1


class GraphPace(Protocol):
    """The pace of one graph: `edgeclip.serve.metrics.GraphMetrics`."""

    @property
    def seconds_per_cost(self) -> float | None:
        """The seconds for a cost of 1 at present; None when nothing has run."""

    def best_pace(self, within_s: float) -> float | None:
        """The seconds for a cost of 1 in the quickest recent batch; None when too few have run."""


class ImagePace:
    """The seconds that images take in the graphs on their way, at most two, in this order."""

    def __init__(self, graphs: Sequence[GraphPace]) -> None:
        self._graphs = graphs
        self._usual: tuple[float, ...] | None = None

    @property
    def each_s(self) -> float | None:
        """The seconds that an image as the last ones takes at present; None when nothing is known."""
        return None if self._usual is None else self.seconds(self._usual)

    def note(self, item: Item) -> None:
        """Remember what an image costs."""
        new = costs_of(item)
        old = self._usual or new
        self._usual = tuple(known + _NEWEST * (cost - known) for known, cost in zip(old, new, strict=True))

    def seconds(self, costs: Sequence[float]) -> float | None:
        """The seconds for a cost in each graph at present; None when nothing is known."""
        paces = [graph.seconds_per_cost for graph in self._graphs]
        if not paces or paces[0] is None:
            return None
        return sum((pace or 0.0) * cost for pace, cost in zip(paces, costs, strict=False))

    def best_seconds(self, costs: Sequence[float], within_s: float) -> float:
        """The seconds for a cost in each graph at the best pace of late, 0 where nothing is known."""
        paces = [graph.best_pace(within_s) or 0.0 for graph in self._graphs]
        return sum(pace * cost for pace, cost in zip(paces, costs, strict=False))


class ImageLoad:
    """What the images of one request cost together, as far as it is known, and the seconds of decoding them."""

    def __init__(self, images: int) -> None:
        self.images, self.decode_s = images, 0.0
        self.costs = (images * _LEAST_COST, 0)

    def add(self, item: Item) -> None:
        """Count an image that was opened."""
        first, following = costs_of(item)
        self.costs = (self.costs[0] - _LEAST_COST + first, self.costs[1] + following)


def costs_of(item: Item) -> tuple[int, int]:
    """What an image costs in its graph and in the one that follows."""
    return max(_LEAST_COST, item.tokens), item.next_tokens
