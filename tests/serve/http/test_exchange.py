"""What an application receives of a request, and what a client gets of its answer, over real sockets."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from edgeclip.serve.http import server
from edgeclip.serve.http.connections import Bounds
from edgeclip.serve.http.exchange import Message, Receive, Scope, Send
from edgeclip.serve.http.server import Application, Server
from tests.scenes.raw_http import PATIENCE_S, connect, drip, refusal, rest_of, talk
from tests.scenes.serving import running, wait_for

HEAD_S, BODY_S, IDLE_S = 0.4, 0.4, 0.3
LARGE = b"b" * (1 << 20)
HUGE_PIECES = 32
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
PIECES = [b"one", b"", b"two", LARGE]


class Echo:
    """Answers in several forms, by the path; notes what was left unsent, and clients that went away."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.received: list[Message] = []
        self.sent_pieces = 0
        self.may_end = threading.Event()
        self.refusals: list[tuple[int, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await getattr(self, scope["path"].strip("/"))(receive, send)

    async def echo(self, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        await self._start(send, [(b"content-length", b"%d" % len(body))])
        await send({"type": "http.response.body", "body": body})

    async def pieces(self, receive: Receive, send: Send) -> None:
        await self._start(send, [])
        for piece in PIECES:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async def endless(self, receive: Receive, send: Send) -> None:
        await self._start(send, [])
        for _ in range(1000):
            await send({"type": "http.response.body", "body": LARGE, "more_body": True})
            self.sent_pieces += 1
        await send({"type": "http.response.body"})

    async def early(self, receive: Receive, send: Send) -> None:
        """An answer without a look at the body."""
        await self._start(send, [(b"content-length", b"2")], 413)
        await send({"type": "http.response.body", "body": b"no"})

    async def empty(self, receive: Receive, send: Send) -> None:
        await self._start(send, [], 204)
        await send({"type": "http.response.body"})

    async def filled(self, receive: Receive, send: Send) -> None:
        await self._start(send, [], 204)
        await send({"type": "http.response.body", "body": b"what no client expects"})

    async def huge(self, receive: Receive, send: Send) -> None:
        """More than the kernel takes, in one message."""
        await self._start(send, [(b"content-length", b"%d" % (HUGE_PIECES << 20))])
        await send({"type": "http.response.body", "body": LARGE * HUGE_PIECES})

    async def begun(self, receive: Receive, send: Send) -> None:
        await self._start(send, [])
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while not self.may_end.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body"})

    async def unknown(self, receive: Receive, send: Send) -> None:
        await self._start(send, [(b"content-length", b"0")], 499)
        await send({"type": "http.response.body"})

    async def closing(self, receive: Receive, send: Send) -> None:
        await self._start(send, [(b"content-length", b"0"), (b"connection", b"Close")])
        await send({"type": "http.response.body"})

    async def waiting(self, receive: Receive, send: Send) -> None:
        while True:
            self.received.append(await receive())
            if self.received[-1]["type"] == "http.disconnect":
                break

    async def held(self, receive: Receive, send: Send) -> None:
        while not self.may_end.is_set():
            await asyncio.sleep(0.01)
        await self.empty(receive, send)

    async def short(self, receive: Receive, send: Send) -> None:
        await self._start(send, [(b"content-length", b"9")])
        await send({"type": "http.response.body", "body": b"four"})

    async def long(self, receive: Receive, send: Send) -> None:
        await self._start(send, [(b"content-length", b"1")])
        await send({"type": "http.response.body", "body": b"four"})

    async def broken(self, receive: Receive, send: Send) -> None:
        raise ValueError("a bug")

    async def silent(self, receive: Receive, send: Send) -> None:
        pass

    async def blocking(self, receive: Receive, send: Send) -> None:
        """No answer, and meanwhile nobody hears that the client has gone."""
        time.sleep(0.2)

    @staticmethod
    async def _start(send: Send, headers: list[tuple[bytes, bytes]], status: int = 200) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})


@contextlib.asynccontextmanager
async def no_lifespan() -> AsyncIterator[None]:
    yield


def make_server(echo: Echo, *, shutdown_s: float = 5, idle_s: float = IDLE_S) -> Server:
    bounds = Bounds(max_connections=9, max_refused=9, head_s=HEAD_S, body_s=BODY_S, idle_s=idle_s)
    app = Application(
        answer=echo.__call__, lifespan=no_lifespan, refused=lambda *refusal: echo.refusals.append(refusal)
    )
    return Server(app, bounds, backlog=100, shutdown_s=shutdown_s)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def url(echo: Echo) -> Iterator[str]:
    with running(make_server(echo)) as url:
        yield url


def get(path: str, *, version: str = "1.1", method: str = "GET", more: str = "Connection: close\r\n") -> bytes:
    return f"{method} /{path} HTTP/{version}\r\nHost: x\r\n{more}\r\n".encode()


def head_and_body(answer: bytes) -> tuple[list[bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


def test_requests_are_answered_until_the_connection_rests(url: str) -> None:
    chunked = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nde\r\n0\r\nA: b\r\n\r\n"
    began = time.monotonic()
    found = talk(url, POST * 3 + chunked)
    assert IDLE_S <= time.monotonic() - began < PATIENCE_S
    assert [part.rpartition(b"\r\n")[2] for part in found.split(b"HTTP/1.1 ")[1:]] == [b"abc"] * 3 + [b"de"]
    assert refusal(drip(url, b"GET /", b"x", most_s=HEAD_S + 2)) == (408, "request_timeout")
    assert httpx.post(f"{url}/echo", content=LARGE).content == LARGE


def test_the_scope_is_what_was_sent(url: str, echo: Echo) -> None:
    with connect(url) as client:
        client.sendall(get("echo/%2Fa%C3%A9?b=%20", more="A: b\r\nA: c\r\nConnection: close\r\n", method="PATCH"))
        with contextlib.suppress(ConnectionResetError):
            rest_of(client)
        address = client.getsockname(), client.getpeername()
    (scope,) = echo.scopes
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/echo//aé", b"/echo/%2Fa%C3%A9", b"b=%20")
    assert (scope["method"], scope["http_version"], scope["scheme"], scope["type"]) == (
        "PATCH",
        "1.1",
        "http",
        "http",
    )
    assert scope["headers"] == [(b"host", b"x"), (b"a", b"b"), (b"a", b"c")]
    assert (scope["client"], scope["server"]) == address


def test_an_answer_of_unknown_length_is_chunked(url: str) -> None:
    lines, body = head_and_body(talk(url, get("pieces")))
    assert b"transfer-encoding: chunked" in lines and b"connection: close" in lines
    assert body == b"3\r\none\r\n3\r\ntwo\r\n100000\r\n" + LARGE + b"\r\n0\r\n\r\n"
    assert httpx.get(f"{url}/pieces").content == b"".join(PIECES)


def test_http_1_0_gets_no_chunks(url: str) -> None:
    """It does not know them, so the end of the connection is that of the answer."""
    lines, body = head_and_body(talk(url, get("pieces", version="1.0", more="Connection: keep-alive\r\n")))
    assert body == b"".join(PIECES)
    assert b"connection: close" in lines and not any(line.startswith(b"transfer-encoding") for line in lines)


@pytest.mark.parametrize(
    ("path", "method", "status", "header"),
    [
        ("echo", "HEAD", b"HTTP/1.1 200 OK", b"content-length: 0"),
        ("early", "HEAD", b"HTTP/1.1 413 Request Entity Too Large", b"content-length: 2"),
        ("pieces", "HEAD", b"HTTP/1.1 200 OK", None),
        ("empty", "GET", b"HTTP/1.1 204 No Content", None),
        ("filled", "GET", b"HTTP/1.1 204 No Content", None),
        ("unknown", "GET", b"HTTP/1.1 499 ", b"content-length: 0"),
    ],
)
def test_an_answer_without_a_body_has_none(
    url: str, path: str, method: str, status: bytes, header: bytes | None
) -> None:
    """And the next answer begins behind its head."""
    found = talk(url, get(path, method=method, more="") + get("empty"))
    first, second = found.split(b"HTTP/1.1 ")[1:]
    lines, body = head_and_body(b"HTTP/1.1 " + first)
    assert (lines[0], body) == (status, b"") and second.startswith(b"204 ")
    framing = [line for line in lines if line.startswith((b"content-length", b"transfer-encoding"))]
    assert framing == ([header] if header else [])
    assert sum(line.startswith(b"date: ") for line in lines) == 1


def test_an_answer_may_close_the_connection(url: str) -> None:
    found = talk(url, get("closing", more="") * 2)
    assert found.count(b"HTTP/1.1 ") == found.lower().count(b"connection: close\r\n") == 1


def test_an_early_answer_does_not_end_the_connection(url: str, echo: Echo) -> None:
    """The rest of the body is read and thrown away."""
    post = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n"
    with connect(url) as client:
        client.sendall(post)
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
        client.sendall(bytes(600_000) + get("empty"))
        assert rest_of(client).startswith(b"HTTP/1.1 204 ")


def test_an_early_answer_to_a_client_that_waits_for_100_is_the_last(url: str) -> None:
    """It may leave the body out, and then nobody knows where its next request begins."""
    post = b"POST /early HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    lines, body = head_and_body(talk(url, post))
    assert lines[0].startswith(b"HTTP/1.1 413 ") and b"connection: close" in lines and body == b"no"


def test_a_refused_client_that_waits_for_100_is_no_bug(
    url: str, echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    post = b"POST /waiting HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"
    assert refusal(talk(url, post)) == (400, "invalid_http")
    wait_for(lambda: echo.received)
    assert echo.received == [{"type": "http.disconnect"}] and caplog.records == []


def test_a_body_that_nobody_wants_does_not_stop_the_connection(url: str, echo: Echo) -> None:
    """More than is read before the answer waits in the socket then."""
    post = b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000)
    with connect(url) as client:
        sending = threading.Thread(target=client.sendall, args=(post + get("empty"),))
        sending.start()
        wait_for(lambda: echo.scopes)
        time.sleep(2 * BODY_S)  # in which the client may not send, so it is not late
        echo.may_end.set()
        assert rest_of(client).count(b"HTTP/1.1 204 ") == 2
        sending.join()


def test_a_client_that_does_not_read_holds_up_the_application(url: str, echo: Echo) -> None:
    """The answer is never whole in memory; and the application hears no error when the client goes away."""
    with connect(url) as client:
        client.sendall(get("endless"))
        wait_for(lambda: echo.sent_pieces > 0)
        time.sleep(0.5)
        sent = echo.sent_pieces
        assert sent < 50
        for _ in range(200):
            assert client.recv(1 << 20)
        wait_for(lambda: echo.sent_pieces > sent)
    wait_for(lambda: echo.sent_pieces == 1000)


def test_a_refusal_does_not_cut_the_answer_before_it(url: str) -> None:
    """Its client may read slowly."""
    with connect(url) as client:
        client.sendall(get("huge", more=""))
        assert client.recv(9) == b"HTTP/1.1 "
        client.sendall(b"\0")
        time.sleep(2)
        found = rest_of(client)
    assert found.count(LARGE) == HUGE_PIECES and b"HTTP/1.1 400 " in found


def test_a_connection_whose_answer_is_not_sent_does_not_give_way(echo: Echo) -> None:
    """It would stay open until its client has read, beyond the bound and for as many as there are."""
    with running(make_server(echo, idle_s=60)) as url, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connect(url)) for _ in range(9)]
        for client in clients:
            client.sendall(get("huge", more=""))
            assert client.recv(9) == b"HTTP/1.1 "
        assert refusal(talk(url, b"")) == (503, "too_many_connections")
        left = HUGE_PIECES << 20
        while left > 0:
            left -= len(clients[4].recv(1 << 20))
        wait_for(lambda: talk(url, get("empty")).startswith(b"HTTP/1.1 204 "))
        clients[4].settimeout(1)
        assert len(rest_of(clients[4])) < 1000


@pytest.mark.parametrize("body", [b"", b"abc"])
def test_the_application_hears_that_the_client_has_gone(url: str, echo: Echo, body: bytes) -> None:
    with connect(url) as client:
        client.sendall(b"POST /waiting HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n" + body)
        wait_for(lambda: echo.scopes)
        time.sleep(0.1)
    wait_for(lambda: echo.received and echo.received[-1]["type"] == "http.disconnect")
    assert [message.get("body") for message in echo.received[:-1]] == [body] * bool(body)


@pytest.mark.parametrize("path", ["broken", "silent"])
def test_a_request_that_nobody_answers_is_500(url: str, echo: Echo, path: str) -> None:
    found = talk(url, get(path, more=""))
    assert refusal(found) == (500, "internal_error") and echo.refusals == [(500, "internal_error")]


@pytest.mark.parametrize("makes_loop", [server._loop_factory, lambda: None], ids=["uvloop", "asyncio"])
def test_a_refusal_to_a_client_that_has_gone_is_no_bug(
    echo: Echo, makes_loop: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "_loop_factory", makes_loop)
    with running(make_server(echo)) as url:
        with connect(url) as client:
            client.sendall(get("blocking", more=""))
            wait_for(lambda: echo.scopes)
        wait_for(lambda: echo.refusals)
        assert talk(url, get("empty")).startswith(b"HTTP/1.1 204 ")
    assert caplog.records == []


@pytest.mark.parametrize("path", ["short", "long"])
def test_a_length_that_is_not_held_is_no_answer(url: str, path: str) -> None:
    """Whatever a client would take for the rest of it is none of it."""
    _, body = head_and_body(talk(url, get(path, more="") + get("empty")))
    assert b"HTTP/1.1" not in body


def test_the_end_waits_for_answers_and_for_no_more(echo: Echo) -> None:
    """A connection that rests is closed at once, an answer that is due is sent, and its connection is closed."""
    served = make_server(echo, shutdown_s=20)
    with running(served) as url, connect(url) as client, connect(url) as resting:
        client.sendall(get("held", more=""))
        wait_for(lambda: echo.scopes)
        served.end()
        assert resting.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(url)
        client.sendall(get("echo", more=""))
        echo.may_end.set()
        lines, _ = head_and_body(rest_of(client))
        assert lines[0] == b"HTTP/1.1 204 No Content" and b"connection: close" in lines
    assert len(echo.scopes) == 1


def test_the_end_does_not_wait_for_a_connection_whose_answer_had_begun(echo: Echo) -> None:
    """Its head could not say that the connection closes."""
    served = make_server(echo, shutdown_s=60, idle_s=60)
    began = time.monotonic()
    with running(served) as url, connect(url) as client:
        client.sendall(get("begun", more=""))
        assert client.recv(1000)
        served.end()
        time.sleep(0.1)
        echo.may_end.set()
        assert rest_of(client).endswith(b"0\r\n\r\n")
    assert time.monotonic() - began < PATIENCE_S


@pytest.mark.parametrize("shutdown_s", [0.3, 60])
def test_the_end_cuts_off_what_takes_too_long(echo: Echo, shutdown_s: float) -> None:
    """By itself, or when it is asked twice."""
    served = make_server(echo, shutdown_s=shutdown_s)
    began = time.monotonic()
    with running(served) as url, connect(url) as client:
        client.sendall(get("held", more=""))
        wait_for(lambda: echo.scopes)
        served.end()
        if shutdown_s == 60:
            served.end()
        assert refusal(rest_of(client)) == (503, "shutting_down")
    assert time.monotonic() - began < PATIENCE_S
