"""The ring: right rows whoever calls, whatever fails between; the same code on ordinary memory as on a GPU's."""

import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeclip.engine.batch_policy import Shape
from edgeclip.engine.cuda import bound_runs as binding
from edgeclip.engine.cuda.bound_runs import BoundTower, CaptureGate, HostMemory

# The same texts in other batches; measured 0 to 3e-7.
SAME = 5e-6


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def session(bundle: Path) -> onnxruntime.InferenceSession:
    return open_session(bundle / "text.onnx")


@pytest.fixture
def tower(session: onnxruntime.InferenceSession) -> Iterator[BoundTower]:
    bound = BoundTower(session, HostMemory(), most_items=64, most_rows=8, is_captured=is_single)
    yield bound
    bound.close()


def is_single(shape: Shape) -> bool:
    return shape[0] == 1 and shape[1] <= 6


def ids(count: int, length: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(3, 140, (count, length))


def worst(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    assert found.shape == wanted.shape and found.dtype == np.float32
    return float(np.abs(found - wanted).max(initial=0))


@pytest.mark.parametrize(("count", "length"), [(1, 4), (1, 6), (1, 7), (3, 5), (8, 8), (9, 8), (40, 3), (2, 64)])
def test_rows_are_the_sessions(tower: BoundTower, session: Any, count: int, length: int) -> None:
    """With a graph of its own or without, in one slot or cut into several."""
    batch = ids(count, length)
    for _ in range(2):
        assert worst(tower.run(batch), session.run(None, {"input_ids": batch})[0]) <= SAME


def test_graphs_are_made_for_the_shapes_that_came(tower: BoundTower) -> None:
    for length in (4, 5, 4, 7):
        tower.run(ids(1, length))
    assert tower.captured == ((1, 4), (1, 5))


def test_results_are_the_callers_own(tower: BoundTower) -> None:
    first = tower.run(ids(1, 4))
    before = first.copy()
    tower.run(ids(1, 4, seed=1))
    assert (first == before).all()


def test_threads_get_their_own_rows(tower: BoundTower, session: Any) -> None:
    """More of them than slots, with and without graphs, whole and cut."""
    batches = [ids(1 + seed % 11, 3 + seed % 5, seed) for seed in range(60)]
    wanted = [session.run(None, {"input_ids": batch})[0] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(tower.run, batches))
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
    tower = BoundTower(session, SlowMemory(), most_items=64, most_rows=8, is_captured=is_single, slots=2)
    batches = [ids(1 + seed % 4, 4 + seed % 4, seed) for seed in range(40)]
    wanted = [session.run(None, {"input_ids": batch})[0] for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(tower.run, batches))
    tower.close()
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
    tower = BoundTower(session, FailingMemory(set(range(8))), most_items=64, most_rows=8, is_captured=is_single)
    for number in range(8):
        with pytest.raises(RuntimeError, match="lost"):
            tower.run(ids(1 + number % 2, 4))
    assert tower.captured == ()
    batch = ids(20, 8)
    assert worst(tower.run(batch), session.run(None, {"input_ids": batch})[0]) <= SAME
    tower.close()


def test_a_slot_that_was_not_submitted_is_given_back(tower: BoundTower) -> None:
    for _ in range(10):
        with pytest.raises(TypeError, match="Cannot cast"):
            tower.run(np.array([["word", "word"]]))
        tower.release(tower.reserve((2, 4)))
    assert tower.run(ids(2, 4)).shape == (2, tower.dim)


def test_filling_a_slot_by_hand(tower: BoundTower, session: Any) -> None:
    """Two are filled before the first is asked for."""
    batches = [ids(2, 5, seed) for seed in range(2)]
    futures = []
    for batch in batches:
        slot = tower.reserve(batch.shape)
        slot.inputs[...] = batch
        futures.append(tower.submit(slot))
    for future, batch in zip(futures, batches, strict=True):
        assert worst(future.result(), session.run(None, {"input_ids": batch})[0]) <= SAME


def test_the_lanes_own_memory_is_not_copied_once_more(session: Any) -> None:
    class Watched(HostMemory):
        sources: list[int]

        def upload(self, source: NDArray[np.uint8], target: int) -> None:
            self.sources.append(source.ctypes.data)
            super().upload(source, target)

    memory = Watched()
    memory.sources = []
    tower = BoundTower(session, memory, most_items=64, most_rows=8, is_captured=is_single)
    own = tower.allocate((16, 8))
    own[...] = ids(16, 8)
    assert worst(tower.run(own), session.run(None, {"input_ids": np.asarray(own)})[0]) <= SAME
    assert memory.sources == [own.ctypes.data, own[8:].ctypes.data]
    assert worst(tower.run(own[::2]), session.run(None, {"input_ids": np.asarray(own[::2])})[0]) <= SAME
    assert memory.sources[2] not in (own.ctypes.data, own[8:].ctypes.data)
    tower.close()


def test_memory_that_was_given_back_is_used_again(tower: BoundTower, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who asks for the same shape; no more of it is kept than a limit, the newest."""
    first, other = tower.allocate((2, 8)), tower.allocate((3, 8))
    tower.recycle(first)
    assert tower.allocate((3, 8)) is not other and tower.allocate((2, 8)) is first
    assert tower.allocate((2, 8)) is not first  # it is in use
    monkeypatch.setattr(binding, "MOST_IDLE_BYTES", other.nbytes)
    for memory in (first, other):
        tower.recycle(memory)
    assert tower.allocate((2, 8)) is not first and tower.allocate((3, 8)) is other


def test_a_callers_memory_is_let_go_when_it_was_run(tower: BoundTower) -> None:
    own = tower.allocate((2, 4))
    own[...] = ids(2, 4)
    kept = weakref.ref(own)
    tower.run(own)
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

    tower = BoundTower(Watched(), Broken(), most_items=64, most_rows=8, is_captured=is_single)
    for length in (4, 5):
        with pytest.raises(RuntimeError, match="lost"):
            tower.run(ids(1, length))
    for length in (5, 4, 5):
        tower.run(ids(1, length))
    tower.run(ids(2, 4))
    assert seen == ["1", "2", "3", "4", "3", "-1"]
    tower.close()


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3)])
def test_a_wrong_shape_is_refused(tower: BoundTower, shape: Shape) -> None:
    with pytest.raises(ValueError, match="an input of shape"):
        tower.run(np.zeros(shape, np.int64))


def test_an_input_larger_than_a_slot_is_refused(tower: BoundTower) -> None:
    with pytest.raises(ValueError, match="larger than the 64 elements"):
        tower.run(ids(1, 65))
    with pytest.raises(ValueError, match="does not fit a slot"):
        tower.reserve((9, 4))


def test_no_inputs_are_no_rows(tower: BoundTower) -> None:
    assert tower.run(ids(0, 4)).shape == (0, tower.dim)


def test_pixels_go_the_same_way(bundle: Path) -> None:
    session = open_session(bundle / "vision.onnx")
    size = session.get_inputs()[0].shape[1]
    batch = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    tower = BoundTower(
        session, HostMemory(), most_items=2 * batch[0].size, most_rows=2, is_captured=lambda shape: shape[0] == 2
    )
    assert worst(tower.run(batch), session.run(None, {"pixel_values": batch})[0]) <= SAME
    assert tower.captured == ((2, size, size, 3),)
    with pytest.raises(ValueError, match="wanted"):
        tower.run(batch[:, 1:])
    tower.close()


def test_a_closed_tower_says_so(session: Any) -> None:
    tower = BoundTower(session, HostMemory(), most_items=64, most_rows=8, is_captured=is_single)
    tower.run(ids(1, 4))
    tower.close()
    tower.close()
    for _ in range(5):  # more often than there are slots
        with pytest.raises(RuntimeError, match="shutdown"):
            tower.run(ids(1, 4))


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
