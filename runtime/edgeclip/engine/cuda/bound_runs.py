"""Run one graph on a GPU with page-locked buffers, copies on the session's own stream, bound outputs and CUDA graphs.

    reserve -> the caller fills a slot's page-locked memory -> submit -> [upload, run, download] -> rows

The steps in brackets run in one thread per graph, called the lane: onnxruntime keeps captured graphs per calling
thread, and a graph replays into the memory it was captured with, so two runs of one session must not mix. While the
lane waits for the GPU, callers fill the next slots of a ring of buffers; nothing is allocated per call but the rows
that are returned. Copies lie on the same stream as the kernels, in order: a batch of 32 images takes 25 MB, half a
millisecond of PCIe beside tens of milliseconds of compute. The arrays of an adapter are copied to the GPU once and
stay there; a CUDA graph is captured for a shape and an adapter.

onnxruntime's part: the options enable_cuda_graph and user_compute_stream of the CUDA provider, and gpu_graph_id of a
run, where -1 captures nothing (https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html). A run
with a new id warms up, captures and replays by itself. Arena shrinkage must stay off: it would free memory that CUDA
graphs point into.

Everything here runs on ordinary memory too (`HostMemory`), which is how it is tested without a GPU.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.adapters import Adapters
from edgeclip.engine.batch_policy import Shape
from edgeclip.engine.cuda.capture_gate import GATE
from edgeclip.engine.cuda.memory import Memory
from edgeclip.engine.ort import run_options

Arrays = Mapping[str, NDArray[Any]]
# The shapes of a batch's arrays, in the order of the graph's inputs.
Shapes = tuple[Shape, ...]

# Slots of the ring: one is filled, one is on the GPU, one is between. More only add latency and memory.
SLOTS = 3
_NO_GRAPH = "-1"
# What `recycle` keeps at most; two batches of 32 images of 512 px are 50 MB.
MOST_IDLE_BYTES = 128 << 20
_ELEMENTS: dict[str, np.dtype[Any]] = {
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(float)": np.dtype(np.float32),
}


@dataclass(slots=True, kw_only=True)
class Slot:
    """One place of the ring. The caller fills `inputs` between `reserve` and `submit`."""

    inputs: dict[str, NDArray[Any]]
    staging: dict[str, NDArray[np.uint8]] | None
    answers: dict[str, NDArray[np.uint8]]
    adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Port:
    """An input or output of the graph: its element type, and its axes, a name for each that varies."""

    name: str
    element: np.dtype[Any]
    axes: tuple[int | str, ...]

    def shape(self, lengths: Mapping[str, int]) -> Shape:
        """The shape, where the axes that vary have these lengths."""
        return tuple(axis if isinstance(axis, int) else lengths[axis] for axis in self.axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """Buffers of the device that a run reads and writes, by address, and the run's options."""

    binding: Any
    options: Any
    sources: dict[str, int]
    targets: dict[str, int]
    kept: tuple[Any, ...]  # the buffers: they live as long as this


class BoundGraph:
    """A session that is run through a ring of slots.

    `most_items` and `most_rows` bound a batch: elements of each input (tokens, or bytes of pixels), and rows. Bigger
    batches are divided, which changes no vector. `is_captured` says for which shape of the first input a CUDA graph
    is made, the first time that shape comes with an adapter. `adapters` fill the inputs that no call feeds. Calling
    it from several threads at once is safe.
    """

    def __init__(
        self,
        session: Any,
        memory: Memory,
        *,
        most_items: int,
        most_rows: int,
        is_captured: Callable[[Shape], bool],
        adapters: Adapters | None = None,
        slots: int = SLOTS,
    ) -> None:
        self._session, self._memory, self._is_captured, self._adapters = session, memory, is_captured, adapters
        filled = adapters.get(None) if adapters and adapters.are_wanted else {}
        self._inputs = [_port(found) for found in session.get_inputs() if found.name not in filled]
        self._outputs = [_port(found) for found in session.get_outputs()]
        self._most_items, self._most_rows = most_items, most_rows
        self._graphs: dict[tuple[Shapes, str | None], _Bound] = {}
        # No id is used twice: a first run that fails after its capture leaves a graph of buffers that were freed.
        self._graph_ids = itertools.count(1)
        self._loose: _Bound | None = None
        self._loaded: dict[str | None, dict[str, Any]] = {}  # adapters on the device
        self._free: queue.LifoQueue[Slot | None] = queue.LifoQueue()  # last in, first out: its memory is warm
        for _ in range(slots):
            self._free.put(None)  # made when first needed
        self._idle: list[NDArray[Any]] = []
        self._idle_lock = threading.Lock()
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="edgeclip-lane", initializer=memory.enter)

    def run(self, feed: Arrays, adapter: str | None = None) -> dict[str, NDArray[Any]]:
        """Every output for a batch in the graph's own form; ValueError for a batch that the graph cannot take."""
        shapes = self._check(feed)
        rows, step = shapes[0][0], self.rows_at_once(shapes)
        waiting = [
            self._begin({name: array[start : start + step] for name, array in feed.items()}, adapter)
            for start in range(0, rows, step)
        ]
        found = [future.result() for future in waiting]
        if len(found) == 1:
            return found[0]
        lengths = {**self._lengths(shapes), str(self._inputs[0].axes[0]): 0}
        empty = {port.name: np.empty(port.shape(lengths), port.element) for port in self._outputs}
        return {name: np.concatenate([array, *(one[name] for one in found)]) for name, array in empty.items()}

    def rows_at_once(self, shapes: Shapes) -> int:
        """How many rows of arrays with these shapes fit a slot; ValueError for a row that is larger than a slot."""
        items = max(int(np.prod(shape[1:])) for shape in shapes)
        if items > self._most_items:
            raise ValueError(
                f"an input of shape {shapes[0][1:]} is larger than the {self._most_items} elements of a slot"
            )
        return max(1, min(self._most_rows, self._most_items // max(1, items)))

    def reserve(self, shapes: Shapes) -> Slot:
        """A slot whose `inputs` have these shapes, to be filled and then given to `submit` or `release`.

        Waits while all slots are in use, which bounds how much is decoded ahead of the GPU.
        """
        if shapes[0][0] > self.rows_at_once(shapes):
            raise ValueError(f"a batch of shape {shapes[0]} does not fit a slot")
        slot = self._take()
        try:
            if slot.staging is None:
                slot.staging = {
                    port.name: self._host(self._most_items * port.element.itemsize) for port in self._inputs
                }
            for port, shape in zip(self._inputs, shapes, strict=True):
                size_bytes = int(np.prod(shape)) * port.element.itemsize
                slot.inputs[port.name] = slot.staging[port.name][:size_bytes].view(port.element).reshape(shape)
        except BaseException:
            self._put_back(slot)
            raise
        return slot

    def submit(self, slot: Slot) -> "Future[dict[str, NDArray[Any]]]":
        """Run a filled slot. The slot returns to the ring by itself."""
        try:
            return self._lane.submit(self._execute, slot)
        except BaseException:  # the lane was closed
            self._put_back(slot)
            raise

    def release(self, slot: Slot) -> None:
        """Return a slot to the ring without running it."""
        self._put_back(slot)

    def allocate(self, shape: Shape) -> NDArray[Any]:
        """Page-locked memory for the first input, which `run` copies to the GPU without another copy; it may be
        reused.

        Inputs in other memory are copied into a slot first. The driver is slow to page-lock memory, so memory that
        was given to `recycle` is returned first.
        """
        with self._idle_lock:
            for at, idle in enumerate(self._idle):
                if idle.shape == shape:
                    return self._idle.pop(at)
        element = self._inputs[0].element
        return self._host(int(np.prod(shape)) * element.itemsize).view(element).reshape(shape)

    def recycle(self, memory: NDArray[Any]) -> None:
        """Keep memory of `allocate` for the next call of it; beyond MOST_IDLE_BYTES the oldest is freed."""
        with self._idle_lock:
            self._idle.append(memory)
            while sum(idle.nbytes for idle in self._idle) > MOST_IDLE_BYTES:
                self._idle.pop(0)

    @property
    def captured(self) -> tuple[tuple[Shape, str | None], ...]:
        """The shapes of the first input, and the adapters, that have a CUDA graph so far."""
        return tuple((shapes[0], adapter) for shapes, adapter in self._graphs)

    def close(self) -> None:
        """Finish what was submitted and end the lane's thread. Closing twice is harmless."""
        self._lane.shutdown()

    def _begin(self, feed: Arrays, adapter: str | None) -> "Future[dict[str, NDArray[Any]]]":
        elements = {port.name: port.element for port in self._inputs}
        if all(
            self._memory.owns(array) and array.dtype == elements[name] and array.flags.c_contiguous
            for name, array in feed.items()
        ):
            slot = self._take()
            slot.inputs = dict(feed)
        else:
            slot = self.reserve(tuple(feed[port.name].shape for port in self._inputs))
            try:
                for name, array in feed.items():
                    np.copyto(slot.inputs[name], array)
            except BaseException:
                self.release(slot)
                raise
        slot.adapter = adapter
        return self.submit(slot)

    def _check(self, feed: Arrays) -> Shapes:
        """The shapes of a batch's arrays, in the order of the graph's inputs."""
        if set(feed) != {port.name for port in self._inputs}:
            raise ValueError(f"found inputs {sorted(feed)}, wanted {sorted(port.name for port in self._inputs)}")
        shapes = tuple(tuple(feed[port.name].shape) for port in self._inputs)
        for port, shape in zip(self._inputs, shapes, strict=True):
            fixed = [(a, b) for a, b in zip(shape, port.axes, strict=False) if type(b) is int]
            if len(shape) != len(port.axes) or any(found != wanted for found, wanted in fixed):
                raise ValueError(f"an input of shape {shape}, wanted {port.axes}")
        lengths: dict[str, int] = {}
        for port, shape in zip(self._inputs, shapes, strict=True):
            for axis, length in zip(port.axes, shape, strict=True):
                if isinstance(axis, str) and lengths.setdefault(axis, length) != length:
                    raise ValueError(f"the inputs contradict each other: {axis} is {lengths[axis]} and {length}")
        return shapes

    def _lengths(self, shapes: Shapes) -> dict[str, int]:
        """The lengths of the axes that vary, by name."""
        return {
            axis: length
            for port, shape in zip(self._inputs, shapes, strict=True)
            for axis, length in zip(port.axes, shape, strict=True)
            if isinstance(axis, str)
        }

    def _most_elements(self, port: _Port) -> int:
        """The largest number of elements of an output: `most_rows` rows, or `most_items` where it has two axes that
        vary, as a vector for each token has.
        """
        fixed = int(np.prod([axis for axis in port.axes if isinstance(axis, int)]))
        varying = sum(isinstance(axis, str) for axis in port.axes)
        return fixed * (self._most_rows if varying == 1 else self._most_items)

    def _put_back(self, slot: Slot) -> None:
        slot.inputs, slot.adapter = {}, None  # the caller's memory is not held until the slot's next turn
        self._free.put(slot)

    def _take(self) -> Slot:
        slot = self._free.get()
        if slot is not None:
            return slot
        try:
            answers = {
                port.name: self._host(self._most_elements(port) * port.element.itemsize) for port in self._outputs
            }
        except BaseException:
            self._free.put(None)
            raise
        return Slot(inputs={}, staging=None, answers=answers)

    def _host(self, size_bytes: int) -> NDArray[np.uint8]:
        with GATE.together():
            return self._memory.host(size_bytes)

    def _execute(self, slot: Slot) -> dict[str, NDArray[Any]]:
        """Upload, run, download, wait and copy the outputs out; runs in the lane's thread."""
        try:
            shapes: Shapes = tuple(slot.inputs[port.name].shape for port in self._inputs)
            if self._is_captured(shapes[0]):
                return self._replay(slot, shapes)
            with GATE.together():
                return self._pass(slot, shapes, self._rebind(shapes, slot.adapter))
        finally:
            self._put_back(slot)

    def _replay(self, slot: Slot, shapes: Shapes) -> dict[str, NDArray[Any]]:
        if bound := self._graphs.get((shapes, slot.adapter)):
            with GATE.together():
                return self._pass(slot, shapes, bound)
        with GATE.alone():
            bound = self._bind_fixed(shapes, slot.adapter)
            outputs = self._pass(slot, shapes, bound)  # warms up, captures, replays
        self._graphs[shapes, slot.adapter] = bound
        return outputs

    def _pass(self, slot: Slot, shapes: Shapes, bound: _Bound) -> dict[str, NDArray[Any]]:
        lengths = self._lengths(shapes)
        for name, source in bound.sources.items():
            self._memory.upload(slot.inputs[name].reshape(-1).view(np.uint8), source)
        self._session.run_with_iobinding(bound.binding, bound.options)
        answers = {}
        for port in self._outputs:
            size_bytes = int(np.prod(port.shape(lengths))) * port.element.itemsize
            answers[port.name] = slot.answers[port.name][:size_bytes]
            self._memory.download(bound.targets[port.name], answers[port.name])
        self._memory.wait()
        return {
            port.name: np.array(answers[port.name]).view(port.element).reshape(port.shape(lengths))
            for port in self._outputs
        }

    def _bind_fixed(self, shapes: Shapes, adapter: str | None) -> _Bound:
        """Buffers for one shape alone, because a captured graph always reads and writes the addresses it was captured
        with.
        """
        lengths = self._lengths(shapes)
        sources = {
            port.name: self._device(shape, port.element) for port, shape in zip(self._inputs, shapes, strict=True)
        }
        targets = {port.name: self._device(port.shape(lengths), port.element) for port in self._outputs}
        loaded = self._load(adapter)
        binding = self._session.io_binding()
        for name, value in {**sources, **loaded}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in targets.items():
            binding.bind_ortvalue_output(name, value)
        return _Bound(
            binding=binding,
            options=run_options(gpu_graph_id=str(next(self._graph_ids))),
            sources={name: value.data_ptr() for name, value in sources.items()},
            targets={name: value.data_ptr() for name, value in targets.items()},
            kept=(*sources.values(), *targets.values(), loaded),
        )

    def _rebind(self, shapes: Shapes, adapter: str | None) -> _Bound:
        """The one set of buffers that all shapes without a CUDA graph share."""
        if self._loose is None:
            sources = {port.name: self._device((self._most_items,), port.element) for port in self._inputs}
            targets = {port.name: self._device((self._most_elements(port),), port.element) for port in self._outputs}
            self._loose = _Bound(
                binding=self._session.io_binding(),
                options=run_options(gpu_graph_id=_NO_GRAPH),
                sources={name: value.data_ptr() for name, value in sources.items()},
                targets={name: value.data_ptr() for name, value in targets.items()},
                kept=(*sources.values(), *targets.values()),
            )
        loose, where, lengths = self._loose, (self._memory.kind, self._memory.index), self._lengths(shapes)
        for port, shape in zip(self._inputs, shapes, strict=True):
            loose.binding.bind_input(port.name, *where, port.element.type, shape, loose.sources[port.name])
        for name, value in self._load(adapter).items():
            loose.binding.bind_ortvalue_input(name, value)
        for port in self._outputs:
            target = loose.targets[port.name]
            loose.binding.bind_output(port.name, *where, port.element.type, port.shape(lengths), target)
        return loose

    def _load(self, adapter: str | None) -> dict[str, Any]:
        """An adapter's arrays on the device, by the names of the graph's inputs; they stay there."""
        if self._adapters is None or not (self._adapters.are_wanted or adapter is not None):
            return {}
        if adapter not in self._loaded:
            self._loaded[adapter] = {name: self._copied(array) for name, array in self._adapters.get(adapter).items()}
        return self._loaded[adapter]

    def _copied(self, array: NDArray[Any]) -> Any:
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_numpy
        return make(array, self._memory.kind, self._memory.index)

    def _device(self, shape: Shape, element: np.dtype[Any]) -> Any:
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return make(shape, element.type, self._memory.kind, self._memory.index)


def _port(found: Any) -> _Port:
    if found.type not in _ELEMENTS:
        raise ValueError(f"the graph's {found.name} is {found.type}, wanted one of {', '.join(_ELEMENTS)}")
    return _Port(name=found.name, element=_ELEMENTS[found.type], axes=tuple(found.shape))
