"""What a client may do to a connection: uvicorn's HTTP/1.1 protocol, with bounds where it has none.

httptools waits for the head of a request as long as the client likes and holds as much of it as comes; an answer that
nobody reads is held for ever, and so is a connection that sends a byte now and then. Here

    a head has `head_s` and _MAX_HEAD_BYTES, and so have trailers and whatever else is not the body
    a body has `body_s`, also one that nobody waits for any more because its request was refused
    an answer that is not read is given up when _WRITE_S went by without _LEAST_READ_BYTES
    connections beyond `max_connections`, and requests pipelined beyond _MAX_PIPELINED, are not taken

and what is refused before there is a request is refused in OpenAI's shape too. A client that closes its half of the
connection has left, as for nginx: of a FIN nobody can tell whether the other half is still read.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, cast

from edgeclip.serve.errors import ApiError

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle as Cycle

    _Protocol = HttpToolsProtocol
else:
    _Protocol = object  # `bounded_protocol` puts uvicorn's there, once somebody serves

_MAX_HEAD_BYTES = 32 << 10  # as much as nginx takes
_MAX_PIPELINED = 16
_WRITE_S = 30.0
_GATHERED_BYTES = 64 << 10
_LEAST_READ_BYTES = 64 << 10
# After a refusal, so long is read and thrown away: closing at once would reset the connection under the answer.
_LINGER_S = 1.0

Refused = Callable[[int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many connections there may be at once, and the seconds that a client has for a head and for a body."""

    max_connections: int
    head_s: float
    body_s: float


def bounded_protocol(bounds: Bounds, refused: Refused) -> "type[asyncio.Protocol]":
    """The protocol class for uvicorn. `refused` is told the status and code of each refusal that is no request."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    members = {"_bounds": bounds, "_tell_refused": staticmethod(refused)}
    return cast("type[asyncio.Protocol]", type("BoundedProtocol", (_Bounded, HttpToolsProtocol), members))


class _Gathered:
    """A transport that sends a head and its body at once: each would wake the client, and a packet each is more.

    What was written is sent by `flush`, at the latest in the loop's next turn, and before anything else is done.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        parts, self._parts = self._parts, []
        if sum(map(len, parts)) <= _GATHERED_BYTES:
            parts = [b"".join(parts)] if parts else []
        for part in parts:  # large ones as they are, for joining copies
            self._transport.write(part)

    def __getattr__(self, name: str) -> Any:
        self.flush()
        return getattr(self._transport, name)


class _Refusal(Exception):  # noqa: N818 - httptools turns it into its own error
    """Leaves the parser in the middle of a head."""


class _Bounded(_Protocol):
    """One connection. Its reading is between requests, in a head or in a body; a timer runs in the latter two."""

    _bounds: Bounds
    _tell_refused: Refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gathered = _Gathered(transport, asyncio.get_running_loop())
        super().connection_made(cast("asyncio.Transport", self._gathered))
        self._place: Literal["between", "head", "body"] = "between"
        self._is_deaf = False  # whatever else comes is thrown away
        self._idle_bytes = 0  # that came since the parser last saw a head's end or some of a body
        self._running: Cycle | None = None  # `cycle` is the last that was begun, and may wait behind it
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self._bounds.max_connections:
            self._refuse(ApiError(503, "too many connections; try again later", code="too_many_connections"))
        else:
            self._enter("head")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._set_timer(None)
        self._stop_write_timer()
        self._forget(self._running)  # uvicorn tells the last request only

    def data_received(self, data: bytes) -> None:
        """Feeds the parser; what is no HTTP is 400. No line in the log: any scanner could fill it."""
        import httptools

        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        if self._place == "between":
            self._enter("head")
        self._idle_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # there is nothing to upgrade to, and the request was answered as it is
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _Refusal):
                self._give_up(_head_too_large() if self._is_head_large() else None)
            else:
                self._give_up(ApiError(400, "this is no HTTP/1.1 request", code="invalid_http"))
        else:
            if self._idle_bytes > _MAX_HEAD_BYTES:
                self._give_up(_head_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._place != "head":
            self._enter("head")

    def on_headers_complete(self) -> None:
        if self._is_head_large() or len(self.pipeline) >= _MAX_PIPELINED:
            raise _Refusal
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle
        self._enter("body")

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._enter("between")

    def on_response_complete(self) -> None:
        self._gathered.flush()
        self._running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def timeout_keep_alive_handler(self) -> None:
        """An answer that is still not read would keep a closed connection open."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _enter(self, place: Literal["between", "head", "body"]) -> None:
        self._place, self._idle_bytes = place, 0
        seconds = {"between": None, "head": self._bounds.head_s, "body": self._bounds.body_s}
        self._set_timer(seconds[place])

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._time_is_up)

    def _time_is_up(self) -> None:
        if self._is_answering() and (self._place == "head" or self.pipeline):
            self._enter(self._place)  # the client may wait for the answer before
        elif self._place == "head" and self._idle_bytes:
            message = f"the head of the request was not sent within {self._bounds.head_s:g} s"
            self._give_up(ApiError(408, message, code="request_timeout"))
        elif self._place == "body":
            message = f"the request was not sent within {self._bounds.body_s:g} s"
            self._give_up(ApiError(408, message, code="request_timeout"))
        else:
            self.transport.close()

    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _is_head_large(self) -> bool:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > _MAX_HEAD_BYTES

    def _give_up(self, error: ApiError | None) -> None:
        """Take nothing more from a client, and tell it why where no answer to an earlier request is due first."""
        if self._place == "head" and self._is_answering():
            self._is_deaf = True
            self._set_timer(None)
            self.cycle.keep_alive = False  # closes after the last answer
        elif self._place == "body" and (error is None or self.pipeline or self.cycle.response_started):
            self.transport.close()
        else:
            if self._place == "body":
                self._forget(self._running)
            self._refuse(error or _head_too_large())

    def _forget(self, cycle: "Cycle | None") -> None:
        """Tell the service that the client of a request is gone."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _refuse(self, error: ApiError) -> None:
        self._is_deaf = True
        self._tell_refused(error.status, error.code or "")
        self.transport.write(_encode(error, self.server_state.default_headers))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _watch_writing(self) -> None:
        before = self.transport.get_write_buffer_size()

        def check() -> None:
            if before - self.transport.get_write_buffer_size() < _LEAST_READ_BYTES:
                self.transport.abort()
            else:
                self._watch_writing()

        self._stop_write_timer()
        self._write_timer = self.loop.call_later(_WRITE_S, check)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _head_too_large() -> ApiError:
    return ApiError(431, f"the head of the request has more than {_MAX_HEAD_BYTES} bytes", code="head_too_large")


def _encode(error: ApiError, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The whole answer of a refusal."""
    body = json.dumps(error.body()).encode()
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode(),
        *(name + b": " + value for name, value in headers),
        b"content-type: application/json",
        f"content-length: {len(body)}".encode(),
        b"connection: close",
    ]
    return b"\r\n".join([*lines, b"", body])
