"""Real sockets that misbehave: slow, silent, half closed, too many, too much, no HTTP; each is answered or cut."""

import asyncio
import contextlib
import gc
import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgeclip import Encoder
from edgeclip.serve.http import connections, framing, quiet_connections, unread_answers
from tests.scenes.raw_http import GET, connect, drip, refusal, rest_of, talk
from tests.scenes.serving import Troubled, depth, serving, until_ready, wait_for

HEAD_S = BODY_S = 0.4
# The largest file that is served: an answer that no buffer of the kernel holds when it is asked for sixteen times.
ASSET = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
POST_OF_1000 = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
ASSETS_AT_ONCE = 1 + connections._MAX_PIPELINED


@pytest.fixture(scope="module")
def url(bundle: Path, encoder: Encoder) -> Iterator[str]:
    with serving(bundle, encoder, head_timeout_s=HEAD_S, body_timeout_s=BODY_S, ready_s=600) as url:
        until_ready(url)
        yield url
        assert httpx.get(f"{url}/health/live").status_code == 200  # whatever was done to it
        metrics = httpx.get(f"{url}/metrics").text
        assert 'status="500"' not in metrics


@pytest.mark.parametrize(
    ("first", "drop"),
    [(b"GET /", b"x"), (b"GET / HTTP/1.1\r\n", b"a: b\r\n"), (b"", b"\r\n"), (GET[:-2], b"a")],
    ids=["request line", "headers", "empty lines", "one header"],
)
def test_a_slow_head_is_408(url: str, first: bytes, drop: bytes) -> None:
    assert refusal(drip(url, first, drop, most_s=HEAD_S + 2)) == (408, "request_timeout")


def test_a_slow_head_after_an_answer_is_408(url: str) -> None:
    answer = drip(url, GET + b"GET /", b"x", most_s=HEAD_S + 2)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in answer


def test_a_client_that_says_nothing_is_told_nothing(url: str) -> None:
    """A browser opens connections in advance, and would take an answer for one to its next request."""
    began = time.monotonic()
    assert talk(url, b"") == b""
    assert time.monotonic() - began < HEAD_S + 2


def test_a_slow_body_that_nobody_waits_for_is_cut(url: str) -> None:
    """The refusal comes at once, and the rest is not read for ever."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    answer = drip(url, head, b"x", most_s=BODY_S + 3)
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_slow_body_is_408(url: str) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    assert refusal(drip(url, head, b" ", most_s=BODY_S + 3)) == (408, "request_timeout")


def test_a_request_in_small_pieces_is_a_request(url: str) -> None:
    body = b'{"input": "a"}'
    sent = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 14\r\n\r\n" + body
    with connect(url) as client:
        for start in range(0, len(sent), 9):
            client.sendall(sent[start : start + 9])
            time.sleep(0.01)
        assert rest_of(client).startswith(b"HTTP/1.1 200 ")


CHUNKED = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\na: " + b"b" * 10**6,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10**5 + b"\r\n",
        b"GET / HTTP/1.1\r\na: " + b"b" * framing.MAX_HEAD_BYTES + b"\r\n\r\n",
        CHUNKED + b"0\r\n" + b"a: b\r\n" * 10**5,
        CHUNKED + b"1;" + b"a" * 10**6,
    ],
    ids=["path", "endless header", "many headers", "just too many", "trailers", "chunk extension"],
)
def test_a_huge_head_is_431(url: str, sent: bytes) -> None:
    with connect(url) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(sent)
        assert refusal(rest_of(client)) == (431, "head_too_large")


def test_a_large_head_is_taken(url: str) -> None:
    padding = b"a: " + b"b" * (framing.MAX_HEAD_BYTES - 100) + b"\r\n"
    sent = b"GET /health/live HTTP/1.1\r\nConnection: close\r\n" + padding + b"\r\n"
    assert talk(url, sent).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\x00" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/3.7\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\na\x00b: c\r\n\r\n",
    ],
    ids=["TLS", "zeros", "HTTP/2", "HTTP/3.7", "SSH", "CONNECT", "length", "both lengths", "lengths", "chunk", "NUL"],
)
def test_what_is_no_http_is_400(url: str, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert refusal(talk(url, sent)) == (400, "invalid_http")
    assert caplog.records == []


def test_what_follows_a_request_does_not_spoil_its_answer(url: str) -> None:
    found = talk(url, GET + b"\x00\x01\x02 nonsense\r\n\r\n")
    assert found.count(b"HTTP/1.1 ") == 1 and found.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("more", [b"", b"Connection: keep-alive\r\n"])
def test_http_1_0_is_answered_and_closed(url: str, more: bytes) -> None:
    found = talk(url, b"GET /health/live HTTP/1.0\r\n" + more + b"\r\n")
    assert found.startswith(b"HTTP/1.1 200 ") and found.endswith(b'{"status":"ok"}')


def test_pipelined_requests_are_answered_in_their_order(url: str) -> None:
    paths = [b"/health/live", b"/nowhere", b"/v1/models", b"/v1/embeddings", b"/health/live"]
    sent = b"".join(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths)
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    found = talk(url, sent + last).split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in found] == [200, 404, 200, 405, 200, 200]


def test_bodies_are_answered_in_their_order(url: str) -> None:
    """The second one comes while the first is answered, and is larger than what is held back."""
    texts = ["a" * 200_000, "b" * 200_000, "c"]
    sent = b""
    for text in texts:
        body = json.dumps({"input": text, "truncate": True, "dimensions": 1}).encode()
        sent += b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    found = talk(url, sent * 2 + last).split(b"HTTP/1.1 ")[1:]
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in found]
    assert [int(answer[:3]) for answer in found] == [200] * 7
    vectors = [json.loads(body)["data"][0]["embedding"] for body in bodies[:-1]]
    assert vectors[:3] == vectors[3:] and bodies[-1] == b'{"status":"ok"}'


def test_what_follows_is_kept_while_the_answer_before_is_awaited(bundle: Path) -> None:
    """In pieces, also where a piece ends amidst a head; a broken one does not cost the answers before it."""
    body = b'{"input": "a"}'
    post = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n" + body
    broken = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"
    with Troubled.open(bundle, device="cpu") as encoder:
        encoder.prepare()
        with serving(bundle, encoder, ready_s=600) as url, connect(url) as client:
            until_ready(url)
            encoder.may_run.clear()
            client.sendall(post)
            wait_for(
                lambda: "edgeclip_requests_in_progress 2.0\n" in httpx.get(f"{url}/metrics").text
            )  # and this one
            sent = GET + post + GET
            for start in range(0, len(sent), 20):
                client.sendall(sent[start : start + 20])
                time.sleep(0.005)
            client.sendall(broken)
            encoder.may_run.set()
            assert rest_of(client).count(b"HTTP/1.1 200 ") == 4


def test_a_refusal_is_read_by_a_client_that_still_sends(url: str) -> None:
    """Closing at once would reset the connection under the answer."""
    head = b"POST /v1/embeddings HTTP/1.1\r\nConnection: close\r\nContent-Length: 100000000\r\n\r\n"
    with connect(url) as client:
        client.sendall(head)
        time.sleep(0.1)
        for _ in range(5):
            client.sendall(bytes(1000))
            time.sleep(0.02)
        assert rest_of(client).startswith(b"HTTP/1.1 413 ")


def test_ten_thousand_pipelined_requests_are_not_held(url: str) -> None:
    """The first ones are answered, the connection is closed; a client asks again for the others (RFC 9112, 9.3.2)."""
    with connect(url) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(GET * 10_000)
        found = rest_of(client)
    assert found.count(b"HTTP/1.1 200 ") <= 2 * ASSETS_AT_ONCE


def test_expectations_are_met(url: str) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with connect(url) as client:
        client.sendall(head % 14)
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(b'{"input": "a"}')
        assert rest_of(client).startswith(b"HTTP/1.1 200 ")
    assert talk(url, head % 10**9).startswith(b"HTTP/1.1 413 ")


def test_an_answer_that_is_not_read_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is read slowly is not."""
    monkeypatch.setattr(unread_answers, "WRITE_S", 0.3)
    whole = len(talk(url, ASSET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
    for is_read in (True, False):
        with connect(url) as client:
            client.sendall(ASSET * ASSETS_AT_ONCE)
            client.settimeout(1.5)
            found, pause_s = 0, 0.02 if is_read else 1.5
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while True:
                    time.sleep(pause_s)
                    some = client.recv(1 << 20)
                    if not some:
                        break
                    found += len(some)
                    pause_s = min(pause_s, 0.02)
        assert (found > (whole - 100) * ASSETS_AT_ONCE) is is_read


def test_a_client_that_closes_its_half_has_left(bundle: Path) -> None:
    """Its queued work goes with it, also where it had sent a second request."""
    body = json.dumps({"input": [f"text {number}" for number in range(50)]}).encode()
    request = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with Troubled.open(bundle, device="cpu") as encoder:
        encoder.prepare()
        with serving(bundle, encoder, ready_s=600) as url:
            until_ready(url)
            encoder.may_run.clear()
            for sent in (request, request + GET):
                with connect(url) as client:
                    client.sendall(sent)
                    wait_for(lambda: depth(url) > 0)
                    client.shutdown(socket.SHUT_WR)
                    wait_for(lambda: depth(url) == 0)
                    assert rest_of(client) == b""
            encoder.may_run.set()


def test_a_connection_that_is_over_is_held_no_more(url: str) -> None:
    """Also one that its client resets."""

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(one), connections._Connection) for one in gc.get_objects())

    wait_for(lambda: alive() == 0)
    for ends in (GET, GET + b"GET /", GET[:9], b"", b"\0", GET.replace(b"1.1", b"1.0")):
        for resets in (True, False):
            with connect(url) as client:
                client.sendall(ends)
                if GET[:5] in ends and len(ends) > 9:
                    client.recv(9)
                if resets:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(lambda: alive() == 0, within_s=5)


def test_one_connection_too_many_is_503(bundle: Path) -> None:
    """Where every other one waits for its answer."""
    body = b'{"input": "a"}'
    sent = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with Troubled.open(bundle, device="cpu") as encoder:
        encoder.prepare()
        with serving(bundle, encoder, max_connections=3, ready_s=600) as url:
            until_ready(url)
            encoder.may_run.clear()
            with contextlib.ExitStack() as opened:
                clients = [opened.enter_context(connect(url)) for _ in range(3)]
                for client in clients:
                    client.sendall(sent)
                time.sleep(0.2)
                assert refusal(talk(url, b"")) == (503, "too_many_connections")
                assert httpx.get(f"{url}/health/live").status_code == 503
                encoder.may_run.set()
                for client in clients:
                    assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
                assert httpx.get(f"{url}/health/live").status_code == 200  # they rest, so one of them gives way
            assert 'code="too_many_connections",status="503"} ' in httpx.get(f"{url}/metrics").text


@pytest.mark.parametrize("first", [GET, b""], ids=["asked once", "said nothing"])
def test_connections_that_rest_give_way(bundle: Path, encoder: Encoder, first: bytes) -> None:
    """The one that has rested longest, and no other."""
    with serving(bundle, encoder, max_connections=3) as url, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connect(url)) for _ in range(3)]
        for client in clients:
            if first:
                client.sendall(first)
                assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        if first:
            clients[0].sendall(first)  # so the second one has rested longest
            assert clients[0].recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            clients[0], clients[1] = clients[1], clients[0]
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert clients[0].recv(1) == b""
        for client in clients[1:]:
            client.sendall(GET)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [GET[:9], POST_OF_1000], ids=["head", "body"])
def test_clients_that_are_silent_amidst_a_request_give_way(
    bundle: Path, encoder: Encoder, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, and told why; before that nobody gives way."""
    monkeypatch.setattr(quiet_connections, "STILL_S", 600.0)
    with serving(bundle, encoder, max_connections=2) as url, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connect(url)) for _ in range(2)]
        for client in clients:
            client.sendall(sent)
        time.sleep(0.1)
        assert httpx.get(f"{url}/health/live").status_code == 503
        monkeypatch.setattr(quiet_connections, "STILL_S", 0.01)
        time.sleep(0.05)
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert refusal(rest_of(clients[0])) == (503, "too_many_connections")


def test_a_thousand_connections_at_once_are_all_answered(bundle: Path, encoder: Encoder) -> None:
    """Client and server are one process here, so that is two thousand open files."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 1000 if hard == resource.RLIM_INFINITY or hard >= 2500 else (hard - 500) // 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * count + 500), hard))
    body = b'{"input": "a", "dimensions": 2}'
    sent = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def crowd(host: str, port: int) -> list[bytes]:
        streams = await asyncio.gather(*(asyncio.open_connection(host, port) for _ in range(count)))
        for _, writer in streams:  # all are open before the first asks
            writer.write(sent)
        lines = await asyncio.gather(*(reader.readline() for reader, _ in streams))
        for _, writer in streams:
            writer.close()
        return lines

    with serving(bundle, encoder) as url:
        host, port = url.removeprefix("http://").split(":")
        assert asyncio.run(crowd(host, int(port))) == [b"HTTP/1.1 200 OK\r\n"] * count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
