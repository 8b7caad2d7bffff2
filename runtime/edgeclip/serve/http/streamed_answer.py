"""Send an answer piece by piece, so that it is never whole in memory.

A piece is made when the connection has taken the one before, and what the answer is made of is held until its end.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeclip.serve.http.exchange import Receive, Scope, Send


class StreamedAnswer:
    """JSON in pieces, as an ASGI application. `held` is entered already, and left when the answer is over.

    A connection that has not taken the whole answer within `within_s` is cut off.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        held: AbstractContextManager[Any],
        within_s: float,
    ) -> None:
        self._pieces, self._headers, self._held, self._within_s = pieces, headers, held, within_s

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Send the answer; TimeoutError where its time is up."""
        with self._held:
            async with asyncio.timeout(self._within_s):
                headers = {"content-type": "application/json", **self._headers}
                written = [
                    (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
                ]
                await send({"type": "http.response.start", "status": 200, "headers": written})
                async for piece in self._pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
