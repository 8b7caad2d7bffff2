"""The ring: right rows whoever calls, whatever fails between; the same code on ordinary memory as on a GPU's."""

import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeclip.engine.batch_policy import Shape
from edgeclip.engine.cuda import bound_runs as binding
from edgeclip.engine.cuda.bound_runs import BoundGraph
from edgeclip.engine.cuda.capture_gate import CaptureGate
from edgeclip.engine.cuda.memory import HostMemory

# The same texts in other batches; measured 0 to 3e-7.
SAME = 5e-6
DIM = 64


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def session(bundle: Path) -> onnxruntime.InferenceSession:
    return open_session(bundle / "text.onnx")


@pytest.fixture
def graph(session: onnxruntime.InferenceSession) -> Iterator[BoundGraph]:
    bound = BoundGraph(session, HostMemory(), most_items=64, most_rows=8, is_captured=is_single)
    yield bound
    bound.close()


def is_single(shape: Shape) -> bool:
    return shape[0] == 1 and shape[1] <= 6


def ids(count: int, length: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(3, 140, (count, length))


def run(graph: BoundGraph, batch: NDArray[Any]) -> NDArray[Any]:
    """The vectors of token ids."""
    return graph.run({"input_ids": batch})["text_embeds"]


def run_plainly(session: Any, batch: NDArray[Any]) -> NDArray[Any]:
    """The session's own vectors of token ids."""
    return session.run(None, {"input_ids": batch})[0]  # type: ignore[no-any-return]


def worst(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    assert found.shape == wanted.shape and found.dtype == np.float32
    return float(np.abs(found - wanted).max(initial=0))


@pytest.mark.parametrize(("count", "length"), [(1, 4), (1, 6), (1, 7), (3, 5), (8, 8), (9, 8), (40, 3), (2, 64)])
def test_rows_are_the_sessions(graph: BoundGraph, session: Any, count: int, length: int) -> None:
    """With a graph of its own or without, in one slot or cut into several."""
    batch = ids(count, length)
    for _ in range(2):
        assert worst(run(graph, batch), run_plainly(session, batch)) <= SAME


def test_graphs_are_made_for_the_shapes_that_came(graph: BoundGraph) -> None:
    for length in (4, 5, 4, 7):
        run(graph, ids(1, length))
    assert graph.captured == (((1, 4), None), ((1, 5), None))


def test_results_are_the_callers_own(graph: BoundGraph) -> None:
    first = run(graph, ids(1, 4))
    before = first.copy()
    run(graph, ids(1, 4, seed=1))
    assert (first == before).all()


def test_threads_get_their_own_rows(graph: BoundGraph, session: Any) -> None:
    """More of them than slots, with and without graphs, whole and cut."""
    batches = [ids(1 + seed % 11, 3 + seed % 5, seed) for seed in range(60)]
    wanted = [run_plainly(session, batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(run, graph), batches))
    assert max(map(worst, found, wanted)) <= SAME


class SlowMemory(HostMemory):
    """Copies that are done only when they are waited for, as a GPU's are; what is overwritten before is seen."""

    def __init__(self) -> None:
        self.begun: list[tuple[Any, ...]] = []

    def upload(self, source: NDArray[np.uint8], target: int) -> None:
        super().upload(source, target)
        self.begun.append((source, bytes(source)))

    def download(self, source: int, target: NDArray[np.uint8]) -> None:
        self.begun.append((source, target))

    def wait(self) -> None:
        time.sleep(0.001)
        for source, other in self.begun:
            if isinstance(source, int):
                super().download(source, other)
            else:
                assert bytes(source) == other, "a slot was filled again while it was copied from"
        self.begun.clear()


def test_a_slot_is_not_used_again_before_it_is_done(session: Any) -> None:
    graph = BoundGraph(session, SlowMemory(), most_items=64, most_rows=8, is_captured=is_single, slots=2)
    batches = [ids(1 + seed % 4, 4 + seed % 4, seed) for seed in range(40)]
    wanted = [run_plainly(session, batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(partial(run, graph), batches))
    graph.close()
    assert max(map(worst, found, wanted)) <= SAME


class FailingMemory(HostMemory):
    """Whose n-th copy fails."""

    def __init__(self, failing: set[int]) -> None:
        self.failing, self.copies = failing, itertools.count()

    def upload(self, source: NDArray[np.uint8], target: int) -> None:
        if next(self.copies) in self.failing:
            raise RuntimeError("lost")
        super().upload(source, target)


def test_after_a_failure_the_ring_is_whole(session: Any) -> None:
    """More failures than slots, in a graph's first run and elsewhere: nothing hangs, later rows are right."""
    graph = BoundGraph(session, FailingMemory(set(range(8))), most_items=64, most_rows=8, is_captured=is_single)
    for number in range(8):
        with pytest.raises(RuntimeError, match="lost"):
            run(graph, ids(1 + number % 2, 4))
    assert graph.captured == ()
    batch = ids(20, 8)
    assert worst(run(graph, batch), run_plainly(session, batch)) <= SAME
    graph.close()


def test_a_slot_that_was_not_submitted_is_given_back(graph: BoundGraph) -> None:
    for _ in range(10):
        with pytest.raises(TypeError, match="Cannot cast"):
            run(graph, np.array([["word", "word"]]))
        graph.release(graph.reserve(((2, 4),)))
    assert run(graph, ids(2, 4)).shape == (2, DIM)


def test_filling_a_slot_by_hand(graph: BoundGraph, session: Any) -> None:
    """Two are filled before the first is asked for."""
    batches = [ids(2, 5, seed) for seed in range(2)]
    futures = []
    for batch in batches:
        slot = graph.reserve((batch.shape,))
        slot.inputs["input_ids"][...] = batch
        futures.append(graph.submit(slot))
    for future, batch in zip(futures, batches, strict=True):
        assert worst(future.result()["text_embeds"], run_plainly(session, batch)) <= SAME


def test_the_lanes_own_memory_is_not_copied_once_more(session: Any) -> None:
    class Watched(HostMemory):
        sources: list[int]

        def upload(self, source: NDArray[np.uint8], target: int) -> None:
            self.sources.append(source.ctypes.data)
            super().upload(source, target)

    memory = Watched()
    memory.sources = []
    graph = BoundGraph(session, memory, most_items=64, most_rows=8, is_captured=is_single)
    own = graph.allocate((16, 8))
    own[...] = ids(16, 8)
    assert worst(run(graph, own), run_plainly(session, np.asarray(own))) <= SAME
    assert memory.sources == [own.ctypes.data, own[8:].ctypes.data]
    assert worst(run(graph, own[::2]), run_plainly(session, np.asarray(own[::2]))) <= SAME
    assert memory.sources[2] not in (own.ctypes.data, own[8:].ctypes.data)
    graph.close()


def test_memory_that_was_given_back_is_used_again(graph: BoundGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for the same shape; no more of it is kept than a limit, the newest."""
    first, other = graph.allocate((2, 8)), graph.allocate((3, 8))
    graph.recycle(first)
    assert graph.allocate((3, 8)) is not other and graph.allocate((2, 8)) is first
    assert graph.allocate((2, 8)) is not first  # it is in use
    monkeypatch.setattr(binding, "MOST_IDLE_BYTES", other.nbytes)
    for memory in (first, other):
        graph.recycle(memory)
    assert graph.allocate((2, 8)) is not first and graph.allocate((3, 8)) is other


def test_a_callers_memory_is_let_go_when_it_was_run(graph: BoundGraph) -> None:
    own = graph.allocate((2, 4))
    own[...] = ids(2, 4)
    kept = weakref.ref(own)
    run(graph, own)
    del own
    assert kept() is None


def test_a_graph_that_failed_when_it_was_made_is_never_asked_for_again(session: Any) -> None:
    """It was captured, and then the copy back failed: its number stands for buffers that are gone."""
    seen: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def run_with_iobinding(self, bound: Any, options: Any) -> None:
            seen.append(options.get_run_config_entry("gpu_graph_id"))
            session.run_with_iobinding(bound, options)

    class Broken(HostMemory):
        left = 2

        def download(self, source: int, target: NDArray[np.uint8]) -> None:
            self.left -= 1
            if self.left >= 0:
                raise RuntimeError("lost")
            super().download(source, target)

    graph = BoundGraph(Watched(), Broken(), most_items=64, most_rows=8, is_captured=is_single)
    for length in (4, 5):
        with pytest.raises(RuntimeError, match="lost"):
            run(graph, ids(1, length))
    for length in (5, 4, 5):
        run(graph, ids(1, length))
    run(graph, ids(2, 4))
    assert seen == ["1", "2", "3", "4", "3", "-1"]
    graph.close()


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3)])
def test_a_wrong_shape_is_refused(graph: BoundGraph, shape: Shape) -> None:
    with pytest.raises(ValueError, match="an input of shape"):
        run(graph, np.zeros(shape, np.int64))


def test_an_input_larger_than_a_slot_is_refused(graph: BoundGraph) -> None:
    with pytest.raises(ValueError, match="larger than the 64 elements of a slot"):
        run(graph, ids(1, 65))
    with pytest.raises(ValueError, match="does not fit a slot"):
        graph.reserve(((9, 4),))


def test_no_inputs_are_no_rows(graph: BoundGraph) -> None:
    assert run(graph, ids(0, 4)).shape == (0, DIM)


def test_pixels_go_the_same_way(bundle: Path) -> None:
    session = open_session(bundle / "vision.onnx")
    size = session.get_inputs()[0].shape[1]
    batch = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    graph = BoundGraph(
        session, HostMemory(), most_items=2 * batch[0].size, most_rows=2, is_captured=lambda shape: shape[0] == 2
    )
    found = graph.run({"pixel_values": batch})["image_embeds"]
    assert worst(found, session.run(None, {"pixel_values": batch})[0]) <= SAME
    assert graph.captured == (((2, size, size, 3), None),)
    with pytest.raises(ValueError, match="wanted"):
        graph.run({"pixel_values": batch[:, 1:]})
    graph.close()


def test_a_closed_graph_says_so(session: Any) -> None:
    graph = BoundGraph(session, HostMemory(), most_items=64, most_rows=8, is_captured=is_single)
    run(graph, ids(1, 4))
    graph.close()
    graph.close()
    for _ in range(5):  # more often than there are slots
        with pytest.raises(RuntimeError, match="shutdown"):
            run(graph, ids(1, 4))


def test_a_capture_is_alone() -> None:
    """With runs before, during and after; none passes while it lasts, and it waits for those that passed."""
    gate, inside, seen = CaptureGate(), 0, []
    lock = threading.Lock()

    def enter(change: int) -> None:
        nonlocal inside
        with lock:
            inside += change

    def run() -> None:
        with gate.together():
            enter(1)
            time.sleep(0.002)
            enter(-1)

    def capture() -> None:
        with gate.alone():
            seen.append(inside)
            time.sleep(0.002)
            seen.append(inside)

    with ThreadPoolExecutor(12) as pool:
        work = [pool.submit(capture if number % 5 == 2 else run) for number in range(60)]
        for one in work:
            one.result(timeout=30)
    assert seen == [0] * 24


def test_the_gate_opens_after_an_error() -> None:
    gate = CaptureGate()
    for way in (gate.alone, gate.together, gate.alone):
        with pytest.raises(KeyError), way():
            raise KeyError
