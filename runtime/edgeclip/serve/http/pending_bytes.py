"""The bytes that all requests in progress hold, bounded: many large requests at once are memory too."""

from collections.abc import Iterator
from contextlib import contextmanager

from edgeclip.serve.errors import retry_later
from edgeclip.serve.metrics import Metrics


class PendingBytes:
    """At most `most` bytes of the bodies of requests, and of images that were fetched for them."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self.most, self.held = most, 0
        metrics.pending_bytes.set_function(lambda: self.held)

    @contextmanager
    def room(self) -> Iterator["Room"]:
        """The room of one request, all of which is free again afterwards."""
        room = Room(self)
        try:
            yield room
        finally:
            self.held -= room.taken


class Room:
    """What one request holds. `PendingBytes.room` makes it."""

    __slots__ = ("_of", "taken")

    def __init__(self, of: PendingBytes) -> None:
        self._of, self.taken = of, 0

    def take(self, count: int) -> None:
        """Hold bytes more; ApiError 429 where there is no room."""
        if self._of.held + count > self._of.most:
            raise retry_later("too many large requests are in progress; try again later", 1)
        self.taken += count
        self._of.held += count

    def give(self, count: int) -> None:
        """Hold bytes less."""
        self.taken -= count
        self._of.held -= count
