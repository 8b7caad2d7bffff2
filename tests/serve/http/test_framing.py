"""Where requests begin and end, and what is in them, however the bytes come in."""

import itertools

import httptools  # noqa: F401 - the reader needs it, and imports it late
import pytest

from edgeclip.serve.errors import ApiError
from edgeclip.serve.http.framing import MAX_HEAD_BYTES, Head, RequestReader

LINE = b" HTTP/1.1\r\n"
BODY = b'{"input": "a"}'
LENGTH = b"Content-Length: 14\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nUpgrade: h2c\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"4;a=b\r\n" + BODY[:4] + b"\r\n0a\r\n" + BODY[4:] + b"\r\n0\r\nX-Trailer: x\r\n\r\n"

# What clients send; the method, path, query and headers of it; and the body.
Found = tuple[str, bytes, bytes, list[tuple[bytes, bytes]]]
HAS_LENGTH = [(b"content-length", b"14")]
POSTED: Found = ("POST", b"/", b"", HAS_LENGTH)
TAKEN: dict[str, tuple[bytes, Found, bytes]] = {
    "plain": (b"GET /a?b=c" + LINE + b"Host: x\r\n\r\n", ("GET", b"/a", b"b=c", [(b"host", b"x")]), b""),
    "body": (b"POST /" + LINE + LENGTH + b"\r\n" + BODY, POSTED, BODY),
    "h2c": (b"POST /" + LINE + H2C + LENGTH + b"\r\n" + BODY, POSTED, BODY),
    "h2c, nothing in it": (b"GET /" + LINE + H2C + b"\r\n", ("GET", b"/", b"", []), b""),
    "h2c of a path": (
        b"GET /a?b" + LINE + H2C + b"C: d\r\n" + LENGTH + b"\r\n" + BODY,
        ("GET", b"/a", b"b", [(b"c", b"d"), *HAS_LENGTH]),
        BODY,
    ),
    "websocket": (
        b"GET /" + LINE + b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
        ("GET", b"/", b"", [(b"sec-websocket-version", b"13")]),
        b"",
    ),
    "h2c in chunks": (b"POST /" + LINE + CHUNKED + H2C + b"\r\n" + CHUNKS, ("POST", b"/", b"", []), BODY),
    "chunks": (b"POST /" + LINE + CHUNKED.upper() + b"\r\n" + CHUNKS, ("POST", b"/", b"", []), BODY),
    "absolute": (b"GET http://h:1/a?b#c" + LINE + b"\r\n", ("GET", b"/a", b"b", []), b""),
    "absolute, no path": (b"GET http://h" + LINE + b"\r\n", ("GET", b"/", b"", []), b""),
    "a fragment": (b"GET /a?b#c" + LINE + b"\r\n", ("GET", b"/a", b"b", []), b""),
    "no path": (b"OPTIONS *" + LINE + b"\r\n", ("OPTIONS", b"*", b"", []), b""),
    "empty lines before": (b"\r\n\r\nGET /" + LINE + b"\r\n", ("GET", b"/", b"", []), b""),
    "no value": (
        b"GET /" + LINE + b"A:\r\nB: \r\nC:  c\r\n\r\n",
        ("GET", b"/", b"", [(b"a", b""), (b"b", b""), (b"c", b"c")]),
        b"",
    ),
    "Expect": (b"POST /" + LINE + LENGTH + b"Expect: 100-continue\r\n\r\n" + BODY, POSTED, BODY),
}
LAST: dict[str, tuple[bytes, Found, bytes]] = {
    "close": (b"GET /" + LINE + b"Connection: Close\r\n\r\n", ("GET", b"/", b"", []), b""),
    "h2c and close": (
        b"POST /" + LINE + H2C.replace(b"Upgrade, ", b"close, Upgrade, ") + LENGTH + b"\r\n" + BODY,
        POSTED,
        BODY,
    ),
    "1.0": (
        b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n" + LENGTH + b"\r\n" + BODY,
        POSTED,
        BODY,
    ),
}
REFUSED = {
    "both lengths": b"POST /" + LINE + LENGTH + CHUNKED + b"\r\n",
    "both lengths, the other first": b"POST /" + LINE + CHUNKED + LENGTH + b"\r\n",
    "lengths that differ": b"POST /" + LINE + LENGTH + b"Content-Length: 15\r\n\r\n",
    "lengths that do not": b"POST /" + LINE + LENGTH + LENGTH + b"\r\n",
    "a list of lengths": b"POST /" + LINE + b"Content-Length: 14, 14\r\n\r\n",
    "a signed length": b"POST /" + LINE + b"Content-Length: +14\r\n\r\n",
    "a hexadecimal length": b"POST /" + LINE + b"Content-Length: 0xe\r\n\r\n",
    "an endless length": b"POST /" + LINE + b"Content-Length: 99999999999999999999\r\n\r\n",
    "an empty length": b"POST /" + LINE + b"Content-Length:\r\n\r\n",
    "both lengths in an upgrade": b"POST /" + LINE + H2C + LENGTH + CHUNKED + b"\r\n",
    "a coding twice": b"POST /" + LINE + CHUNKED + CHUNKED + b"\r\n",
    "another coding": b"POST /" + LINE + b"Transfer-Encoding: gzip\r\n\r\n",
    "another coding, too": b"POST /" + LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "an unknown coding": b"POST /" + LINE + b"Transfer-Encoding: xchunked\r\n\r\n",
    "a coding in HTTP/1.0": b"POST / HTTP/1.0\r\n" + CHUNKED + b"\r\n",
    "white space before the colon": b"POST /" + LINE + b"Transfer-Encoding : chunked\r\n\r\n",
    "a folded line": b"POST /" + LINE + b"Transfer-Encoding:\r\n chunked\r\n\r\n",
    "a folded line, too": b"GET /" + LINE + b"A: b\r\n\tc\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "one bare line feed": b"GET / HTTP/1.1\r\nA: b\nContent-Length: 1\r\n\r\n",
    "a bare carriage return": b"GET / HTTP/1.1\r\nA: b\rContent-Length: 1\r\n\r\n",
    "NUL in a value": b"GET /" + LINE + b"A: b\0\r\n\r\n",
    "a line without a name": b"GET /" + LINE + b": b\r\n\r\n",
    "a chunk's size": b"POST /" + LINE + CHUNKED + b"\r\n-1\r\n",
    "a chunk's size, too": b"POST /" + LINE + CHUNKED + b"\r\n0x1\r\n",
    "a chunk that is longer": b"POST /" + LINE + CHUNKED + b"\r\n1\r\nab\r\n",
    "a chunk's bare line feed": b"POST /" + LINE + CHUNKED + b"\r\n1\na\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "a length behind the chunks": b"POST /" + LINE + CHUNKED + b"\r\n0\r\nContent-Length: 3\r\n\r\n",
    "no URL": b"GET http://" + LINE + b"\r\n",
    "CONNECT": b"CONNECT a:1" + LINE + b"\r\n",
    "CONNECT a path": b"CONNECT /a" + LINE + b"\r\n",
}  # fmt: skip


class Requests:
    """What a reader has found, and whether it would have taken more."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.pieces: list[bytes] = []
        self.bodies: list[bytes] = []
        self.reader = RequestReader(
            on_head=self.heads.append,
            on_data=self.pieces.append,
            on_end=self.end,
        )

    def feed(self, sent: bytes, step: int) -> None:
        for start in range(0, len(sent), step):
            self.reader.feed(sent[start : start + step])

    def end(self) -> None:
        self.bodies.append(b"".join(self.pieces))
        self.pieces.clear()

    @property
    def found(self) -> list[Found]:
        return [(head.method, head.path, head.query, head.headers) for head in self.heads]


@pytest.mark.parametrize("pieces", [1, 3, 10_000])
@pytest.mark.parametrize("name", [*TAKEN, *LAST])
def test_a_request_is_read_in_whatever_pieces_it_comes(name: str, pieces: int) -> None:
    """Also behind another request: its head, its body, and nothing else."""
    sent, head, body = (TAKEN | LAST)[name]
    requests = Requests()
    whole = TAKEN["body"][0] + sent
    requests.feed(whole, len(whole) // pieces or 1)
    assert requests.found == [POSTED, head] and requests.bodies == [BODY, body]
    assert requests.reader.place == "between"
    last = requests.heads[1]
    assert (last.is_last, last.wants_continue) == (name in LAST, name == "Expect")
    assert last.version == ("1.0" if name == "1.0" else "1.1") and 0 < last.size < len(sent) + 32 * sent.count(
        b"\r\n"
    )


@pytest.mark.parametrize(("first", "second"), list(itertools.product(TAKEN, TAKEN)))
def test_two_requests_are_two(first: str, second: str) -> None:
    """Whatever the first one asked for: a request to upgrade does not hide the next one."""
    for step in (1, 1 << 20):
        requests = Requests()
        requests.feed(TAKEN[first][0] + TAKEN[second][0], step)
        assert requests.found == [TAKEN[first][1], TAKEN[second][1]]
        assert requests.bodies == [TAKEN[first][2], TAKEN[second][2]]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_is_400(name: str) -> None:
    """And no part of it is a whole request, in one piece or byte by byte."""
    for step in (1, 1 << 20):
        found = Requests()
        with pytest.raises(ApiError) as caught:
            found.feed(REFUSED[name], step)
        assert (caught.value.status, caught.value.code) == (400, "invalid_http")
        assert found.bodies == []


def test_a_body_is_handed_on_without_a_copy() -> None:
    """60 MB of base64 are read once; only what came in one piece with the head is copied."""
    found = Requests()
    first, last = b"x" * 100_000, b"y" * 100_000
    taken: list[bytes] = []
    found.reader = RequestReader(on_head=found.heads.append, on_data=taken.append, on_end=found.end)
    found.reader.feed(b"POST /" + LINE + b"Content-Length: 200003\r\n\r\nabc")
    found.reader.feed(first)
    found.reader.feed(last)
    assert taken[0] == b"abc" and taken[1] is first and taken[2] is last
    assert len(found.bodies) == 1 and found.reader.place == "between"


def test_a_head_is_bounded_however_it_comes() -> None:
    for line in (b"GET /" + b"a" * MAX_HEAD_BYTES, b"GET /" + LINE + b"A: " + b"a" * MAX_HEAD_BYTES):
        for step in (1000, 1 << 20):
            found = Requests()
            with pytest.raises(ApiError) as caught:
                found.feed(line + b"\r\n\r\n", step)
            assert caught.value.status == 431 and not found.heads


def test_a_head_of_many_lines_is_bounded_by_what_they_are_in_memory() -> None:
    found = Requests()
    with pytest.raises(ApiError) as caught:
        found.reader.feed(b"GET /" + LINE + b"A:\r\n" * 2000 + b"\r\n")
    assert caught.value.status == 431 and not found.heads
    Requests().reader.feed(b"GET /" + LINE + b"A: b\r\n" * 500 + b"\r\n")
