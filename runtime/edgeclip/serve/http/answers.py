"""Send the answer to a request, whole or piece by piece."""

import asyncio
from collections.abc import AsyncIterator

from edgeclip.serve.http.exchange import Send

Headers = list[tuple[bytes, bytes]]


async def send_whole(send: Send, headers: Headers, body: bytes) -> None:
    """Send an answer 200."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_pieces(send: Send, headers: Headers, pieces: AsyncIterator[bytes], *, within_s: float) -> None:
    """Send an answer 200 that is never whole in memory: a piece is made when the connection has taken the one before.

    TimeoutError for a connection that has not taken the whole answer `within_s`.
    """
    async with asyncio.timeout(within_s):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
