"""A thread for short work of many requests, in fair turns (`edgeclip.serve.queue.fair_queue`).

A request of a hundred pieces of work holds up another's only one by no more than the piece that runs, and of several
requests that came alike the one whose next piece costs least goes first.
"""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from edgeclip.engine.batch_policy import Kind
from edgeclip.serve.queue.fair_queue import FairQueue

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    work: Callable[[], Any]
    answer: "asyncio.Future[Any]"


class FairThread:
    """One thread called `name`, in which `initializer` is called first. Used from one event loop."""

    def __init__(self, name: str, initializer: Callable[[], object]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=initializer)
        self._queue = FairQueue(lambda kind: 1)
        self._numbers = itertools.count()
        self._waiting: dict[int, _Piece] = {}
        self._is_running, self._is_open = False, True

    async def run(self, request: int, cost: int, work: Callable[[], _Result]) -> _Result:
        """The result of `work`, in the turn of its request. A new `request` is a larger number.

        Cancelling it while it waits saves the work. `forget` must be called for the request at last.
        """
        answer: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        self._waiting[number] = _Piece(work=work, answer=answer)
        self._queue.add(request, [Kind(cost=cost)], first=number)
        self._begin()
        try:
            return await answer
        finally:
            del answer  # an error in it has this frame in its traceback: a cycle that would hold the request

    def forget(self, request: int) -> None:
        """Do not run work of this request that still waits."""
        self._queue.remove(request)
        self._waiting = {number: piece for number, piece in self._waiting.items() if not piece.answer.done()}

    def close(self) -> None:
        """Take no more work; the piece that runs is finished."""
        self._is_open = False
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        while self._is_open and not self._is_running and (taken := self._queue.take()):
            piece = self._waiting.pop(taken[0][1])
            if piece.answer.done():  # nobody waits for it any more
                continue
            self._is_running = True
            done = asyncio.get_running_loop().run_in_executor(self._thread, piece.work)
            done.add_done_callback(lambda done, answer=piece.answer: self._finish(answer, done))  # type: ignore[misc]

    def _finish(self, answer: "asyncio.Future[Any]", done: "asyncio.Future[Any]") -> None:
        self._is_running = False
        error = None if done.cancelled() else done.exception()
        if not answer.done():
            if done.cancelled():  # the thread was closed
                answer.cancel()
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result())
        self._begin()
