"""Run one tower on a GPU with page-locked buffers, copies on the session's own stream, bound outputs and CUDA graphs.

    reserve -> the caller fills a slot's page-locked memory -> submit -> [upload, run, download] -> rows

The steps in brackets run in one thread per tower, called the lane: onnxruntime keeps captured graphs per calling
thread, and a graph replays into the memory it was captured with, so two runs of one session must not mix. While the
lane waits for the GPU, callers fill the next slots of a ring of buffers; nothing is allocated per call but the rows
that are returned. Copies lie on the same stream as the kernels, in order: a batch of 32 images takes 25 MB, half a
millisecond of PCIe beside tens of milliseconds of compute.

onnxruntime's part: the options enable_cuda_graph and user_compute_stream of the CUDA provider, and gpu_graph_id of a
run, where -1 captures nothing (https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html). A run
with a new id warms up, captures and replays by itself. Arena shrinkage must stay off: it would free memory that CUDA
graphs point into.

Everything here runs on ordinary memory too (`HostMemory`), which is how it is tested without a GPU.
"""

import contextlib
import ctypes
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.batch_policy import Shape

Rows = NDArray[np.float32]

# Slots of the ring: one is filled, one is on the GPU, one is between. More only add latency and memory.
SLOTS = 3
_NO_GRAPH = "-1"
# What `recycle` keeps at most; two batches of 32 images of 512 px are 50 MB.
MOST_IDLE_BYTES = 128 << 20
_ELEMENTS: dict[str, np.dtype[Any]] = {"tensor(int64)": np.dtype(np.int64), "tensor(uint8)": np.dtype(np.uint8)}


class Memory(Protocol):
    """The memory of a lane's buffers and the copies between host and device: `cudart.CudaStream` or `HostMemory`."""

    @property
    def kind(self) -> str:
        """onnxruntime's name of the device."""

    @property
    def index(self) -> int:
        """The device's number."""

    def enter(self) -> None:
        """Prepare the lane's thread; called in it before anything else."""

    def host(self, size_bytes: int) -> NDArray[np.uint8]:
        """Host memory for inputs and outputs, which copies start from or end in."""

    def owns(self, array: NDArray[Any]) -> bool:
        """Whether the array lies in memory that `host` returned."""

    def upload(self, source: NDArray[np.uint8], target: int) -> None:
        """Begin a copy from host memory to an address of the device."""

    def download(self, source: int, target: NDArray[np.uint8]) -> None:
        """Begin a copy from an address of the device to host memory."""

    def wait(self) -> None:
        """Return when all copies and runs that were begun are done."""


class HostMemory:
    """Ordinary memory for tests without a GPU; a copy is done at once."""

    kind, index = "cpu", 0

    def enter(self) -> None:
        """Do nothing."""

    def host(self, size_bytes: int) -> NDArray[np.uint8]:
        """An array of zeros."""
        return np.zeros(size_bytes, np.uint8).view(_Ordinary)

    def owns(self, array: NDArray[Any]) -> bool:
        """Whether the array is a view of one that `host` returned."""
        return isinstance(array, _Ordinary)

    def upload(self, source: NDArray[np.uint8], target: int) -> None:
        """Copy to an address at once."""
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def download(self, source: int, target: NDArray[np.uint8]) -> None:
        """Copy from an address at once."""
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def wait(self) -> None:
        """Do nothing."""


class _Ordinary(np.ndarray[Any, Any]):
    """An array that `HostMemory` made; its views know that too."""


class CaptureGate:
    """Lets any number of runs pass together, and a capture only alone.

    CUDA captures in its global mode: any thread that allocates meanwhile breaks the capture, also a thread of another
    session. So every call that allocates on the GPU or page-locks memory passes this gate.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running, self._is_closed = 0, False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Wait for a capture in progress, then pass."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Close the gate, wait for all that are inside, then pass."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._is_closed = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._running == 0)
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()


GATE = CaptureGate()


@dataclass(slots=True, kw_only=True)
class Slot:
    """One place of the ring. The caller fills `inputs` between `reserve` and `submit`."""

    inputs: NDArray[Any]
    staging: NDArray[np.uint8] | None
    answers: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """Buffers of the device that a run reads and writes, by address, and the run's options."""

    binding: Any
    options: Any
    source: int
    target: int
    kept: tuple[Any, ...]  # the buffers: they live as long as this


class BoundTower:
    """A session with one input and one output, run through a ring of slots.

    `most_items` and `most_rows` bound a batch: elements of the input (tokens, or bytes of pixels), and inputs. Bigger
    batches are divided, which changes no vector. `is_captured` says for which shapes of the input a CUDA graph is
    made, the first time that shape comes. Calling it from several threads at once is safe.
    """

    def __init__(
        self,
        session: Any,
        memory: Memory,
        *,
        most_items: int,
        most_rows: int,
        is_captured: Callable[[Shape], bool],
        slots: int = SLOTS,
    ) -> None:
        (source,), (target,) = session.get_inputs(), session.get_outputs()
        self._session, self._memory, self._is_captured = session, memory, is_captured
        self._input, self._output = source.name, target.name
        self._wanted, self._element, self.dim = tuple(source.shape), _ELEMENTS[source.type], int(target.shape[1])
        self._most_items, self._most_rows = most_items, most_rows
        self._graphs: dict[Shape, _Bound] = {}
        # No id is used twice: a first run that fails after its capture leaves a graph of buffers that were freed.
        self._graph_ids = itertools.count(1)
        self._loose: _Bound | None = None
        self._free: queue.LifoQueue[Slot | None] = queue.LifoQueue()  # last in, first out: its memory is warm
        for _ in range(slots):
            self._free.put(None)  # made when first needed
        self._idle: list[NDArray[Any]] = []
        self._idle_lock = threading.Lock()
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="edgeclip-lane", initializer=memory.enter)

    def run(self, batch: NDArray[Any]) -> Rows:
        """The rows (B, D) float32 of a batch in the graph's own form; ValueError for a batch that the graph cannot
        take.
        """
        self._check(batch.shape)
        step = self.rows_at_once(batch.shape[1:])
        waiting = [self._begin(batch[start : start + step]) for start in range(0, len(batch), step)]
        rows = [future.result() for future in waiting]
        return rows[0] if len(rows) == 1 else np.concatenate([np.empty((0, self.dim), np.float32), *rows])

    def rows_at_once(self, row: Shape) -> int:
        """How many inputs of a shape fit a slot; ValueError for an input that is larger than a slot."""
        items = int(np.prod(row))
        if items > self._most_items:
            raise ValueError(f"an input of shape {row} is larger than the {self._most_items} elements of a slot")
        return max(1, min(self._most_rows, self._most_items // max(1, items)))

    def reserve(self, shape: Shape) -> Slot:
        """A slot whose `inputs` have this shape, to be filled and then given to `submit` or `release`.

        Waits while all slots are in use, which bounds how much is decoded ahead of the GPU.
        """
        self._check(shape)
        if shape[0] > self.rows_at_once(shape[1:]):
            raise ValueError(f"a batch of shape {shape} does not fit a slot")
        slot = self._take()
        try:
            if slot.staging is None:
                slot.staging = self._host(self._most_items * self._element.itemsize)
            size_bytes = int(np.prod(shape)) * self._element.itemsize
            slot.inputs = slot.staging[:size_bytes].view(self._element).reshape(shape)
        except BaseException:
            self._free.put(slot)
            raise
        return slot

    def submit(self, slot: Slot) -> Future[Rows]:
        """Run a filled slot. The slot returns to the ring by itself."""
        try:
            return self._lane.submit(self._execute, slot)
        except BaseException:  # the lane was closed
            self._free.put(slot)
            raise

    def release(self, slot: Slot) -> None:
        """Return a slot to the ring without running it."""
        self._free.put(slot)

    def allocate(self, shape: Shape) -> NDArray[Any]:
        """Page-locked memory for inputs of this shape, which `run` copies to the GPU without another copy; it may be
        reused.

        Inputs in other memory are copied into a slot first. The driver is slow to page-lock memory, so memory that
        was given to `recycle` is returned first.
        """
        with self._idle_lock:
            for at, idle in enumerate(self._idle):
                if idle.shape == shape:
                    return self._idle.pop(at)
        return self._host(int(np.prod(shape)) * self._element.itemsize).view(self._element).reshape(shape)

    def recycle(self, memory: NDArray[Any]) -> None:
        """Keep memory of `allocate` for the next call of it; beyond MOST_IDLE_BYTES the oldest is freed."""
        with self._idle_lock:
            self._idle.append(memory)
            while sum(idle.nbytes for idle in self._idle) > MOST_IDLE_BYTES:
                self._idle.pop(0)

    @property
    def captured(self) -> tuple[Shape, ...]:
        """The shapes that have a CUDA graph so far."""
        return tuple(self._graphs)

    def close(self) -> None:
        """Finish what was submitted and end the lane's thread. Closing twice is harmless."""
        self._lane.shutdown()

    def _begin(self, batch: NDArray[Any]) -> Future[Rows]:
        if self._memory.owns(batch) and batch.dtype == self._element and batch.flags.c_contiguous:
            slot = self._take()
            slot.inputs = batch
            return self.submit(slot)
        slot = self.reserve(batch.shape)
        try:
            np.copyto(slot.inputs, batch)
        except BaseException:
            self.release(slot)
            raise
        return self.submit(slot)

    def _check(self, shape: Shape) -> None:
        fixed = [(found, wanted) for found, wanted in zip(shape, self._wanted, strict=False) if type(wanted) is int]
        if len(shape) != len(self._wanted) or any(found != wanted for found, wanted in fixed):
            raise ValueError(f"an input of shape {tuple(shape)}, wanted {self._wanted}")

    def _take(self) -> Slot:
        slot = self._free.get()
        if slot is not None:
            return slot
        try:
            answers = self._host(self._most_rows * self.dim * 4)
        except BaseException:
            self._free.put(None)
            raise
        return Slot(inputs=answers, staging=None, answers=answers)

    def _host(self, size_bytes: int) -> NDArray[np.uint8]:
        with GATE.together():
            return self._memory.host(size_bytes)

    def _execute(self, slot: Slot) -> Rows:
        """Upload, run, download, wait and copy the rows out; runs in the lane's thread."""
        try:
            shape: Shape = slot.inputs.shape
            if self._is_captured(shape):
                return self._replay(slot, shape)
            with GATE.together():
                return self._pass(slot, self._rebind(shape))
        finally:
            slot.inputs = slot.answers  # the caller's memory is not held until the slot's next turn
            self._free.put(slot)

    def _replay(self, slot: Slot, shape: Shape) -> Rows:
        if bound := self._graphs.get(shape):
            with GATE.together():
                return self._pass(slot, bound)
        with GATE.alone():
            bound = self._bind_fixed(shape)
            rows = self._pass(slot, bound)  # warms up, captures, replays
        self._graphs[shape] = bound
        return rows

    def _pass(self, slot: Slot, bound: _Bound) -> Rows:
        rows = len(slot.inputs)
        answers = slot.answers[: rows * self.dim * 4]
        self._memory.upload(slot.inputs.reshape(-1).view(np.uint8), bound.source)
        self._session.run_with_iobinding(bound.binding, bound.options)
        self._memory.download(bound.target, answers)
        self._memory.wait()
        return np.array(answers).view(np.float32).reshape(rows, self.dim)

    def _bind_fixed(self, shape: Shape) -> _Bound:
        """Buffers for one shape alone, because a captured graph always reads and writes the addresses it was captured
        with.
        """
        source, target = self._device(shape, self._element), self._device((shape[0], self.dim), np.dtype(np.float32))
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, source)
        binding.bind_ortvalue_output(self._output, target)
        return _Bound(
            binding=binding,
            options=_run_options(str(next(self._graph_ids))),
            source=source.data_ptr(),
            target=target.data_ptr(),
            kept=(source, target),
        )

    def _rebind(self, shape: Shape) -> _Bound:
        """The one pair of buffers that all shapes without a CUDA graph share."""
        if self._loose is None:
            source = self._device((self._most_items,), self._element)
            target = self._device((self._most_rows, self.dim), np.dtype(np.float32))
            self._loose = _Bound(
                binding=self._session.io_binding(),
                options=_run_options(_NO_GRAPH),
                source=source.data_ptr(),
                target=target.data_ptr(),
                kept=(source, target),
            )
        loose, where = self._loose, (self._memory.kind, self._memory.index)
        loose.binding.bind_input(self._input, *where, self._element.type, shape, loose.source)
        loose.binding.bind_output(self._output, *where, np.float32, (shape[0], self.dim), loose.target)
        return loose

    def _device(self, shape: Shape, element: np.dtype[Any]) -> Any:
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return make(shape, element.type, self._memory.kind, self._memory.index)


def _run_options(graph_id: str) -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    return options
