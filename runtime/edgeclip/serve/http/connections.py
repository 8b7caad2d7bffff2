"""A protocol between the socket and the HTTP server that bounds what a client may do to a connection.

An HTTP server waits for the head of a request as long as the client likes; an answer that nobody reads is held for
ever, and so is a connection that sends a byte now and then. Here

    a head has `head_s` and `framing.MAX_HEAD_BYTES`, and so have trailers and whatever else is not the body
    a body has `body_s`, also one that nobody waits for any more because its request was refused
    a connection without a request is closed after `idle_s`
    an answer that is not read is given up (`edgeclip.serve.http.unread_answers`)
    a new connection beyond `max_connections` takes a silent one's place (`edgeclip.serve.http.quiet_connections`)
    connections beyond it where none is silent, and requests pipelined beyond _MAX_PIPELINED, are not taken

Refusals before there is a request have OpenAI's shape too. A client that closes its half of the connection counts as
gone, as for nginx: a FIN does not say whether the client still reads.

The server behind is any asyncio protocol, and gets one request after the other, each in the plain form that
`edgeclip.serve.http.framing` gives it. Only asyncio's Protocol and Transport are used of it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgeclip.serve.errors import ApiError
from edgeclip.serve.http.framing import AnswerReader, Head, Place, RequestReader
from edgeclip.serve.http.quiet_connections import QuietConnections
from edgeclip.serve.http.refusals import encode, too_many_connections, too_slow
from edgeclip.serve.http.unread_answers import UnreadAnswer
from edgeclip.serve.http.write_gathering import Gathered

_MAX_PIPELINED = 16
# The most bytes of requests that wait for the answer before them; beyond it nothing is read.
_MAX_WAITING_BYTES = 256 << 10
# Seconds for which bytes are read and thrown away after a refusal: closing at once would reset the connection
# under the answer.
_LINGER_S = 1.0

Refused = Callable[[int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many connections there may be at once, and the seconds that a client has.

    `max_refused` connections more get an answer that says so; others are closed without one. Pages of `allow_origin`
    may read refusals.
    """

    max_connections: int
    max_refused: int
    head_s: float
    body_s: float
    idle_s: float
    allow_origin: str | None = None


def bounded_protocol(
    inner: Callable[..., asyncio.Protocol], bounds: Bounds, refused: Refused
) -> type[asyncio.Protocol]:
    """A protocol class whose instances stand before one of `inner` each, made with the same arguments.

    `refused` is called with the status and code of each refusal that is no request.
    """
    place = _Listener(inner=inner, bounds=bounds, refused=refused)

    class BoundedProtocol(_Connection):
        listener = place

    return BoundedProtocol


@dataclass(slots=True, kw_only=True)
class _Listener:
    """The state that all connections share."""

    inner: Callable[..., asyncio.Protocol]
    bounds: Bounds
    refused: Refused
    open: int = 0
    quiet: "QuietConnections[_Connection]" = field(default_factory=QuietConnections)


@dataclass(slots=True)
class _Request:
    """A request that is not yet read and answered whole; `parts` are held back while an earlier one is answered."""

    method: bytes
    is_last: bool
    is_started: bool
    is_whole: bool = False
    is_answered: bool = False
    parts: list[bytes] = field(default_factory=list)


class _InnerTransport:
    """Stands for the transport of the inner protocol."""

    def __init__(self, connection: "_Connection", transport: asyncio.Transport) -> None:
        self._connection, self._transport = connection, transport
        self.write = connection.answer
        self.get_extra_info = transport.get_extra_info

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def pause_reading(self) -> None:
        self._connection.let_inner_read(False)

    def resume_reading(self) -> None:
        self._connection.let_inner_read(True)

    def is_closing(self) -> bool:
        return self._connection.is_closed_for_inner or self._transport.is_closing()

    def close(self) -> None:
        self._connection.close_for_inner()

    abort = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Connection(asyncio.Protocol):
    """One connection. A timer runs in a head, in a body and while there is no request."""

    listener: _Listener

    def __init__(self, **given: Any) -> None:
        self._inner = self.listener.inner(**given)
        self._bounds = self.listener.bounds
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(
            on_place=self._set_timer_for, on_head=self._take_head, on_data=self._take_data, on_end=self._take_end
        )
        self._answers = AnswerReader()
        self._requests: deque[_Request] = deque()
        self._waiting_bytes = 0
        self._is_deaf = False  # whatever else comes is thrown away
        self._closes_at_last = False  # after the answers that are due
        self._is_inner_cut = False  # it knows that the client has left
        self.is_closed_for_inner = False  # what it writes is thrown away
        self._may_inner_read = self.is_reading = True
        self._is_counted = True  # among the open ones
        self._timer: asyncio.TimerHandle | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport, self._out = transport, Gathered(transport, self._loop)
        self._unread = UnreadAnswer(transport, self._loop)
        self.listener.open += 1
        self._inner.connection_made(_InnerTransport(self, transport))  # type: ignore[arg-type]
        beyond = self.listener.open - self._bounds.max_connections
        if beyond > 0 and (silent := self.listener.quiet.longest(self._loop.time())) is not None:
            silent.give_way()
            beyond -= 1
        if beyond > self._bounds.max_refused:
            self._is_deaf = True
            transport.abort()
        elif beyond > 0:
            self._refuse(too_many_connections())
        else:
            self._set_timer(self._bounds.head_s)
            self._note_silence()

    def connection_lost(self, exc: Exception | None) -> None:
        self._count_out()
        self.listener.quiet.forget(self)
        self._is_deaf = True
        self._requests.clear()
        self._set_timer(None)
        self._unread.stop()
        if not self._is_inner_cut:
            self._cut_inner()
        # Else a connection would live until the next collection of garbage, and with it its last request.
        self._reader.close()
        self._answers.close()
        del self._inner, self._reader, self._answers

    def data_received(self, data: bytes) -> None:
        """Pass bytes on. Bytes that are no HTTP make no line in the log, which any scanner could fill."""
        if self._is_deaf:
            return
        try:
            self._reader.feed(data)
        except ApiError as error:
            if not self._is_deaf:
                self._give_up(error)
        else:
            self._note_silence()

    def pause_writing(self) -> None:
        self._inner.pause_writing()
        self._unread.watch()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
        if not self._transport.is_closing():
            self._unread.stop()

    # What the reader of requests calls.

    def _take_head(self, head: Head) -> None:
        if len(self._requests) > _MAX_PIPELINED:
            raise ApiError(400, f"more than {_MAX_PIPELINED} pipelined requests", code="too_many_requests")
        self._requests.append(_Request(head.method, head.is_last, is_started=not self._requests))
        self._take_data(head.data)

    def _take_data(self, data: bytes) -> None:
        request = self._requests[-1]
        if not request.is_started:
            request.parts.append(data)
            self._waiting_bytes += len(data)
            self._choose_reading()
        elif not self.is_closed_for_inner:
            self._inner.data_received(data)

    def _take_end(self) -> None:
        request = self._requests[-1]
        request.is_whole = True
        if request.is_last:
            self._become_deaf()
        self._finish_first()

    # What the inner protocol calls, through its transport.

    def answer(self, data: bytes) -> None:
        """Send some of the answer to the first request."""
        if self.is_closed_for_inner:
            return
        self._out.write(data)
        if self._requests and self._answers.completes(data, self._requests[0].method):
            self._out.flush()
            self._requests[0].is_answered = True
            self._finish_first()

    def let_inner_read(self, may_read: bool) -> None:
        """Read no more from the socket than the inner protocol can hold."""
        self._may_inner_read = may_read
        self._choose_reading()

    def close_for_inner(self) -> None:
        """Close as soon as the answer is sent; a client that still sends its request must be able to read it."""
        if self.is_closed_for_inner:
            return
        self.is_closed_for_inner = True
        if self._requests and self._requests[0].is_answered and not self._requests[0].is_whole:
            self._linger()
        else:
            self._close()

    # One request after the other.

    def _finish_first(self) -> None:
        """Go on with the next request when the first is read and answered."""
        first = self._requests[0]
        if not (first.is_whole and first.is_answered):
            return
        self._requests.popleft()
        if self._requests:
            self._loop.call_soon(self._start_next)  # the inner protocol is still about to end the answer
        elif self._closes_at_last or first.is_last:
            self._close()
        elif self._reader.place == "between" and not self._is_deaf:
            self._set_timer(self._bounds.idle_s)
            self._note_silence()

    def _start_next(self) -> None:
        if not self._requests or self._transport.is_closing():
            return
        request = self._requests[0]
        parts, request.parts, request.is_started = request.parts, [], True
        self._waiting_bytes -= sum(map(len, parts))
        if not request.is_whole:
            self._set_timer(self._bounds.body_s)  # it may have waited unread
        self._inner.data_received(b"".join(parts))
        self._choose_reading()
        self._note_silence()

    def _choose_reading(self) -> None:
        is_reading = self._is_deaf or (self._may_inner_read and self._waiting_bytes <= _MAX_WAITING_BYTES)
        if is_reading is self.is_reading or self._transport.is_closing():
            return
        self.is_reading = is_reading
        if is_reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    # Time.

    def _set_timer_for(self, place: Place) -> None:
        if self._is_deaf:
            return
        if place == "between":
            self._set_timer(None if self._requests else self._bounds.idle_s)
        else:
            self._set_timer(self._bounds.head_s if place == "head" else self._bounds.body_s)

    def _set_timer(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, then or self._time_is_up)

    def _time_is_up(self) -> None:
        place, reader = self._reader.place, self._reader
        if len(self._requests) > (place == "body"):
            self._set_timer_for(place)  # the client may wait for the answer before
        elif place == "body":
            self._give_up(too_slow("request", self._bounds.body_s))
        elif place == "head" and reader.idle_bytes:
            self._give_up(too_slow("head of the request", self._bounds.head_s))
        else:
            self._close()

    # Giving way.

    def _note_silence(self) -> None:
        """Note whether the client has something to send now."""
        quiet, place = self.listener.quiet, self._reader.place
        if self._is_deaf or len(self._requests) > (place == "body"):
            quiet.forget(self)
        elif place == "between":
            quiet.rests(self)
        else:
            quiet.sends(self, self._loop.time())

    def give_way(self) -> None:
        """Close to make room for another connection; a client that is sending a request gets an answer saying why."""
        self._count_out()
        if self._reader.place != "between" and not (self._requests and self._requests[0].is_answered):
            is_begun = self._answers.is_begun
            self._requests.clear()
            self._cut_inner()
            if not is_begun:
                error = too_many_connections()
                self.listener.refused(error.status, error.code or "")
                self._out.write(encode(error, self._bounds.allow_origin))
        self._close()

    def _count_out(self) -> None:
        self.listener.open -= self._is_counted
        self._is_counted = False

    # The end.

    def _give_up(self, error: ApiError) -> None:
        """Take nothing more from a client; say why, unless an answer to an earlier request is due first."""
        is_in_body = self._reader.place == "body" and bool(self._requests)
        if is_in_body and len(self._requests) > 1:
            self._requests.pop()  # the earlier ones are answered
            is_in_body = False
        if not is_in_body and self._requests:
            self._become_deaf()
            self._closes_at_last = True
        elif is_in_body and (self._requests[0].is_answered or self._answers.is_begun):
            self._close()
        else:
            self._refuse(error)

    def _become_deaf(self) -> None:
        self._is_deaf = True
        self.listener.quiet.forget(self)
        self._set_timer(None)
        self._choose_reading()

    def _refuse(self, error: ApiError) -> None:
        if self._requests:
            self._requests.clear()
            self._cut_inner()
        self.listener.refused(error.status, error.code or "")
        self._out.write(encode(error, self._bounds.allow_origin))
        self._linger()

    def _linger(self) -> None:
        """Send the rest of the answer, and read for a while before closing."""
        self._become_deaf()
        self._out.flush()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._set_timer(_LINGER_S, self._transport.abort)

    def _close(self) -> None:
        self._become_deaf()
        self._out.flush()
        self._transport.close()
        if self._transport.get_write_buffer_size() and not self._unread.is_watched:
            self._unread.watch()

    def _cut_inner(self) -> None:
        self._is_inner_cut = self.is_closed_for_inner = True
        # None also where it was reset: else uvicorn's timer for idle connections goes on, and holds all of this.
        self._inner.connection_lost(None)
