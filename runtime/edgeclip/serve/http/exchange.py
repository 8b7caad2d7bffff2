"""One request and its answer, as an ASGI application receives and sends them.

The head of an answer is held until some of its body is there, because two packets cost more and wake the client
twice. A large body is sent as it is: joining it to its head would copy it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from functools import cache
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

from edgeclip.serve.http.framing import Head
from edgeclip.serve.http.refusals import date_line

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

# The place in a scope of a function that takes another one, which is called when the client goes away.
WHEN_GONE = "edgeclip.when_gone"
_JOINED_BYTES = 64 << 10
# Parts of a body that are smaller are joined while they wait: an object for every two bytes is 30 times their size.
_SMALL_PART = 1 << 10
_WITHOUT_BODY = (204, 304)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Carrier(Protocol):
    """The connection of an exchange."""

    addresses: dict[str, Any]  # of both ends, as a scope has them
    is_full: bool  # more than enough waits to be sent

    def write(self, data: bytes) -> None:
        """Send some bytes."""

    async def drained(self) -> None:
        """Wait until the connection is full no more, or lost."""

    def took(self, count: int) -> None:
        """Note that so many bytes of the body wait no more."""

    def closes_after(self, exchange: "Exchange") -> bool:
        """Whether the connection closes after this answer."""

    def finish(self) -> None:
        """Note that the answer of the first exchange is sent."""


class Exchange:
    """A request that is not yet read and answered whole. `receive` and `send` are ASGI's."""

    __slots__ = (
        "_carrier", "_has_body", "_has_length", "_is_chunked", "_is_given", "_left", "_parts", "_pending",
        "_say_gone", "_waiters", "closes", "head", "is_answered", "is_begun", "is_gone", "is_whole",
    )  # fmt: skip

    def __init__(self, head: Head, carrier: Carrier) -> None:
        self.head, self._carrier = head, carrier
        self._parts: list[bytes | bytearray] = []  # of the body, not yet received
        self._waiters: list[asyncio.Future[None]] = []
        self._pending = b""  # the head of the answer
        self._say_gone: Callable[[], None] | None = None
        self._left = 0  # bytes of the answer's body, of those that its head announced
        self._has_body, self._has_length, self._is_chunked = True, False, False
        self._is_given = False  # whether the application has received all of the body
        self.is_whole = False  # the request
        self.is_begun = self.is_answered = False  # the final answer; 100 Continue is none
        self.is_gone = False  # the client
        self.closes = head.is_last

    def scope(self) -> Scope:
        """The scope of the request."""
        head = self.head
        path = head.path.decode()
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "method": head.method,
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": head.path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.headers,
            WHEN_GONE: self._when_gone,
            **self._carrier.addresses,
        }

    # What the connection calls.

    def feed(self, data: bytes) -> None:
        """Take some of the request's body."""
        last = self._parts[-1] if self._parts else None
        if last is None or len(data) >= _SMALL_PART:
            self._parts.append(data)
        elif isinstance(last, bytearray):
            last += data
        else:
            self._parts.append(bytearray(data))
        self._wake()

    def end(self) -> None:
        """Note that the request is whole."""
        self.is_whole = True
        self._wake()

    def leave(self) -> None:
        """Note that the client has gone, or gets no answer of the application any more."""
        self.is_gone = True
        self._wake()
        if self._say_gone is not None:
            self._say_gone()

    def drop(self) -> int:
        """Forget what waits of the body, and return how many bytes that was."""
        parts, self._parts = self._parts, []
        return sum(map(len, parts))

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # What the application calls.

    def _when_gone(self, say: Callable[[], None]) -> None:
        self._say_gone = say
        if self.is_gone:
            say()

    async def receive(self) -> Message:
        """The next of the body; once it was given, http.disconnect when the client has gone or the answer is sent."""
        if self.head.wants_continue and not (self.is_whole or self.is_begun or self.is_gone or self._parts):
            self.head.wants_continue = False
            self._carrier.write(_CONTINUE)
        while True:
            if self.is_gone or self.is_answered:
                return {"type": "http.disconnect"}
            if self._parts or (self.is_whole and not self._is_given):
                break
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        parts, self._parts, self._is_given = self._parts, [], self.is_whole
        body = b"".join(parts)  # which copies nothing where there is one
        self._carrier.took(len(body))
        return {"type": "http.request", "body": body, "more_body": not self._is_given}

    async def send(self, message: Message) -> None:
        """Send the head of the answer, or some of its body; waits while the client does not read."""
        if self._carrier.is_full and not self.is_gone:
            await self._carrier.drained()
        if self.is_gone:
            return
        if message["type"] == "http.response.start":
            if self.is_begun:
                raise RuntimeError("the answer has begun already")
            self._begin(message["status"], message.get("headers", ()))
        elif not self.is_begun or self.is_answered:
            raise RuntimeError("an answer's body comes behind its head, and nothing behind its end")
        else:
            self._send_body(message.get("body", b""), is_end=not message.get("more_body", False))

    def _begin(self, status: int, headers: "list[tuple[bytes, bytes]]") -> None:
        self.is_begun = True
        parts = [_status_line(status), date_line()]
        for name, value in headers:
            if name == b"content-length":
                self._has_length, self._left = True, int(value)
            elif name == b"connection" and value.lower() == b"close":
                self.closes = True
                continue
            parts += (name, b": ", value, b"\r\n")
        if self.head.method == "HEAD" or status in _WITHOUT_BODY:
            self._has_body, self._left = False, 0
        elif not self._has_length:
            if self.head.version == "1.0":
                self.closes = True  # which ends the body
            else:
                self._is_chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
        # A client that still waits for 100 Continue may leave the body out, so what it sends next is the body or the
        # next request: nobody can tell (RFC 9110, 10.1.1).
        waits = self.head.wants_continue and not self.is_whole
        if waits or self._carrier.closes_after(self):
            self.closes = True
        parts.append(b"connection: close\r\n\r\n" if self.closes else b"\r\n")
        self._pending = b"".join(parts)

    def _send_body(self, body: bytes, *, is_end: bool) -> None:
        parts, self._pending = [self._pending], b""
        if self._has_body and body:
            if self._has_length:
                self._left -= len(body)
                parts.append(body)
            elif self._is_chunked:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            else:
                parts.append(body)
        if self._left < 0 or (is_end and self._left):
            raise RuntimeError("the body of the answer is not as long as its head says")
        if is_end and self._is_chunked:
            parts.append(b"0\r\n\r\n")
        if len(body) <= _JOINED_BYTES:
            parts = [b"".join(parts)]
        for part in parts:
            if part:
                self._carrier.write(part)
        if is_end:
            self.is_answered = True
            self._wake()
            self._carrier.finish()


@cache
def _status_line(status: int) -> bytes:
    """Also of statuses that HTTP does not know, as nginx's 499."""
    known = {one.value: one.phrase for one in HTTPStatus}
    return f"HTTP/1.1 {status} {known.get(status, '')}\r\n".encode()
