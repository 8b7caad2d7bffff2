"""Give up answers that their clients do not read, which would else be held for ever."""

import asyncio

WRITE_S = 30.0
LEAST_READ_BYTES = 64 << 10


class UnreadAnswer:
    """Ends a connection whose client read less than LEAST_READ_BYTES of the waiting answer within WRITE_S."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_watched(self) -> bool:
        """Whether the connection is watched now."""
        return self._timer is not None

    def watch(self) -> None:
        """Watch the bytes that wait to be sent, from now on."""
        before = self._transport.get_write_buffer_size()

        def check() -> None:
            if before - self._transport.get_write_buffer_size() < LEAST_READ_BYTES:
                self._transport.abort()
            else:
                self.watch()

        self.stop()
        self._timer = self._loop.call_later(WRITE_S, check)

    def stop(self) -> None:
        """Stop watching: everything was sent, or the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
