"""A bounded number of places for work that waits on other machines, shared fairly among requests and targets.

Work that hangs holds its place until its time is up, so a queue alone does not help: once every place hangs, its next
turn comes when the first of them ends. Therefore a target never gets more than a third of all places, and less the
fewer are free (the dynamic thresholds of Choudhury and Hahne, 1998): a target that has none gets one while any is
free. Whose turn it is among those that may have a place, `edgeclip.serve.queue.fair_queue` decides.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from edgeclip.engine.batch_policy import Kind
from edgeclip.serve.queue.fair_queue import FairQueue


class FairPlaces:
    """Gives out `count` places at a time. Used from one event loop."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._queue = FairQueue(lambda kind: 1)
        self._requests, self._numbers = itertools.count(), itertools.count()
        self._waiting: dict[int, tuple[Kind, asyncio.Future[None]]] = {}
        self._held: Counter[Kind] = Counter()

    @property
    def depth(self) -> int:
        """The number of pieces of work that wait for a place."""
        return self._queue.depth

    def new_request(self) -> int:
        """The number of a new request, for `place`; work of one number shares turns. End with `forget`."""
        return next(self._requests)

    def forget(self, request: int) -> None:
        """Give no place to work of this request that still waits."""
        self._queue.remove(request)
        self._waiting = {
            number: (kind, answer) for number, (kind, answer) in self._waiting.items() if not answer.done()
        }

    @asynccontextmanager
    async def place(self, request: int, target: str) -> AsyncIterator[None]:
        """A place for work of a request at a target, in its turn."""
        leave = await self.enter(request, target)
        try:
            yield
        finally:
            leave()

    async def enter(self, request: int, target: str) -> Callable[[], None]:
        """A place that is held until the returned function is called, in its turn."""
        kind = Kind(cost=1, alike=target)
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = kind, answer
        self._queue.add(request, [kind], first=number)
        if self._may_have(kind):
            self._give_out()
        try:
            await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled():  # it was given a place, and is cancelled before it knew
                self._leave(kind)
            raise
        return lambda: self._leave(kind)

    def _leave(self, kind: Kind) -> None:
        self._held[kind] -= 1
        if not self._held[kind]:
            del self._held[kind]
        self._give_out()

    def _give_out(self) -> None:
        while self._held.total() < self._count and (
            taken := self._queue.take(may=lambda request, kind: self._may_have(kind))
        ):
            kind, answer = self._waiting.pop(taken[0][1])
            if not answer.done():  # else nobody waits for it any more
                self._held[kind] += 1
                answer.set_result(None)

    def _may_have(self, kind: Kind) -> bool:
        free = self._count - self._held.total()
        return free > 0 and self._held[kind] < max(1, free // 2)
