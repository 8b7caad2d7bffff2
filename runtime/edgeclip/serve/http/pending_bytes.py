"""The bytes that all requests in progress hold, bounded: many large requests at once are memory too.

The first FREE_BYTES of each request count in no bound but that of connections, so a short text is taken whatever
large requests are in progress. Where a larger one finds no room, it does not wait for those whose bytes are still
coming, for they may come as slowly as their clients like: one of those that have stood still is given up, else the
largest of all that are incomplete, and its client gets the 429.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgeclip.serve.errors import ApiError, retry_later
from edgeclip.serve.metrics import Metrics

FREE_BYTES = 64 << 10
# Seconds without a byte after which an incomplete request is given up before larger ones.
_STILL_S = 1.0


class PendingBytes:
    """At most `most` bytes of the bodies of requests, and of images that were fetched for them.

    The first FREE_BYTES of each request are not counted in it. Used from one event loop.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most, self._held, self._counted = most, 0, 0
        self._rooms: set[Room] = set()
        metrics.pending_bytes.set_function(lambda: self._held)

    @contextmanager
    def room(self) -> Iterator["Room"]:
        """The room of one request of the calling task, all of which is free again afterwards.

        ApiError 429 where the request was given up for another.
        """
        room = Room(self, asyncio.current_task())
        self._rooms.add(room)
        try:
            yield room
        except asyncio.CancelledError:
            if room.is_given_up and not room.task.uncancel():  # else the service ends, too
                raise _full() from None
            raise
        finally:
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
            victim.give_up()
        room.taken += count
        self._held += count
        self._counted += more


class Room:
    """The bytes that one request holds. `PendingBytes.room` makes it."""

    __slots__ = ("_incomplete", "_of", "_took_at", "is_given_up", "taken", "task")

    def __init__(self, of: PendingBytes, task: "asyncio.Task[object] | None") -> None:
        assert task is not None
        self._of, self.task, self.taken = of, task, 0
        self._incomplete, self._took_at, self.is_given_up = 0, 0.0, False

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
        self._incomplete += 1
        self._took_at = time.monotonic()
        try:
            yield
        finally:
            self._incomplete -= 1

    def take(self, count: int) -> None:
        """Hold bytes more; ApiError 429 where there is no room."""
        if not self.is_given_up:  # else it is about to end
            self._took_at = time.monotonic()
            self._of.change(self, count)

    def give(self, count: int) -> None:
        """Hold bytes less."""
        if not self.is_given_up:
            self._of.change(self, -count)

    def give_up(self) -> None:
        """End the request."""
        self.is_given_up = True
        self.task.cancel()


def _full() -> ApiError:
    return retry_later("too many large requests are in progress; try again later", 1)
