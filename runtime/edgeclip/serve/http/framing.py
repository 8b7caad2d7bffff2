"""Find where a request begins and ends. No sockets: bytes in, events out.

httptools is the only parser of a request, and what it found is what the application gets, so nothing behind can see
another request in the same bytes (request smuggling). A request has here

    a path and query only, also where the client sent an absolute address
    the bytes of its body, without the sizes of chunks, their extensions and trailers
    no header lines about the connection
    no `Upgrade`: h2c and websockets are not spoken here, and such a request is answered as if it had not asked

What is no HTTP/1.0 or HTTP/1.1, or is framed ambiguously, is ApiError 400; a head that is too large is 431.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeclip.serve.errors import ApiError

if TYPE_CHECKING:
    from httptools import HttpRequestParser

MAX_HEAD_BYTES = 32 << 10  # as much as nginx takes
# Each line of a head counts as so many bytes more, as in HTTP/2 (RFC 9113, 6.5.2): it is three objects.
_LINE_BYTES = 32
_VERSIONS = ("1.0", "1.1")
# Lines that say how the request is sent, or something about the connection. The application needs none of them.
_LEFT_OUT = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"expect",
    )
)

Place = Literal["between", "head", "body"]


@dataclass(slots=True, kw_only=True)
class Head:
    """A request's head; names of `headers` are lower case. `is_last` when its client sends no other request after it.

    `wants_continue` when its client waits for 100 Continue before it sends the body. `size` is in bytes, with
    _LINE_BYTES for each line.
    """

    method: str
    path: bytes
    query: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    is_last: bool
    wants_continue: bool
    size: int


class RequestReader:
    """Cuts what a client sends into requests, and calls `on_head`, `on_data` and `on_end`.

    `place` is where the reading stands since `since_s`: between requests, in a head or in a body. `idle_bytes` counts
    what came since then or since some of a body came; trailers and the sizes of chunks count in it. `on_data` gets
    pieces of the body.
    """

    def __init__(
        self,
        *,
        on_head: Callable[[Head], None],
        on_data: Callable[[bytes], None],
        on_end: Callable[[], None],
    ) -> None:
        import httptools

        self._on_head, self._on_data, self._on_end = on_head, on_data, on_end
        self._errors = httptools.HttpParserError, httptools.HttpParserUpgrade
        self.place: Place = "between"
        self.since_s = time.monotonic()
        self.idle_bytes = 0
        self._parser = _request_parser(self)
        self._is_refed = False  # while a parser gets the framing of a request whose head was read already
        self._clear()

    def _clear(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = self._length = self._body_left = 0
        self._is_chunked = self._is_last = self._wants_continue = False

    def feed(self, data: bytes) -> None:
        """Read some bytes; ApiError 400 or 431, after which there is nothing to be read any more."""
        wrong, _ = self._errors
        if self._body_left:
            data = self._pass_body(data)
            if not data:
                return
        if self.place == "between":
            self._enter("head")
        self.idle_bytes += len(data)
        try:
            while (behind := self._read(data)) is not None:
                data = data[behind:]
                self._go_on_without_upgrade()
        except wrong as error:
            reason = error.__context__
            if reason is None or isinstance(reason, wrong):
                raise _no_http() from None
            raise reason from None
        if self.idle_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()

    def _pass_body(self, data: bytes) -> bytes:
        """Hand on bytes that surely belong to the body, without a copy; return the rest, which the parser reads."""
        left = self._body_left
        part, rest = (data, b"") if len(data) <= left else (data[:left], data[left:])
        self._body_left -= len(part)
        self._on_data(part)
        if not self._body_left:
            self._parser = _request_parser(self)  # the old one waits for the body
            self._on_end()
            self._enter("between")
        return rest

    def _read(self, data: bytes) -> int | None:
        """Read all, or until behind the head of a request that asks for an upgrade: httptools would skip its body."""
        _, upgrades = self._errors
        try:
            self._parser.feed_data(data)
        except upgrades as upgrade:
            behind: int = upgrade.args[0]
            return behind
        return None

    def _go_on_without_upgrade(self) -> None:
        """Let a new parser find the end of this request: the old one takes all that follows for another protocol."""
        self._parser = _request_parser(self)
        self._is_refed = True
        framing = b"transfer-encoding: chunked" if self._is_chunked else b"content-length: %d" % self._length
        closing = b"connection: close\r\n" if self._is_last else b""
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b%b\r\n\r\n" % (closing, framing))
        self._is_refed = False

    def close(self) -> None:
        """Let go of the parser, which holds this reader."""
        del self._parser

    def on_message_begin(self) -> None:
        """A request begins. httptools calls this and the following methods."""
        if not self._is_refed:
            self._clear()
            self._enter("head")

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One line of the head; trailers are left out."""
        if self.place != "head":
            return
        self._head_bytes += len(name) + len(value) + _LINE_BYTES
        name = name.lower()
        if name not in _LEFT_OUT:
            self._headers.append((name, value))
            if name == b"content-length":
                self._length = int(value)  # httptools has checked it, and that there is one
        elif name == b"transfer-encoding":
            # Other codings are unknown here. HTTP/1.0 has none, so a proxy of its time would read another request.
            if value.strip().lower() != b"chunked" or self._parser.get_http_version() == "1.0":
                raise _no_http()
            self._is_chunked = True
        elif name == b"expect":
            self._wants_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._is_refed:
            return
        size = self._head_bytes + len(self._url)
        if size > MAX_HEAD_BYTES:
            raise _head_too_large()
        method, version = self._parser.get_method(), self._parser.get_http_version()
        if method == b"CONNECT" or version not in _VERSIONS:
            raise _no_http()
        self._is_last = not self._parser.should_keep_alive() or version == "1.0"
        path, query = _path_and_query(self._url)
        self._on_head(
            Head(
                method=method.decode(),
                path=path,
                query=query,
                version=version,
                headers=self._headers,
                is_last=self._is_last,
                wants_continue=self._wants_continue and version != "1.0",
                size=size,
            )
        )
        self._enter("body")
        self._body_left = self._length

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self.idle_bytes = 0
        if not self._is_chunked:
            self._body_left -= len(body)
        self._on_data(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._parser.should_upgrade():
            return  # `_go_on_without_upgrade` is next
        self._on_end()
        self._enter("between")

    def _enter(self, place: Place) -> None:
        if place != self.place:
            self.place, self.idle_bytes, self.since_s = place, 0, time.monotonic()


def _request_parser(events: RequestReader) -> "HttpRequestParser":
    import httptools

    return httptools.HttpRequestParser(events)


def _path_and_query(url: bytes) -> tuple[bytes, bytes]:
    if url.startswith(b"/") and b"#" not in url:
        path, _, query = url.partition(b"?")
        return path, query
    import httptools

    parsed = httptools.parse_url(url)
    return parsed.path or b"/", parsed.query or b""


def _no_http() -> ApiError:
    return ApiError(
        400, "this is no HTTP/1.1 request; neither TLS nor HTTP/2 is spoken at this port", code="invalid_http"
    )


def _head_too_large() -> ApiError:
    return ApiError(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes", code="head_too_large")
