"""The server's end of a connection: requests are read, the application answers them, and a client is bounded in both.

    a head has `head_s` and `framing.MAX_HEAD_BYTES`, and so have trailers and whatever else is not the body
    a body has `body_s`, also one that nobody waits for any more because its request was refused
    a connection without a request is closed after `idle_s`
    an answer that is not read is given up (`edgeclip.serve.http.unread_answers`)
    a new connection beyond `max_connections` takes a silent one's place (`edgeclip.serve.http.quiet_connections`)
    connections beyond it where none is silent, and requests pipelined beyond _MAX_PIPELINED, are not taken

Refusals before there is a request have OpenAI's shape too. A client that closes its half of the connection counts as
gone, as for nginx: a FIN does not say whether the client still reads.

Requests of one connection are answered one after the other. One timer looks at all connections from time to time,
because a timer of each would be set three times in every request.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from edgeclip.serve.errors import ApiError, ending, log_bug
from edgeclip.serve.http.exchange import Answer, Exchange
from edgeclip.serve.http.framing import Head, Place, RequestReader
from edgeclip.serve.http.quiet_connections import QuietConnections
from edgeclip.serve.http.refusals import encode, too_many_connections, too_slow
from edgeclip.serve.http.unread_answers import UnreadAnswer

_MAX_PIPELINED = 16
# The most bytes of requests that the application has not received; beyond it nothing is read.
_MAX_WAITING_BYTES = 256 << 10
# Seconds for which bytes are read and thrown away after a refusal: closing at once would reset the connection
# under the answer.
_LINGER_S = 1.0
# Between two looks at the connections' times: at most so many seconds, and this part of the shortest time.
_MOST_LOOK_S, _LOOK_PART = 1.0, 1 / 8

_log = logging.getLogger("edgeclip.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many connections there may be at once, and the seconds that a client has.

    `max_refused` connections more get an answer that says so; others are closed without one. Pages of `allow_origin`
    may read refusals.
    """

    max_connections: int
    max_refused: int
    head_s: float
    body_s: float
    idle_s: float
    allow_origin: str | None = None


class Listener:
    """All connections of one ASGI application. `connect` makes the protocol of a new one.

    `refused` is called with the status and code of each refusal that is no request.
    """

    def __init__(self, answer: Answer, bounds: Bounds, refused: Callable[[int, str], None]) -> None:
        self.answer, self.bounds, self.refused = answer, bounds, refused
        self.loop = asyncio.get_running_loop()
        self.connections: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()  # of requests whose application has not returned
        self.quiet: QuietConnections[_Connection] = QuietConnections()
        self.counted = 0  # of the connections, those that count in the bound
        self.is_ending = self._is_cut = False
        self._is_over = asyncio.Event()
        self._look_s = min(_MOST_LOOK_S, _LOOK_PART * min(bounds.head_s, bounds.body_s, bounds.idle_s))
        self._look: asyncio.TimerHandle | None = None

    def connect(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Connection(self)

    def add(self, connection: "_Connection") -> None:
        """Look after a connection from now on."""
        self.connections.add(connection)
        if self._look is None:
            self._look = self.loop.call_later(self._look_s, self._look_at_all)

    def _look_at_all(self) -> None:
        now_s = time.monotonic()
        for connection in list(self.connections):
            connection.look(now_s)
        self._look = self.loop.call_later(self._look_s, self._look_at_all) if self.connections else None

    async def end(self, within_s: float) -> None:
        """Close connections when their answers are sent; after `within_s`, or `cut`, cancel what is not answered."""
        self.is_ending = True
        for connection in list(self.connections):
            connection.close_when_answered()
        if not self._is_cut:
            await self._until_over(within_s)
        for task in self.tasks:
            task.cancel()
        await self._until_over(_LINGER_S)
        for connection in list(self.connections):
            connection.abort()

    async def _until_over(self, within_s: float) -> None:
        self._is_over.clear()
        self.note_end()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_over.wait(), within_s)

    def note_end(self) -> None:
        """Note that a connection or a task has ended."""
        if self.is_ending and not (self.connections or self.tasks):
            self._is_over.set()

    def cut(self) -> None:
        """Let `end` wait no longer."""
        self._is_cut = True
        self._is_over.set()


class _Connection(asyncio.Protocol):
    """One connection. Its client has so long for the head, the body or the next request."""

    def __init__(self, listener: Listener) -> None:
        self._listener, self._bounds, self._loop = listener, listener.bounds, listener.loop
        self._reader = RequestReader(on_head=self._take_head, on_data=self._take_data, on_end=self._take_end)
        self._requests: deque[Exchange] = deque()  # the first one is being answered
        self._waiting_bytes = 0
        self._is_deaf = False  # whatever else comes is thrown away
        self._closes_at_last = False  # after the answers that are due
        self._lingers_until_s: float | None = None
        self._rests_s = listener.bounds.head_s  # how long it may rest; longer once it has asked for something
        self._due_s = 0.0  # when the client was last waited for by the server
        self.is_reading, self.is_full = True, False
        self._drained: asyncio.Future[None] | None = None
        self._is_counted = True  # among the open ones

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport, listener = transport, self._listener
        self._unread = UnreadAnswer(transport, self._loop)
        ends = {"client": transport.get_extra_info("peername"), "server": transport.get_extra_info("sockname")}
        self.addresses = {name: tuple(address[:2]) if address else None for name, address in ends.items()}
        listener.add(self)
        listener.counted += 1
        beyond = listener.counted - self._bounds.max_connections
        if beyond > 0 and (silent := listener.quiet.longest(time.monotonic())) is not None:
            silent.give_way()
            beyond -= 1
        if beyond > self._bounds.max_refused:
            self._is_deaf = True
            transport.abort()
        elif beyond > 0:
            self._refuse(too_many_connections())
        else:
            self._note_silence()

    def connection_lost(self, exc: Exception | None) -> None:
        self._count_out()
        self._listener.connections.discard(self)
        self._listener.quiet.forget(self)
        self._is_deaf = True
        self._cut_answer()
        self.resume_writing()
        self._unread.stop()
        # Else a connection would live until the next collection of garbage, and with it its last request.
        self._reader.close()
        del self._reader
        self._listener.note_end()

    def data_received(self, data: bytes) -> None:
        """Read. Bytes that are no HTTP make no line in the log, which any scanner could fill."""
        if self._is_deaf:
            return
        try:
            self._reader.feed(data)
        except ApiError as error:
            if not self._is_deaf:
                self._give_up(error)
        else:
            self._note_silence()

    def pause_writing(self) -> None:
        self.is_full = True
        self._unread.watch()

    def resume_writing(self) -> None:
        self.is_full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if not self._transport.is_closing() and self._lingers_until_s is None:
            self._unread.stop()

    # What the reader of requests calls.

    def _take_head(self, head: Head) -> None:
        if len(self._requests) > _MAX_PIPELINED:
            raise ApiError(400, f"more than {_MAX_PIPELINED} pipelined requests", code="too_many_requests")
        self._rests_s = self._bounds.idle_s
        self._requests.append(Exchange(head, self))
        if len(self._requests) == 1:
            self._answer_first()
        else:
            self._waiting_bytes += head.size
            self._choose_reading()

    def _take_data(self, data: bytes) -> None:
        request = self._requests[-1]
        if not request.is_answered:
            self._waiting_bytes += len(data)
            request.feed(data)
            self._choose_reading()

    def _take_end(self) -> None:
        request = self._requests[-1]
        request.end()
        if request.head.is_last:
            self._become_deaf()
        self._finish_first()

    # What an exchange calls.

    def write(self, data: bytes) -> None:
        """Send some bytes of the first request's answer, if the client is still there."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has read of what was written, or is gone."""
        self._drained = self._loop.create_future()
        await self._drained

    def took(self, count: int) -> None:
        """Note that the application has received so many bytes of a body."""
        self._waiting_bytes -= count
        self._choose_reading()

    def closes_after(self, exchange: Exchange) -> bool:
        """Whether the connection closes after this answer, whatever the request says."""
        return self._listener.is_ending or (self._closes_at_last and exchange is self._requests[-1])

    def finish(self) -> None:
        """Note that the first request is answered."""
        self.took(self._requests[0].drop())
        self._finish_first()

    # One request after the other.

    def _answer_first(self) -> None:
        exchange = self._requests[0]
        task = self._loop.create_task(self._listener.answer(exchange.scope(), exchange.receive, exchange.send))
        self._listener.tasks.add(task)
        task.add_done_callback(partial(self._end_task, exchange))

    def _end_task(self, exchange: Exchange, task: "asyncio.Task[None]") -> None:
        """Note that the application has returned. An answer without an end is cut off."""
        self._listener.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log_bug(_log, "a request failed", error)
        if not (exchange.is_answered or exchange.is_gone):
            if exchange.is_begun:
                self._close()
            elif task.cancelled():
                self._refuse(ending())
            else:
                self._refuse(ApiError(500, "the service failed; its log says where", code="internal_error"))
        self._listener.note_end()

    def _finish_first(self) -> None:
        """Go on with the next request when the first is read and answered."""
        first = self._requests[0]
        if not first.is_answered:
            return
        if first.closes:
            # A client that still sends its request must be able to read the answer.
            self._close() if first.is_whole else self._linger()
        elif first.is_whole:
            self._requests.popleft()
            if self._requests:
                self.took(self._requests[0].head.size)
                self._answer_first()
            elif self._listener.is_ending:  # since the answer began
                self._close()
            self._note_silence()

    def _choose_reading(self) -> None:
        is_reading = self._is_deaf or self._waiting_bytes <= _MAX_WAITING_BYTES
        if is_reading is self.is_reading or self._transport.is_closing():
            return
        self.is_reading = is_reading
        if is_reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    # Time.

    def look(self, now_s: float) -> None:
        """Give up a client that has not sent in its time what it owes."""
        place = self._reader.place
        if self._lingers_until_s is not None:
            if self._transport.get_write_buffer_size():
                self._lingers_until_s = now_s + _LINGER_S  # an answer before may still be on its way
            elif now_s > self._lingers_until_s:
                self._transport.abort()
        elif len(self._requests) > (place == "body") or not self.is_reading:
            self._due_s = now_s  # the client may wait for an answer before it sends more, or cannot send
        elif not self._is_deaf:
            seconds = {"between": self._rests_s, "head": self._bounds.head_s, "body": self._bounds.body_s}[place]
            if now_s - max(self._reader.since_s, self._due_s) > seconds:
                self._time_is_up(place)

    def _time_is_up(self, place: Place) -> None:
        if place == "body":
            self._give_up(too_slow("request", self._bounds.body_s))
        elif place == "head" and self._reader.idle_bytes:
            self._give_up(too_slow("head of the request", self._bounds.head_s))
        else:
            self._close()

    # Giving way.

    def _note_silence(self) -> None:
        """Note whether the client has something to send now."""
        quiet, place = self._listener.quiet, self._reader.place
        if self._is_deaf or len(self._requests) > (place == "body"):
            quiet.forget(self)
        elif place == "between":
            quiet.rests(self)
        else:
            quiet.sends(self, time.monotonic())

    @property
    def is_silent(self) -> bool:
        """Whether it is the client's turn: everything that it sends is read, and every answer is sent."""
        return self.is_reading and not self._transport.get_write_buffer_size()

    def give_way(self) -> None:
        """Close to make room for another connection; a client that is sending a request gets an answer saying why."""
        self._count_out()
        if self._reader.place != "between" and not (self._requests and self._requests[0].is_answered):
            is_begun = bool(self._requests) and self._requests[0].is_begun
            self._cut_answer()
            if not is_begun:
                self._say(too_many_connections())
        self._close()

    def _count_out(self) -> None:
        self._listener.counted -= self._is_counted
        self._is_counted = False

    # The end.

    def close_when_answered(self) -> None:
        """Close after the answer to the first request, or at once where there is none."""
        if not self._requests:
            self._close()
        elif self._requests[0].is_answered:
            self._linger()

    def abort(self) -> None:
        """Close now, whatever is not sent."""
        self._transport.abort()

    def _give_up(self, error: ApiError) -> None:
        """Take nothing more from a client; say why, unless an answer to an earlier request is due first."""
        is_in_body = self._reader.place == "body" and bool(self._requests)
        if is_in_body and len(self._requests) > 1:
            self._requests.pop()  # the earlier ones are answered
            is_in_body = False
        if not is_in_body and self._requests:
            self._become_deaf()
            self._closes_at_last = True
        elif is_in_body and self._requests[0].is_begun:
            self._cut_answer()
            self._close()
        else:
            self._refuse(error)

    def _become_deaf(self) -> None:
        self._is_deaf = True
        self._listener.quiet.forget(self)
        self._choose_reading()

    def _refuse(self, error: ApiError) -> None:
        self._cut_answer()
        self._say(error)
        self._linger()

    def _say(self, error: ApiError) -> None:
        self._listener.refused(error.status, error.code or "")
        self.write(encode(error, self._bounds.allow_origin))

    def _linger(self) -> None:
        """Send the rest of the answer, and read for a while before closing."""
        self._become_deaf()
        if not self._transport.is_closing():
            if self._transport.can_write_eof():
                with contextlib.suppress(OSError):  # of a client that has gone meanwhile
                    self._transport.write_eof()
            self._lingers_until_s = time.monotonic() + _LINGER_S
            self._watch_unsent()

    def _close(self) -> None:
        self._become_deaf()
        self._transport.close()
        self._watch_unsent()

    def _watch_unsent(self) -> None:
        if self._transport.get_write_buffer_size() and not self._unread.is_watched:
            self._unread.watch()

    def _cut_answer(self) -> None:
        """Let the application know that its answer is not wanted; requests that wait for it are dropped."""
        if self._requests:
            self._requests[0].leave()
        self._requests.clear()
