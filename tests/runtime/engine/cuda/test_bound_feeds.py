"""A bound graph with several inputs, several outputs and adapters, on ordinary memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeclip.engine.adapters import Adapters
from edgeclip.engine.batch_policy import Shape
from edgeclip.engine.cuda.bound_runs import BoundGraph
from edgeclip.engine.cuda.memory import HostMemory
from edgeclip.errors import BundleError, InputError
from edgeclip.manifest import Manifest
from tests.scenes.adapted_graph import DIM, RANK, adapt, answer, save_graph
from tests.scenes.damage import flip_byte

# float32 beside float64, over the largest value. Measured: 4e-7.
SAME = 5e-6
WANTED = {"lora_a": (DIM, RANK), "lora_b": (RANK, DIM)}
NAMES = (None, "retrieval", "matching")
Feed = dict[str, NDArray[Any]]


class Counting(HostMemory):
    """Memory that counts the bytes that were copied to the device."""

    uploaded = 0

    def upload(self, source: NDArray[np.uint8], target: int) -> None:
        self.uploaded += source.nbytes
        super().upload(source, target)


def is_single(shape: Shape) -> bool:
    return shape[0] == 1 and shape[1] <= 6


@pytest.fixture
def folder(copied_bundle: Path) -> Path:
    """A bundle whose text graph takes ids, positions and adapters."""
    adapt(copied_bundle)
    save_graph(copied_bundle / "text.onnx", has_places=True)
    return copied_bundle


@pytest.fixture
def memory() -> Counting:
    return Counting()


@pytest.fixture
def graph(folder: Path, memory: Counting) -> Iterator[BoundGraph]:
    session = onnxruntime.InferenceSession(folder / "text.onnx", providers=["CPUExecutionProvider"])
    adapters = Adapters(folder, "text", Manifest.read(folder), WANTED)
    bound = BoundGraph(session, memory, most_items=64, most_rows=8, is_captured=is_single, adapters=adapters)
    yield bound
    bound.close()


def feed(count: int, length: int, seed: int = 0) -> Feed:
    draw = np.random.default_rng(seed)
    return {"input_ids": draw.integers(0, 1000, (count, length)), "positions": draw.integers(0, 64, (count, length))}


def worst(found: Feed, wanted: Feed) -> float:
    """The largest difference of any output, over that output's largest value."""
    assert found.keys() == wanted.keys()
    assert all(found[name].shape == wanted[name].shape and found[name].dtype == np.float32 for name in wanted)
    return max(
        float(np.abs(found[name] - wanted[name]).max(initial=0) / np.abs(wanted[name]).max(initial=1e-9))
        for name in wanted
    )


@pytest.mark.parametrize("adapter", NAMES)
@pytest.mark.parametrize(("count", "length"), [(1, 4), (1, 7), (3, 5), (8, 8), (9, 8), (40, 3), (2, 64)])
def test_every_output_is_right(graph: BoundGraph, count: int, length: int, adapter: str | None) -> None:
    """With a CUDA graph or without, in one slot or divided, whichever adapter ran before."""
    batch = feed(count, length)
    for other in NAMES:
        graph.run(batch, other)
    assert worst(graph.run(batch, adapter), answer(batch, adapter)) <= SAME
    swapped = {name: batch[name] for name in reversed(batch)}
    assert worst(graph.run(swapped, adapter), answer(batch, adapter)) <= SAME


def test_a_cuda_graph_is_made_for_a_shape_and_an_adapter(graph: BoundGraph) -> None:
    for adapter in ("retrieval", None, "retrieval", "matching"):
        for length in (4, 5, 4, 7):
            batch = feed(1, length, seed=length)
            assert worst(graph.run(batch, adapter), answer(batch, adapter)) <= SAME
    assert graph.captured == (
        ((1, 4), "retrieval"),
        ((1, 5), "retrieval"),
        ((1, 4), None),
        ((1, 5), None),
        ((1, 4), "matching"),
        ((1, 5), "matching"),
    )


def test_an_adapter_is_copied_to_the_device_once(graph: BoundGraph, memory: Counting) -> None:
    """What a call uploads is its feed alone."""
    loaded = []
    for adapter in ("retrieval", "matching", "retrieval", None, "matching", None):
        for count in (1, 3):
            before, batch = memory.uploaded, feed(count, 4)
            graph.run(batch, adapter)
            assert memory.uploaded - before == sum(array.nbytes for array in batch.values())
        loaded.append(dict(graph._loaded[adapter]))
    assert loaded[0] == loaded[2] and loaded[1] == loaded[4] and loaded[3] == loaded[5]


def test_threads_get_the_rows_of_their_own_adapter(graph: BoundGraph) -> None:
    """More threads than slots; whole batches and divided ones."""
    work = [(feed(1 + seed % 11, 3 + seed % 5, seed), NAMES[seed % 3]) for seed in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: graph.run(*one), work))
    assert max(worst(a, answer(*one)) for a, one in zip(found, work, strict=True)) <= SAME


def test_no_rows_give_every_output_without_rows(graph: BoundGraph) -> None:
    found = graph.run(feed(0, 4), "retrieval")
    assert {name: array.shape for name, array in found.items()} == {
        "text_embeds": (0, DIM),
        "token_embeds": (0, 4, DIM),
    }


def test_a_slot_is_filled_by_hand_and_given_an_adapter(graph: BoundGraph) -> None:
    batch = feed(2, 5)
    slot = graph.reserve(((2, 5), (2, 5)))
    for name, array in batch.items():
        slot.inputs[name][...] = array
    slot.adapter = "matching"
    assert worst(graph.submit(slot).result(), answer(batch, "matching")) <= SAME
    # The slot returns to the ring without it.
    assert worst(graph.run(batch), answer(batch)) <= SAME


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": np.zeros((1, 4), np.int64)},
        {**feed(1, 4), "token_type_ids": np.zeros((1, 4), np.int64)},
        {**feed(1, 4), "lora_a": np.zeros((DIM, RANK), np.float32)},
        {},
    ],
    ids=["one missing", "one more", "an adapter's", "none"],
)
def test_other_inputs_are_refused(graph: BoundGraph, batch: Feed) -> None:
    with pytest.raises(ValueError, match=r"wanted \['input_ids', 'positions'\]"):
        graph.run(batch)


def test_inputs_that_contradict_each_other_leave_the_ring_whole(graph: BoundGraph) -> None:
    """More often than there are slots."""
    for _ in range(5):
        with pytest.raises(ValueError, match="tokens is 4 and 5"):
            graph.run({"input_ids": feed(2, 4)["input_ids"], "positions": feed(2, 5)["positions"]})
        with pytest.raises(ValueError, match="batch is 2 and 3"):
            graph.run({"input_ids": feed(2, 4)["input_ids"], "positions": feed(3, 4)["positions"]})
    assert worst(graph.run(feed(2, 4)), answer(feed(2, 4))) <= SAME


def test_an_adapter_that_fails_leaves_the_ring_whole(graph: BoundGraph, folder: Path) -> None:
    """Captured shapes and others, more often than there are slots; nothing of it is kept."""
    flip_byte(folder / "matching.adapter.npz", 300)
    for count in (1, 2, 1, 2):
        with pytest.raises(InputError, match="adapter is 'x'"):
            graph.run(feed(count, 4), "x")
        with pytest.raises(BundleError, match="is not what was exported"):
            graph.run(feed(count, 4), "matching")
    assert graph.captured == ()
    assert worst(graph.run(feed(1, 4), "retrieval"), answer(feed(1, 4), "retrieval")) <= SAME
