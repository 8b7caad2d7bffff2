"""What one request and its answer hold in memory and send at once, without a connection."""

import asyncio
import os
import tracemalloc
from typing import Any

import pytest

from edgeclip.serve.http.exchange import Exchange, Message
from edgeclip.serve.http.framing import Head

LARGE = b"b" * (1 << 20)


class Sent:
    """A connection that notes what it would send."""

    is_full = False

    def __init__(self) -> None:
        self.addresses: dict[str, Any] = {}
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.parts.append(data)

    async def drained(self) -> None: ...

    def took(self, count: int) -> None: ...

    def closes_after(self, exchange: Exchange) -> bool:
        return False

    def finish(self) -> None: ...


HEAD = Head(
    method="GET", path=b"/", query=b"", version="1.1", headers=[], is_last=False, wants_continue=False, size=1
)


def test_a_body_in_tiny_parts_is_held_as_its_bytes() -> None:
    """An object for every two bytes would be thirty times as much."""
    exchange = Exchange(HEAD, Sent())
    body = os.urandom(100_000)
    tracemalloc.start()
    try:
        for start in range(0, len(body), 2):
            exchange.feed(body[start : start + 2])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    exchange.end()
    assert held < 3 * len(body)
    assert asyncio.run(_received(exchange)) == {"type": "http.request", "body": body, "more_body": False}


async def _received(exchange: Exchange) -> Message:
    return await exchange.receive()


@pytest.mark.parametrize("body", [b"body", LARGE])
def test_a_small_answer_is_one_packet_and_a_large_one_is_not_copied(body: bytes) -> None:
    async def send() -> list[bytes]:
        sent = Sent()
        exchange = Exchange(HEAD, sent)
        length = (b"content-length", b"%d" % len(body))
        await exchange.send({"type": "http.response.start", "status": 200, "headers": [length]})
        assert sent.parts == []
        await exchange.send({"type": "http.response.body", "body": body})
        return sent.parts

    *before, last = asyncio.run(send())
    assert (last is body) is (body is LARGE) and len(before) == (body is LARGE)
    assert last.endswith(body)
