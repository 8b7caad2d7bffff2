"""Find where a request begins and ends, and where its answer does. No sockets: bytes in, events out.

A request is read by httptools and written anew, in one plain form, for the server behind: what it gets is framed by
what was understood here, so both cannot disagree about where a request ends (request smuggling). The plain form has

    a path and query only, also where the client sent an absolute address
    one `transfer-encoding: chunked` or one `content-length`, and chunks without extensions and trailers
    no `Upgrade`: h2c and websockets are not spoken here, and such a request is answered as if it had not asked

What is no HTTP/1.0 or HTTP/1.1, or is framed ambiguously, is ApiError 400; a head that is too large is 431.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeclip.serve.errors import ApiError

if TYPE_CHECKING:
    from httptools import HttpRequestParser, HttpResponseParser

MAX_HEAD_BYTES = 32 << 10  # as much as nginx takes
_VERSIONS = ("1.0", "1.1")
# Lines about this connection, not about the request; what they mean is written anew where it is needed.
_OF_THE_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings")
)

Place = Literal["between", "head", "body"]


@dataclass(slots=True, kw_only=True)
class Head:
    """A request's head in its plain form; `is_last` when its client sends no other request after it."""

    method: bytes
    data: bytes
    is_last: bool


class RequestReader:
    """Cuts what a client sends into requests, and calls `on_place`, `on_head`, `on_data` and `on_end`.

    `place` is where the reading stands: between requests, in a head or in a body. `idle_bytes` counts what came since
    the place changed or some of a body came; trailers and the sizes of chunks count in it. `on_data` gets pieces of
    the body, framed like the head says.
    """

    def __init__(
        self,
        *,
        on_place: Callable[[Place], None],
        on_head: Callable[[Head], None],
        on_data: Callable[[bytes], None],
        on_end: Callable[[], None],
    ) -> None:
        self._on_place, self._on_head, self._on_data, self._on_end = on_place, on_head, on_data, on_end
        self.place: Place = "between"
        self.idle_bytes = 0
        self._parser = _request_parser(self)
        self._clear()

    def feed(self, data: bytes) -> None:
        """Read some bytes; ApiError 400 or 431, after which there is nothing to be read any more."""
        import httptools

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
                head = self._upgrade_head
                self._parser = _request_parser(self)
                self._parser.feed_data(head)
        except httptools.HttpParserError as error:
            reason = error.__context__
            if reason is None or isinstance(reason, httptools.HttpParserError):
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
        import httptools

        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            behind: int = upgrade.args[0]
            return behind
        return None

    def close(self) -> None:
        """Let go of the parser, which holds this reader."""
        del self._parser

    def on_message_begin(self) -> None:
        """A request begins. httptools calls this and the following methods."""
        self._clear()
        self._enter("head")

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One line of the head; trailers are left out."""
        if self.place != "head":
            return
        self._head_bytes += len(name) + len(value)
        lower = name.lower()
        if lower == b"transfer-encoding":
            self._coding = value.strip().lower()
        elif lower == b"content-length":
            self._length = int(value)  # httptools has checked it, and that there is one
            self._lines += (name, b": ", value, b"\r\n")
        elif lower == b"expect":
            self._expect = value
        elif lower not in _OF_THE_CONNECTION:
            self._lines += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._head_bytes + len(self._url) > MAX_HEAD_BYTES:
            raise _head_too_large()
        method, version = self._parser.get_method(), self._parser.get_http_version()
        if method == b"CONNECT" or version not in _VERSIONS:
            raise _no_http()
        is_last = not self._parser.should_keep_alive() or version == "1.0"
        head = self._plain_head(method, version, is_last)
        if self._parser.should_upgrade():
            self._upgrade_head = head
            return
        self._on_head(Head(method=method, data=head, is_last=is_last))
        self._enter("body")
        self._body_left = self._length

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self.idle_bytes = 0
        if self._coding:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        else:
            self._body_left -= len(body)
        self._on_data(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._upgrade_head:
            return
        if self._coding:
            self._on_data(b"0\r\n\r\n")
        self._on_end()
        self._enter("between")

    def _clear(self) -> None:
        self._url, self._coding, self._expect = b"", b"", b""
        self._length = self._body_left = 0  # bytes
        self._lines: list[bytes] = []
        self._head_bytes: int = 0
        self._upgrade_head = b""

    def _enter(self, place: Place) -> None:
        if place != self.place:
            self.place, self.idle_bytes = place, 0
            self._on_place(place)

    def _plain_head(self, method: bytes, version: str, is_last: bool) -> bytes:
        parts = [method, b" ", _plain_target(self._url), b" HTTP/", version.encode(), b"\r\n", *self._lines]
        if self._coding:
            # Other codings are unknown here. HTTP/1.0 has none, so a proxy of its time would read another request.
            if self._coding != b"chunked" or version == "1.0":
                raise _no_http()
            parts.append(b"transfer-encoding: chunked\r\n")
        if self._expect and version != "1.0":
            parts += (b"expect: ", self._expect, b"\r\n")
        if is_last:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)


class AnswerReader:
    """Follows what is sent to a client, to know where an answer begins and ends."""

    def __init__(self) -> None:
        self._parser = _response_parser(self)
        self._is_final = self._is_complete = False

    @property
    def is_begun(self) -> bool:
        """Whether some of the final answer (not 100 Continue) was sent, and not all of it."""
        return self._is_final

    def completes(self, data: bytes, method: bytes) -> bool:
        """Whether `data`, which is sent next in the answer to a request of this method, ends the answer."""
        self._parser.feed_data(data)
        if self._is_final and method == b"HEAD" and not self._is_complete:
            self._parser = _response_parser(self)  # which would wait for the body that is described
            self._is_complete = True
        if not self._is_complete:
            return False
        self._is_final = self._is_complete = False
        return True

    def close(self) -> None:
        """Let go of the parser, which holds this reader."""
        del self._parser

    def on_headers_complete(self) -> None:
        """The head is whole. httptools calls this and the following method."""
        self._is_final = self._parser.get_status_code() >= 200

    def on_message_complete(self) -> None:
        """An answer is whole: an interim one or the final one."""
        self._is_complete = self._is_final


def _request_parser(events: RequestReader) -> "HttpRequestParser":
    import httptools

    return httptools.HttpRequestParser(events)


def _response_parser(events: AnswerReader) -> "HttpResponseParser":
    import httptools

    return httptools.HttpResponseParser(events)


def _plain_target(url: bytes) -> bytes:
    """The path and query of a request's target."""
    if url.startswith(b"/") and b"#" not in url:
        return url
    import httptools

    parsed = httptools.parse_url(url)
    path = parsed.path or b"/"
    return path if parsed.query is None else path + b"?" + parsed.query


def _no_http() -> ApiError:
    return ApiError(
        400, "this is no HTTP/1.1 request; neither TLS nor HTTP/2 is spoken at this port", code="invalid_http"
    )


def _head_too_large() -> ApiError:
    return ApiError(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes", code="head_too_large")
