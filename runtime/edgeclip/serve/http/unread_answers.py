"""An answer that nobody reads is given up: else it would be held for as long as its client likes."""

import asyncio

WRITE_S = 30.0
LEAST_READ_BYTES = 64 << 10


class UnreadAnswer:
    """Ends a connection when within WRITE_S less than LEAST_READ_BYTES of what waits to be sent were read."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_watched(self) -> bool:
        """Whether it is looked after now."""
        return self._timer is not None

    def watch(self) -> None:
        """Look after what waits to be sent, from now on."""
        before = self._transport.get_write_buffer_size()

        def check() -> None:
            if before - self._transport.get_write_buffer_size() < LEAST_READ_BYTES:
                self._transport.abort()
            else:
                self.watch()

        self.stop()
        self._timer = self._loop.call_later(WRITE_S, check)

    def stop(self) -> None:
        """Everything was sent, or the connection is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
