"""Where requests begin and end, and where answers do, however the bytes come in."""

import itertools

import httptools
import pytest

from edgeclip.serve.errors import ApiError
from edgeclip.serve.http.framing import MAX_HEAD_BYTES, AnswerReader, Head, RequestReader

LINE = b" HTTP/1.1\r\n"
BODY = b'{"input": "a"}'
LENGTH = b"Content-Length: 14\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nUpgrade: h2c\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"4;a=b\r\n" + BODY[:4] + b"\r\n0a\r\n" + BODY[4:] + b"\r\n0\r\nX-Trailer: x\r\n\r\n"

# What clients send, and the head and the body that the server behind gets of it.
TAKEN: dict[str, tuple[bytes, bytes, bytes]] = {
    "plain": (b"GET /a?b=c" + LINE + b"Host: x\r\n\r\n", b"GET /a?b=c" + LINE + b"Host: x\r\n\r\n", b""),
    "body": (b"POST /" + LINE + LENGTH + b"\r\n" + BODY, b"POST /" + LINE + LENGTH + b"\r\n", BODY),
    "h2c": (b"POST /" + LINE + H2C + LENGTH + b"\r\n" + BODY, b"POST /" + LINE + LENGTH + b"\r\n", BODY),
    "h2c, nothing in it": (b"GET /" + LINE + H2C + b"\r\n", b"GET /" + LINE + b"\r\n", b""),
    "websocket": (
        b"GET /" + LINE + b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"GET /" + LINE + b"Sec-WebSocket-Version: 13\r\n\r\n",
        b"",
    ),
    "h2c in chunks": (
        b"POST /" + LINE + CHUNKED + H2C + b"\r\n" + CHUNKS,
        b"POST /" + LINE + b"transfer-encoding: chunked\r\n\r\n",
        BODY,
    ),
    "chunks": (
        b"POST /" + LINE + CHUNKED.upper() + b"\r\n" + CHUNKS,
        b"POST /" + LINE + b"transfer-encoding: chunked\r\n\r\n",
        BODY,
    ),
    "absolute": (b"GET http://h:1/a?b#c" + LINE + b"\r\n", b"GET /a?b" + LINE + b"\r\n", b""),
    "absolute, no path": (b"GET http://h" + LINE + b"\r\n", b"GET /" + LINE + b"\r\n", b""),
    "no path": (b"OPTIONS *" + LINE + b"\r\n", b"OPTIONS *" + LINE + b"\r\n", b""),
    "empty lines before": (b"\r\n\r\nGET /" + LINE + b"\r\n", b"GET /" + LINE + b"\r\n", b""),
    "no value": (
        b"GET /" + LINE + b"A:\r\nB: \r\nC:  c\r\n\r\n",
        b"GET /" + LINE + b"A: \r\nB: \r\nC: c\r\n\r\n",
        b"",
    ),
    "Expect": (
        b"POST /" + LINE + LENGTH + b"Expect: 100-continue\r\n\r\n" + BODY,
        b"POST /" + LINE + LENGTH + b"expect: 100-continue\r\n\r\n",
        BODY,
    ),
}
LAST: dict[str, tuple[bytes, bytes, bytes]] = {
    "close": (b"GET /" + LINE + b"Connection: Close\r\n\r\n", b"GET /" + LINE + b"connection: close\r\n\r\n", b""),
    "h2c and close": (
        b"POST /" + LINE + H2C.replace(b"Upgrade, ", b"close, Upgrade, ") + LENGTH + b"\r\n" + BODY,
        b"POST /" + LINE + LENGTH + b"connection: close\r\n\r\n",
        BODY,
    ),
    "1.0": (
        b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n" + LENGTH + b"\r\n" + BODY,
        b"POST / HTTP/1.0\r\n" + LENGTH + b"connection: close\r\n\r\n",
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
        self.data: list[bytes] = []
        self.whole = 0
        self.reader = RequestReader(
            on_place=lambda place: None,
            on_head=self.begin,
            on_data=lambda data: self.data.append(data),
            on_end=self.end,
        )

    def feed(self, sent: bytes, step: int) -> None:
        for start in range(0, len(sent), step):
            self.reader.feed(sent[start : start + step])

    def begin(self, head: Head) -> None:
        self.heads.append(head)
        self.data.append(head.data)

    def end(self) -> None:
        self.whole += 1


class Behind:
    """What the server behind makes of the plain form: httptools at its strictest."""

    def __init__(self, data: bytes) -> None:
        self.bodies: list[bytes] = []
        self.whole = 0
        httptools.HttpRequestParser(self).feed_data(data)

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.whole += 1


@pytest.mark.parametrize("pieces", [1, 3, 10_000])
@pytest.mark.parametrize("name", [*TAKEN, *LAST])
def test_a_request_has_one_plain_form(name: str, pieces: int) -> None:
    """Also behind another request, and in whatever pieces it comes: its head, its body, and nothing else."""
    sent, head, body = (TAKEN | LAST)[name]
    found = Requests()
    whole = TAKEN["body"][0] + sent
    found.feed(whole, len(whole) // pieces or 1)
    assert found.whole == 2 and found.reader.place == "between"
    assert found.heads[1].data == head
    assert found.heads[1].is_last is (name in LAST)
    behind = Behind(b"".join(found.data))
    assert behind.whole == 2 and behind.bodies == [BODY, body]


@pytest.mark.parametrize(("first", "second"), list(itertools.product(TAKEN, TAKEN)))
def test_two_requests_in_one_piece_are_two(first: str, second: str) -> None:
    """Whatever the first one asked for: a request to upgrade does not hide the next one."""
    found = Requests()
    found.reader.feed(TAKEN[first][0] + TAKEN[second][0])
    assert [head.data for head in found.heads] == [TAKEN[first][1], TAKEN[second][1]]
    assert Behind(b"".join(found.data)).bodies == [TAKEN[first][2], TAKEN[second][2]]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_is_400(name: str) -> None:
    """And no part of it is a whole request for the server behind, in one piece or byte by byte."""
    for step in (1, 1 << 20):
        found = Requests()
        with pytest.raises(ApiError) as caught:
            found.feed(REFUSED[name], step)
        assert (caught.value.status, caught.value.code) == (400, "invalid_http")
        assert found.whole == 0


def test_a_body_is_handed_on_without_a_copy() -> None:
    """60 MB of base64 are read once; only what came in one piece with the head is copied."""
    found = Requests()
    found.reader.feed(b"POST /" + LINE + b"Content-Length: 200003\r\n\r\nabc")
    first, last = b"x" * 100_000, b"y" * 100_000
    found.reader.feed(first)
    found.reader.feed(last)
    assert found.data[-2] is first and found.data[-1] is last
    assert found.whole == 1 and found.reader.place == "between"


def test_a_head_is_bounded_however_it_comes() -> None:
    for line in (b"GET /" + b"a" * MAX_HEAD_BYTES, b"GET /" + LINE + b"A: " + b"a" * MAX_HEAD_BYTES):
        for step in (1000, 1 << 20):
            found = Requests()
            with pytest.raises(ApiError) as caught:
                found.feed(line + b"\r\n\r\n", step)
            assert caught.value.status == 431 and not found.heads


@pytest.mark.parametrize("step", [1, 1000])
def test_an_answer_ends_where_it_ends(step: int) -> None:
    answers = [
        (b"GET", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n"),
        (b"POST", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 499 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
    ]
    reader = AnswerReader()
    for method, data in answers:
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        assert [reader.completes(piece, method) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert not reader.is_begun
