"""Choose the queued items of a graph's next batch: values in, values out, no clock and no threads.

Items of one kind share a batch (`edgeclip.engine.batch_policy`): nothing is padded. Weighted fair queueing (Demers,
Keshav and Shenker 1989) decides whose turn it is, with a request as the flow and tokens as the bytes: each waiting
request is owed an equal share of the graph, so two thousand texts delay a single one by no more than the batch that
runs, and are themselves never starved by a stream of single ones. Short items go first among equals.

By turns of single items, four requests of eight images would all be answered at the end and none before. With a
quantum, items of a request that cost so much together are one packet, as in the paper: a packet has its turn when
turns of single items would have finished it, and is then served whole. So the four requests are answered one after
another, and none later than by turns of single items.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeclip.engine.batch_policy import Kind

# Whether a request may have an item of a kind now.
May = Callable[[int, Kind], bool]


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A request's items that no batch has taken: its place in virtual time, and indices by kind."""

    arrival: int
    start: float
    cost: int = 0
    packet: int = 0  # the part of `cost` that is left of the packet that has begun
    by_kind: dict[Kind, deque[int]] = field(default_factory=dict)

    def rank(self, kind: Kind) -> tuple[float, int, int]:
        """The virtual time at which its packet, or its next item of that kind, is done; ties go to the cheapest."""
        return self.start + max(kind.cost, self.packet), self.cost, self.arrival

    def cheapest(self, above: int, up_to: int | None, may: "May | None") -> Kind | None:
        """The kind of least cost among its items, within bounds."""
        if above or up_to is not None or may is not None:
            within = (
                kind
                for kind in self.by_kind
                if above < kind.cost
                and (up_to is None or kind.cost <= up_to)
                and (may is None or may(self.arrival, kind))
            )
            return min(within, key=_cost, default=None)
        return min(self.by_kind, key=_cost, default=None)


class FairQueue:
    """The requests that wait for one graph. Not safe for several threads: its owner holds a lock.

    `rows` says how many items of a kind make a batch at most, as `BatchPolicy.rows`. `quantum` is the largest
    packet: a request that costs no more is served undivided, except that items which are due sooner go before it.
    """

    def __init__(self, rows: Callable[[Kind], int], *, quantum: int = 0) -> None:
        self._rows, self._quantum = rows, quantum
        self._waiting: dict[int, _Waiting] = {}
        self._ends: dict[int, float] = {}  # virtual times of requests that have nothing waiting and were not removed
        self._now = 0.0  # virtual: the tokens each request would have got, had all been served alike
        self._depth = self._cost = 0

    @property
    def depth(self) -> int:
        """The number of items that wait."""
        return self._depth

    @property
    def cost(self) -> int:
        """The cost of all items that wait."""
        return self._cost

    def add(self, request: int, kinds: Sequence[Kind], *, first: int = 0) -> None:
        """Queue items of a request, with the indices `first`, first + 1, ...; a new `request` is a larger number.

        A request may be given more items later; what it was served since it came counts.
        """
        cost = sum(kind.cost for kind in kinds)
        waiting = self._waiting.get(request)
        if waiting is None:
            start = max(self._now, self._ends.get(request, 0.0))
            waiting = self._waiting[request] = _Waiting(arrival=request, start=start)
        waiting.cost += cost
        waiting.packet = min(self._quantum, waiting.packet + cost)
        for index, kind in enumerate(kinds, first):
            waiting.by_kind.setdefault(kind, deque()).append(index)
        self._depth += len(kinds)
        self._cost += cost

    def remove(self, request: int) -> None:
        """Forget a request and those of its items that still wait, if any."""
        self._ends.pop(request, None)
        if waiting := self._waiting.pop(request, None):
            self._depth -= sum(map(len, waiting.by_kind.values()))
            self._cost -= waiting.cost

    def take(self, *, above: int = 0, up_to: int | None = None, may: May | None = None) -> list[tuple[int, int]]:
        """The next batch, (request, index) each, all of one kind; empty when nothing waits.

        The request whose turn it is decides the kind; other requests' items of that kind fill the batch, by turns.
        Only items are taken that cost more than `above`, no more than `up_to`, and that `may` allows.
        """
        kind, turns = self._turns(above, up_to, may)
        if kind is None:
            return []
        sharers, size = len(self._waiting), self._rows(kind)
        taken: list[tuple[int, int]] = []
        while turns and len(taken) < size:
            _, waiting = heapq.heappop(turns)
            taken.append((waiting.arrival, waiting.by_kind[kind].popleft()))
            waiting.start += kind.cost
            waiting.cost -= kind.cost
            waiting.packet -= kind.cost
            if waiting.packet <= 0:
                waiting.packet = min(self._quantum, waiting.cost)
            if waiting.by_kind[kind]:
                heapq.heappush(turns, (waiting.rank(kind), waiting))
                continue
            del waiting.by_kind[kind]
            if not waiting.by_kind:
                del self._waiting[waiting.arrival]
                self._ends[waiting.arrival] = waiting.start
        self._depth -= len(taken)
        self._cost -= kind.cost * len(taken)
        self._now += kind.cost * len(taken) / sharers
        return taken

    def _turns(
        self, above: int, up_to: int | None, may: May | None
    ) -> "tuple[Kind | None, list[tuple[tuple[float, int, int], _Waiting]]]":
        """The kind of the next batch, and the requests that have such items, as a heap by rank."""
        if len(self._waiting) == 1:  # most of the time, and a rank compares nothing
            (waiting,) = self._waiting.values()
            return waiting.cheapest(above, up_to, may), [((0.0, 0, 0), waiting)]
        offers = [
            (waiting.rank(kind), kind)
            for waiting in self._waiting.values()
            if (kind := waiting.cheapest(above, up_to, may)) is not None
        ]
        if not offers:
            return None, []
        _, kind = min(offers)
        turns = [
            (waiting.rank(kind), waiting)
            for waiting in self._waiting.values()
            if kind in waiting.by_kind and (may is None or may(waiting.arrival, kind))
        ]
        heapq.heapify(turns)
        return kind, turns


def _cost(kind: Kind) -> int:
    return kind.cost
