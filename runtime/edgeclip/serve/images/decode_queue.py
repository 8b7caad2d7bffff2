"""Decode images of unknown clients beside the event loop, in fair turns and in bounded memory.

An image is judged by its header first (`edgeclip.serve.images.decoder`), in turns of the requests, because a header
can take a hundred times as long as an ordinary one. A fair queue like the graphs' (`edgeclip.serve.queue.fair_queue`)
decides whose turn it is to be decoded, with a request as the flow and the cost of decoding as the bytes: eight large
images of one client delay another's small one by no more than the image that is being decoded. A thread that decodes
cannot be stopped, so large images never take the last thread, where there are several: a small one waits for small
ones alone.

The memory of all that is decoded at once is bounded. An image that does not fit beside the others waits until it
does, and nothing overtakes it, or a stream of small ones would keep it waiting for ever.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from edgeclip.engine.batch_policy import Kind
from edgeclip.errors import InputError
from edgeclip.families.family import Item
from edgeclip.serve.images.decoder import Header, PictureLimits, check_bytes, judge
from edgeclip.serve.queue.fair_queue import FairQueue
from edgeclip.serve.queue.fair_thread import FairThread
from edgeclip.serve.queue.thread_priority import lower_this_thread

_NICENESS = 10
# The bytes of a header that takes as long as any.
_LONG_HEADER_BYTES = 64 << 10
# Images that take a core longer than some 0.1 s: a JPEG of more than 16 megapixels, a PNG of more than five.
LARGE_COST = 16_000_000
# Number of decodes whose pace is remembered, and the cost that they must have before the pace counts.
_REMEMBERED = 64
_ENOUGH_COST = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image as an item of the graph that takes images, and the size that the image was sent in."""

    item: Item
    width: int
    height: int


class PrepareImage(Protocol):
    """Makes an item of a file's bytes, as `Encoder.prepare_image`."""

    def __call__(self, image: bytes, /, *, task: str | None, label: str) -> Item:
        """Raises InputError, which calls the image `label`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """An image that waits to be decoded or is being decoded."""

    data: bytes
    task: str | None
    label: str
    header: Header
    answer: asyncio.Future[Picture]


class Flow:
    """Decodes the images of one request. `PictureDecoder.flow` makes one."""

    def __init__(
        self, decoder: "PictureDecoder", number: int, task: str | None, admit: Callable[[float], None]
    ) -> None:
        self._decoder, self._number, self._task, self._admit = decoder, number, task, admit
        self._cost = 0

    async def decode(self, data: bytes, label: str) -> Picture:
        """Decode a file. Cancelling it while it waits saves the work.

        Raises InputError, which calls the image `label`, for a file that is too large or no image; MissingExtraError
        without Pillow; and what `admit` raises.
        """
        header = await self._decoder.judge(self._number, data, label)
        self._cost += header.cost
        self._admit(self._decoder.seconds(self._cost))
        return await self._decoder.submit(self._number, data, self._task, label, header)


class PictureDecoder:
    """Decodes images in `threads` threads; more images wait. Used from one event loop."""

    def __init__(self, prepare: PrepareImage, limits: PictureLimits, threads: int) -> None:
        self._prepare, self._limits, self._count = prepare, limits, threads
        lower = partial(lower_this_thread, _NICENESS)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="edgeclip-decode", initializer=lower)
        self._judging = FairThread("edgeclip-judge", lower)
        self._queue = FairQueue(lambda kind: 1, quantum=LARGE_COST)
        self._flows, self._places = itertools.count(), itertools.count()
        self._waiting: dict[int, _Job] = {}
        self._next: _Job | None = None  # whose turn it is, once its memory is there
        self._running: list[_Job] = []
        self._latest: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._is_open = True

    @contextmanager
    def flow(self, task: str | None = None, admit: Callable[[float], None] = lambda seconds: None) -> Iterator[Flow]:
        """Decode the images of one request, which share turns and a task.

        Images that still wait at the end of the block are dropped.

        `admit` is called with the seconds that decoding all its images takes at best, as far as they are known, and
        raises where that is too long.
        """
        number = next(self._flows)
        try:
            yield Flow(self, number, task, admit)
        finally:
            self._queue.remove(number)
            self._judging.forget(number)
            self._waiting = {place: job for place, job in self._waiting.items() if not job.answer.done()}

    def close(self) -> None:
        """Take no more images; those that are being decoded are finished."""
        self._is_open = False
        self._judging.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def depth(self) -> int:
        """The number of images that wait."""
        return self._queue.depth + (self._next is not None)

    def seconds(self, cost: int) -> float:
        """The seconds that all threads need for this cost at the best recent pace; 0 while nothing is known."""
        if sum(done for done, _ in self._latest) < _ENOUGH_COST:
            return 0.0
        return cost * min(spent_s / done for done, spent_s in self._latest) / self._count

    async def judge(self, flow: int, data: bytes, label: str) -> Header:
        """The header of a file, in the turn of its flow; raises what `edgeclip.serve.images.decoder.judge` raises."""
        check_bytes(len(data), self._limits, label)
        cost = min(max(1, len(data)), _LONG_HEADER_BYTES)
        return await self._judging.run(flow, cost, partial(judge, data, self._limits, label))

    async def submit(self, flow: int, data: bytes, task: str | None, label: str, header: Header) -> Picture:
        """Decode a file of this header, in the turn of its flow."""
        answer = asyncio.get_running_loop().create_future()
        place = next(self._places)
        self._waiting[place] = _Job(data=data, task=task, label=label, header=header, answer=answer)
        self._queue.add(flow, [Kind(cost=header.cost)], first=place)
        self._begin()
        try:
            picture: Picture = await answer
        finally:
            del answer  # an error in it has this frame in its traceback: a cycle that would hold the image
        return picture

    def _begin(self) -> None:
        """Start to decode the next images while there are threads and memory for them."""
        while self._is_open and len(self._running) < self._count:
            job = self._next or self._take()
            self._next = None
            if job is None:
                return
            if job.answer.done():  # nobody waits for it any more
                continue
            taken = sum(running.header.memory_bytes for running in self._running)
            if self._running and taken + job.header.memory_bytes > self._limits.max_decode_bytes:
                self._next = job
                return
            self._running.append(job)
            done = asyncio.get_running_loop().run_in_executor(
                self._threads, self._decode, job.data, job.task, job.label, job.header
            )
            done.add_done_callback(partial(self._finish, job))

    def _take(self) -> _Job | None:
        large = sum(job.header.cost > LARGE_COST for job in self._running)
        is_room = large < max(1, self._count - 1)
        taken = self._queue.take(up_to=None if is_room else LARGE_COST)
        return self._waiting.pop(taken[0][1]) if taken else None

    def _finish(self, job: _Job, done: "asyncio.Future[tuple[Picture, float]]") -> None:
        self._running.remove(job)
        if done.cancelled():  # the decoder was closed
            job.answer.cancel()
            return
        error = done.exception()
        if error is None:
            picture, spent_s = done.result()
            self._latest.append((job.header.cost, spent_s))
        if not job.answer.done():
            if error is not None:
                job.answer.set_exception(error)
            else:
                job.answer.set_result(picture)
        self._begin()

    def _decode(self, data: bytes, task: str | None, label: str, header: Header) -> tuple[Picture, float]:
        began_s = time.monotonic()
        try:
            item = self._prepare(data, task=task, label=label)
        except MemoryError as error:
            raise InputError(f"{label}: needs more memory than there is") from error
        picture = Picture(item=item, width=header.width, height=header.height)
        return picture, time.monotonic() - began_s
