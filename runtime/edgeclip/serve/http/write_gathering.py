"""Send the head and the body of an answer in one packet."""

import asyncio

_GATHERED_BYTES = 64 << 10


class Gathered:
    """Sends a head and its body at once, because two packets cost more and wake the client twice.

    `flush` sends the bytes that were written; else they are sent in the loop's next turn.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send some bytes, at the latest with the bytes that are sent next."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        """Send the bytes that were written, unless the transport is closing."""
        parts, self._parts = self._parts, []
        if self._transport.is_closing():
            return
        if sum(map(len, parts)) <= _GATHERED_BYTES:
            parts = [b"".join(parts)] if parts else []
        for part in parts:  # large ones as they are, for joining copies
            self._transport.write(part)
