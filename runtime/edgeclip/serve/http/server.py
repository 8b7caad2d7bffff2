"""Serve an application on sockets until the process is asked to end."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from edgeclip.serve.http.connections import Bounds, Listener
from edgeclip.serve.http.exchange import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What answers each request, as an ASGI application, and what lives as long as the server.

    `refused` counts the status and code of connections refused before there is a request.
    """

    answer: Answer
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    refused: Callable[[int, str], None]


class Server:
    """One application behind listening sockets; `backlog` connections may wait to be accepted.

    Once it is asked to end, it finishes what was accepted, for `shutdown_s` at most.
    """

    def __init__(self, app: Application, bounds: Bounds, *, backlog: int, shutdown_s: float) -> None:
        self._app, self._bounds, self._backlog, self._shutdown_s = app, bounds, backlog, shutdown_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Listener | None = None
        self.is_started = self.is_ending = False

    def run(self, sockets: Sequence[socket.socket]) -> None:
        """Serve, in an event loop of its own, until `end` is called. Raises what the application's start raises."""
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._serve(sockets))

    def end(self) -> None:
        """Ask the server to end; asked twice, it does not wait for answers. Any thread and a signal may ask."""
        was_ending, self.is_ending = self.is_ending, True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended, and its loop is closed
                self._loop.call_soon_threadsafe(self._cut if was_ending else self._asked.set)

    async def _serve(self, sockets: Sequence[socket.socket]) -> None:
        self._asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        async with self._app.lifespan():
            listener = self._listener = Listener(self._app.answer, self._bounds, self._app.refused)
            servers = [
                await self._loop.create_server(listener.connect, sock=one, backlog=self._backlog) for one in sockets
            ]
            self.is_started = True
            if not self.is_ending:
                await self._asked.wait()
            for server in servers:
                server.close()
            await listener.end(self._shutdown_s)

    def _cut(self) -> None:
        if self._listener is not None:
            self._listener.cut()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed (there is none for Windows), else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
