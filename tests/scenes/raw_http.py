"""HTTP over a plain socket: what no HTTP client would send, and all that comes back."""

import contextlib
import json
import socket
import time

PATIENCE_S = 10.0
GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def rest_of(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while some := client.recv(1 << 16):
            found += some
    return found


def talk(url: str, sent: bytes) -> bytes:
    with connect(url) as client:
        client.sendall(sent)
        return rest_of(client)


def drip(url: str, first: bytes, drop: bytes, *, most_s: float) -> bytes:
    """What comes back when a drop is sent every 50 ms, until the server has had enough."""
    with connect(url) as client:
        client.sendall(first)
        client.settimeout(0.05)
        deadline = time.monotonic() + most_s
        found = b""
        while time.monotonic() < deadline:
            try:
                some = client.recv(1 << 16)
            except TimeoutError:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(drop)
            except ConnectionResetError:
                return found
            else:
                if not some:
                    return found
                found += some
    raise AssertionError(f"the server still listens after {most_s} s; it said {found!r}")


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer in OpenAI's shape, after which the connection is closed."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert {"connection: close", "content-type: application/json", f"content-length: {len(body)}"} <= set(lines)
    document = json.loads(body)
    assert document["detail"] == document["error"]["message"]
    return int(head.split()[1]), document["error"]["code"]
