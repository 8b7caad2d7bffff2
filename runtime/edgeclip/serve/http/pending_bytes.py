"""The bytes that all requests in progress hold, bounded: many large requests at once are memory too.

The first FREE_BYTES of each request count in no bound but that of connections, so a short text is taken whatever
large requests are in progress. Where a larger one finds no room, it does not wait for those whose bytes are still
coming, for they may come as slowly as their clients like: one of those that have stood still is given up, else the
largest of all that are incomplete, and its client gets the 429.

A request is ended through its room: when it is given up, when its client goes away and when its time is up.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from edgeclip.serve.errors import ApiError, retry_later
from edgeclip.serve.metrics import Metrics

FREE_BYTES = 64 << 10
# Seconds without a byte after which an incomplete request is given up before larger ones.
_STILL_S = 1.0
# The longest time between two looks for requests whose time is up.
_MOST_LOOK_S = 1.0


class PendingBytes:
    """At most `most` bytes of the bodies of requests, and of images that were fetched for them.

    The first FREE_BYTES of each request are not counted in it. Used from one event loop.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most, self._held, self._counted = most, 0, 0
        self._rooms: set[Room] = set()
        metrics.pending_bytes.set_function(lambda: self._held)

    def room(self) -> "Room":
        """The room of one request of the calling task, as a context."""
        return Room(self, asyncio.current_task())

    async def end_late(self, within_s: float) -> None:
        """End every request whose time is up, until this is cancelled; `within_s` is the time of a request."""
        while True:
            await asyncio.sleep(min(_MOST_LOOK_S, within_s / 8))
            now_s = time.monotonic()
            for room in [one for one in self._rooms if one.until_s < now_s]:
                room.end(room.too_late())

    def enter(self, room: "Room") -> None:
        """Count a room from now on."""
        self._rooms.add(room)

    def leave(self, room: "Room") -> None:
        """Free all of a room again."""
        self._rooms.remove(room)
        self.change(room, -room.taken)

    def change(self, room: "Room", count: int) -> None:
        """Let a request hold bytes more or less; ApiError 429 where there is no room for more."""
        if max(room.taken, room.taken + count) <= FREE_BYTES:
            room.taken += count
            self._held += count
            return
        before = room.counted
        more = max(0, room.taken + count - FREE_BYTES) - before
        while self._counted + more > self._most and more > 0:
            victim = max(
                (one for one in self._rooms if one.counted and one.is_incomplete), key=Room.rank, default=room
            )
            if victim is room or (not victim.is_still and victim.counted < before + more):
                raise _full()
            self.change(victim, -victim.taken)
            victim.end(_full())
        room.taken += count
        self._held += count
        self._counted += more


class Room:
    """The bytes that one request holds until the context ends, in which the request may be ended for a reason."""

    __slots__ = ("_incomplete", "_of", "_reason", "_took_at", "taken", "task", "too_late", "until_s")

    def __init__(self, of: PendingBytes, task: "asyncio.Task[object] | None") -> None:
        assert task is not None
        self._of, self.task, self.taken = of, task, 0
        self._incomplete, self._took_at = 0, 0.0
        self._reason: Exception | None = None
        self.until_s = math.inf

    def __enter__(self) -> Self:
        self._of.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._of.leave(self)
        if kind is asyncio.CancelledError and self._reason is not None and not self.task.uncancel():
            raise self._reason from None  # else the service ends, too

    def end(self, reason: Exception) -> None:
        """Cancel the task; the context ends with `reason`."""
        if self._reason is None:
            self._reason, self.until_s = reason, math.inf
            self.task.cancel()

    def end_after(self, seconds: float, too_late: Callable[[], Exception]) -> None:
        """End the request in so many seconds, or a little later, for the reason that `too_late` gives then."""
        self.until_s, self.too_late = time.monotonic() + seconds, too_late

    @property
    def is_ended(self) -> bool:
        """Whether the request was ended from outside."""
        return self._reason is not None

    @property
    def counted(self) -> int:
        """Its bytes that count in the bound."""
        return max(0, self.taken - FREE_BYTES)

    @property
    def is_incomplete(self) -> bool:
        """Whether bytes are still to come."""
        return self._incomplete > 0

    @property
    def is_still(self) -> bool:
        """Whether none has come for a while."""
        return time.monotonic() - self._took_at > _STILL_S

    def rank(self) -> tuple[bool, int]:
        """The order in which requests are given up: the largest first."""
        return self.is_still, self.counted

    @contextmanager
    def incomplete(self) -> Iterator[None]:
        """The time in which bytes come from elsewhere; the request may be given up for another."""
        self.expect()
        try:
            yield
        finally:
            self.expect_no_more()

    def expect(self) -> None:
        """Note that bytes come from elsewhere from now on."""
        self._incomplete += 1
        self._took_at = time.monotonic()

    def expect_no_more(self) -> None:
        """Note that what `expect` was called for has come."""
        self._incomplete -= 1

    def take(self, count: int) -> None:
        """Hold bytes more; ApiError 429 where there is no room."""
        if not self.is_ended:  # else it is about to end
            self._took_at = time.monotonic()
            self._of.change(self, count)

    def give(self, count: int) -> None:
        """Hold bytes less."""
        if not self.is_ended:
            self._of.change(self, -count)


def _full() -> ApiError:
    return retry_later("too many large requests are in progress; try again later", 1)
