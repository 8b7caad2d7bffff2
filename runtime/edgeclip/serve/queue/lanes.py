"""A lane per graph: a bounded queue and its worker, so that a bulk image job delays no text.

The event loop submits and awaits; the graph's runs happen in the lane's own thread. No timer holds anything back: an
idle lane runs what comes at once, and what came while a batch ran makes the next ones
(`edgeclip.serve.queue.fair_queue`). On two cores a timer could only add its own wait, for the GEMMs of a batch of one
are compute bound already.

A run cannot be stopped, and one text of 8192 tokens is as long as hundreds of queries. So a second worker runs what
the policy calls long, one at a time, through the same session: onnxruntime's runs share its threads, and the thread
that calls takes part in the work, so a short text always has at least its own. A session of its own for long texts
was no quicker for the short ones and would hold an int8 graph's weights twice.

Where another graph follows, an item's outputs are its input there, megabytes for a page. A lane hands them on at once
and takes no more while too much of that is there. For the next graph they have been admitted, so they are not
refused, and they are no short texts, so the worker of long ones runs them.

A request that times out or whose client goes away takes its queued items with it; a batch that runs is finished and
its rows for that request dropped. The worker outlives every failure of the graph.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from edgeclip.engine.batch_policy import BatchPolicy, Kind, kind_of
from edgeclip.engine.unit_vectors import Vectors
from edgeclip.errors import InputError
from edgeclip.families.family import Item
from edgeclip.manifest import FIRST_GRAPH, Space
from edgeclip.serve.errors import log_bug
from edgeclip.serve.queue.calls import HandOn, LaneAnswer, LaneCall
from edgeclip.serve.queue.fair_queue import FairQueue
from edgeclip.serve.queue.thread_priority import lower_this_thread

# How much of the throughput's record one more batch leaves standing, so that it tells of the last 20 or so.
_DECAY = 0.95
_UNKNOWN_RETRY_S = 1.0
_LEAST_RETRY_S = 0.1
_CLOSE_S = 30.0
# A long text has what the others leave of the cores, so its run may take longer before it counts as stuck.
_LONG_PATIENCE = 4
_OUT_OF_MEMORY = ("failed to allocate", "out of memory", "bad_alloc", "bad allocation", "allocation failed")

_log = logging.getLogger(__name__)


class QueueFull(Exception):  # noqa: N818 - a state of the lane, not a fault
    """Raised where the queue has no room now; at the lane's pace there is some after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class TimedOut(Exception):  # noqa: N818
    """Raised for a request that was not answered in its time; its waiting items are gone."""


class LaneFailed(Exception):  # noqa: N818
    """Raised where the graph failed on the request, or the lane is closed. `__cause__` is the reason, for the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """`max_queued` items wait at most; a batch that runs longer than `wedged_s` makes the lane wedged.

    No batch begins while what was handed on to the next graph, and is not computed there, has `most_ahead_bytes`.
    """

    max_queued: int
    wedged_s: float
    most_ahead_bytes: int = 1

    def __post_init__(self) -> None:
        if min(self.max_queued, self.most_ahead_bytes) < 1 or not self.wedged_s > 0:
            raise InputError(f"{self}: wanted all of them positive")


class RunBatch(Protocol):
    """Runs a batch of one kind, as `Encoder.run_batch`."""

    def __call__(self, items: Sequence[Item], /, *, space: Space) -> Vectors | list[Item]:
        """The vectors of the items, (B, D) or (B, T, D) by the space, or for each the item of the next graph."""


class LaneObserver(Protocol):
    """Notes every batch, in the event loop, once its answers are on their way."""

    def batch(self, size: int, waits_s: Sequence[float], compute_s: float, *, cost: int) -> None:
        """`size` items of this `cost` together, which had waited so long, were computed; `compute_s` includes what a
        split cost.
        """


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A thread and its state. It takes items that cost more than `above` and up to `up_to`; those that a graph handed
    on count as long ones.
    """

    name: str
    niceness: int
    above: int = 0
    up_to: int | None = None
    patience_s: float
    # A batch, or None to look into the queue. In C, where a Condition wakes by Python.
    wake: "SimpleQueue[_Batch | None]" = field(default_factory=SimpleQueue)
    is_idle: bool = False
    running_since_s: float | None = None

    def takes(self, kind: Kind) -> bool:
        """Whether the worker takes items of this kind."""
        if kind.is_handed_on:
            return self.up_to is None
        return self.above < kind.cost and (self.up_to is None or kind.cost <= self.up_to)


# Items, each by its request and its place there.
_Batch = list[tuple[LaneCall, int]]
_Outcome = Vectors | list[Item] | BaseException


class _Pace:
    """The recent pace: seconds for the cost of items."""

    def __init__(self) -> None:
        self._seconds = self._cost = 0.0

    def add(self, cost: int, seconds: float) -> None:
        self._seconds = self._seconds * _DECAY + seconds
        self._cost = self._cost * _DECAY + cost

    def seconds(self, cost: float) -> float | None:
        """The seconds that this cost will take; None when nothing was ever computed."""
        return cost * self._seconds / self._cost if self._cost else None


class Lane:
    """One graph's queue and its workers. Used from the event loop that started it.

    `run` gets a batch of items of one kind, at most as many as `policy` allows, always in the lane's threads: in two
    of them at once where the policy has long texts. `niceness` (Linux) lowers the thread, and with it the threads of
    a graph that is loaded by `run`: to have them lowered, load it nowhere else. `long_niceness` lowers the thread of
    long texts alone. Requests that cost no more than `quantum` are served undivided (`FairQueue`).
    """

    def __init__(
        self,
        graph: str,
        run: RunBatch,
        *,
        policy: BatchPolicy,
        limits: LaneLimits,
        observer: LaneObserver | None = None,
        niceness: int = 0,
        long_niceness: int = 0,
        quantum: int = 0,
    ) -> None:
        self.graph = graph
        self._run, self._limits, self._observer = run, limits, observer
        self._lock = threading.Lock()  # guards the queue, the requests and the flags; held for microseconds
        self._queue = FairQueue(policy.rows, quantum=quantum)
        self._requests: dict[int, LaneCall] = {}
        self._numbers = itertools.count()
        self._pace = _Pace()
        self._is_open = False
        self._ahead_bytes = 0
        long, wedged_s = policy.long_tokens if graph == FIRST_GRAPH["text"] else None, limits.wedged_s
        self._workers = [_Worker(name=graph, niceness=niceness, up_to=long, patience_s=wedged_s)]
        if long is not None:
            patience_s = _LONG_PATIENCE * wedged_s
            self._workers.append(
                _Worker(name=f"long-{graph}", niceness=long_niceness, above=long, patience_s=patience_s)
            )
        self._threads: list[threading.Thread] = []

    @property
    def depth(self) -> int:
        """The number of items that wait; those of a running batch do not."""
        return self._queue.depth

    @property
    def is_wedged(self) -> bool:
        """Whether a batch has run for longer than any should."""
        now_s = time.monotonic()
        return any(
            (since_s := worker.running_since_s) is not None and now_s - since_s > worker.patience_s
            for worker in self._workers
        )

    async def start(self) -> None:
        """Take work from now on."""
        assert not self._threads, "a lane starts once"
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._is_open, self._left = True, len(self._workers)
        for worker in self._workers:
            # A daemon, for a wedged device must not keep the process from ending.
            thread = threading.Thread(target=self._work, args=(worker,), name=f"edgeclip-{worker.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    async def close(self, *, within_s: float = _CLOSE_S) -> None:
        """Take no more work, and finish what was accepted; what is not done `within_s` fails. Harmless twice."""
        with self._lock:
            self._is_open = False
        for worker in self._workers:
            worker.wake.put(None)
        if not self._threads:
            return
        try:
            async with asyncio.timeout(within_s):
                await self._ended.wait()
        except TimeoutError:
            with self._lock:
                left = list(self._requests)
                for number in left:
                    self._queue.remove(number)
            for number in left:
                self._requests[number].settle(LaneFailed("the service is shutting down"))

    async def submit(
        self,
        items: list[Item],
        *,
        space: Space = "single",
        timeout_s: float | None = None,
        hand_on: HandOn | None = None,
        is_handed_on: bool = False,
    ) -> LaneAnswer:
        """The graph's answer to items, which are all of this lane's graph, in a space.

        `items` is emptied of what is computed. Where another graph follows, its items go to `hand_on`, in the event
        loop; a call of that graph's lane has `is_handed_on`, and finds its queue never full.

        Raises QueueFull, TimedOut, LaneFailed; InputError for no items, or more than the queue will ever hold.
        Cancelling it removes the items that wait.
        """
        if not 1 <= len(items) <= self._limits.max_queued:
            raise InputError(f"found {len(items)} inputs, wanted 1 to {self._limits.max_queued} at once")
        kinds = [kind_of(item, space, is_handed_on=is_handed_on) for item in items]
        with self._lock:
            if not self._is_open:
                raise LaneFailed("the service is shutting down")
            excess = self._queue.depth + len(items) - self._limits.max_queued
            if excess > 0 and not is_handed_on:
                raise QueueFull(self._room_after_s(excess))
            number = next(self._numbers)
            request = LaneCall(
                items=items,
                space=space,
                future=self._loop.create_future(),
                since_s=time.monotonic(),
                hand_on=hand_on,
                missing=len(items),
            )
            self._requests[number] = request
            idle = self._idle_for(kinds[0]) if len(items) == 1 and not self._queue.depth else None
            if idle is not None:  # a lone text: nobody waits who would have to be asked
                idle.is_idle, idle.running_since_s = False, request.since_s
                idle.wake.put([(request, 0)])
            else:
                self._queue.add(number, kinds)
                self._wake(kinds)
        try:
            if timeout_s is None:
                return await request.future
            async with asyncio.timeout(timeout_s):
                return await request.future
        except TimeoutError as error:
            raise TimedOut(f"not answered in {timeout_s:g} s") from error
        finally:
            with self._lock:
                self._queue.remove(number)
                del self._requests[number]

    def _idle_for(self, kind: Kind) -> _Worker | None:
        """An idle worker that takes this kind now. The caller holds the lock."""
        if self._ahead_bytes >= self._limits.most_ahead_bytes:
            return None
        for worker in self._workers:
            if worker.is_idle and worker.takes(kind):
                return worker
        return None

    def _wake(self, kinds: Sequence[Kind]) -> None:
        """Wake the idle workers that take some of these kinds. The caller holds the lock."""
        for worker in self._workers:
            if worker.is_idle and any(map(worker.takes, kinds)):
                worker.is_idle = False
                worker.wake.put(None)  # it takes longer to wake than the loop's thread to have nothing else to do

    def _room_after_s(self, excess: int) -> float:
        """The seconds until `excess` items of the queue are computed, if they are as long as the others."""
        seconds = self._pace.seconds(self._queue.cost * excess / max(1, self._queue.depth))
        return _UNKNOWN_RETRY_S if seconds is None else max(_LEAST_RETRY_S, seconds)

    def _work(self, worker: _Worker) -> None:
        """Run batches until the lane ends. The loop settles them, because this thread would hold the interpreter."""
        if is_lowered := worker.above == 0:
            lower_this_thread(worker.niceness)
        batch = self._take(worker)
        while batch is not None:
            if not batch:
                batch = worker.wake.get() or self._take(worker)
                continue
            began_s = time.monotonic()
            outcomes = self._compute(batch)
            compute_s = time.monotonic() - began_s
            cost = sum(max(1, request.items[index].tokens) for request, index in batch)
            if not is_lowered:  # not before: that batch may have loaded the graph, whose threads serve all texts
                is_lowered = True
                lower_this_thread(worker.niceness)
            if ahead_bytes := sum(_size_ahead(found) for _, outcome in outcomes for found in _items_of(outcome)):
                with self._lock:
                    self._ahead_bytes += ahead_bytes
            # Before the next batch is taken, which happens while the loop's thread wakes. Finished work is let go.
            self._tell(partial(self._finish, outcomes, began_s, compute_s, cost))
            del outcomes
            batch = self._take(worker)
        self._tell(self._end)

    def _end(self) -> None:
        """Note, in the event loop, that a worker has ended."""
        self._left -= 1
        if not self._left:
            self._ended.set()

    def _take(self, worker: _Worker) -> _Batch | None:
        """The next batch; empty where nothing waits, None once the lane has ended."""
        with self._lock:
            is_held = self._ahead_bytes >= self._limits.most_ahead_bytes
            may = None if len(self._workers) == 1 else lambda request, kind: worker.takes(kind)
            taken = [] if is_held else self._queue.take(may=may)
            if not taken and not is_held and not self._is_open:
                worker.running_since_s = None
                return None
            worker.is_idle = not taken
            worker.running_since_s = time.monotonic() if taken else None
            return [(self._requests[number], index) for number, index in taken]

    def _compute(self, batch: _Batch) -> list[tuple[_Batch, _Outcome]]:
        """The batch's answers, or why there are none; where that helps, of parts of it, each tried once."""
        outcome = self._try(batch)
        try:
            parts = _parts(batch, outcome) if isinstance(outcome, BaseException) else []
        except BaseException as error:  # a worker that dies leaves everyone waiting
            log_bug(_log, f"the {self.graph} lane failed outside its graph", error)
            parts = []
        if len(parts) < 2:
            return [(batch, outcome)]
        return [(part, self._try(part)) for part in parts]

    def _try(self, batch: _Batch) -> _Outcome:
        try:
            space = batch[0][0].space  # it is part of the kind
            found = self._run([request.items[index] for request, index in batch], space=space)
            if len(found) != len(batch):
                raise ValueError(f"the {self.graph} graph gave {len(found)} answers for {len(batch)} inputs")
            return found
        except BaseException as error:  # whatever it is, it is the request's, not the worker's
            return error

    def _tell(self, what: Callable[[], Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:  # the loop was closed, and nobody listens any more
            self._is_open = False

    def _finish(self, outcomes: list[tuple[_Batch, _Outcome]], began_s: float, compute_s: float, cost: int) -> None:
        """Settle the requests that are done, and note the batch afterwards. It runs in the loop's thread."""
        for part, outcome in outcomes:
            if isinstance(outcome, BaseException):
                failure = LaneFailed(f"the {self.graph} graph failed")
                failure.__cause__ = outcome
                for request, _ in part:
                    request.settle(failure)
                continue
            for (request, index), found in zip(part, outcome, strict=True):
                following = None if request.future.done() else request.put(index, found)  # nobody may wait any more
                if isinstance(found, Item):
                    self._leave_after(following, _size_ahead(found))
                if not request.missing:
                    request.settle()
        waits_s = [began_s - request.since_s for part, _ in outcomes for request, _ in part]
        self._loop.call_soon(self._note, waits_s, compute_s, cost)

    def _leave_after(self, following: "asyncio.Future[Any] | None", size: int) -> None:
        """Forget the bytes of an item that was handed on when it is needed no more; at once where it was not."""

        def leave(_: object) -> None:
            with self._lock:
                self._ahead_bytes -= size
                for worker in self._workers:
                    if worker.is_idle:
                        worker.is_idle = False
                        worker.wake.put(None)

        if following is None:
            leave(None)
        else:
            following.add_done_callback(leave)

    def _note(self, waits_s: Sequence[float], compute_s: float, cost: int) -> None:
        self._pace.add(cost, compute_s)
        if self._observer is not None:
            self._observer.batch(len(waits_s), waits_s, compute_s, cost=cost)


def _items_of(outcome: _Outcome) -> list[Item]:
    """The items of the next graph among a graph's answers."""
    return outcome if isinstance(outcome, list) else []


def _size_ahead(item: Item) -> int:
    """The bytes that an item of the next graph holds until that graph has answered."""
    return sum(array.nbytes for array in item.arrays.values())


def _parts(batch: _Batch, error: BaseException) -> list[_Batch]:
    """Divide a failed batch to try it again: in halves for want of memory, else by request: one may be to blame."""
    if _is_out_of_memory(error):
        half = len(batch) // 2
        return [part for part in (batch[:half], batch[half:]) if part]
    by_request: dict[int, _Batch] = {}
    for request, index in batch:
        by_request.setdefault(id(request), []).append((request, index))
    return list(by_request.values())


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)
