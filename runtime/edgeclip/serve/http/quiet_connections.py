"""Choose the connection that is closed for a new one when there are as many as may be: one whose client is silent.

A connection without a request costs its client nothing, so a handful of clients could hold all there are. First goes
the one that has rested longest between requests; then one whose client began a request and has sent nothing of it for
STILL_S. A connection whose answer is due or not yet sent never goes.
"""

from typing import Generic, Protocol, TypeVar

STILL_S = 1.0


class Silenceable(Protocol):
    """A connection, which may have stopped reading by itself: then its client's silence says nothing.

    One that has something to send is not silent: closing it would take until the client has read that.
    """

    @property
    def is_silent(self) -> bool:
        """Whether it is the client's turn."""


_Connection = TypeVar("_Connection", bound=Silenceable)


class QuietConnections(Generic[_Connection]):
    """Connections that wait for their clients, longest first."""

    def __init__(self) -> None:
        self._resting: dict[_Connection, None] = {}
        self._sending: dict[_Connection, float] = {}

    def rests(self, connection: _Connection) -> None:
        """Note that a connection has no request from now on."""
        self.forget(connection)
        self._resting[connection] = None

    def sends(self, connection: _Connection, now_s: float) -> None:
        """Note that a client has sent some of a request, and not yet all."""
        self.forget(connection)
        self._sending[connection] = now_s

    def forget(self, connection: _Connection) -> None:
        """Note that nothing is expected of the client, or that the connection is closed."""
        self._resting.pop(connection, None)
        self._sending.pop(connection, None)

    def longest(self, now_s: float) -> _Connection | None:
        """The connection that is to be closed for another; None where there is none."""
        for connection in self._resting:
            if connection.is_silent:
                return connection
        for connection, since_s in self._sending.items():
            if now_s - since_s <= STILL_S:
                return None
            if connection.is_silent:
                return connection
        return None
