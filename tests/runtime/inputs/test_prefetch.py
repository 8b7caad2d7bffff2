"""Images come out in their order, a few ahead and no more, and no thread outlives what went wrong."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.families.family import stack
from edgeclip.inputs.prefetch import Pixels, count_slots, stage_images

SHAPE = (2, 3, 3)
ONE_IMAGE = BatchPolicy(tokens=1, images=1)


def pixels_of(index: int) -> Pixels:
    """What image `index` looks like, up to 65535."""
    return (
        np.full(SHAPE, index % 256, np.uint8)
        + np.array(index // 256, np.uint8) * np.eye(3, dtype=np.uint8)[:2, :, None]
    )


def filling(make: Callable[[int], Pixels]) -> Callable[[int, Pixels], Pixels]:
    """A function that writes image `index` into a row of a buffer and returns that row."""

    def prepare(index: int, row: Pixels) -> Pixels:
        row[...] = make(index)
        return row

    return prepare


def staged(
    count: int,
    batch_size: int | None = None,
    threads: int = 3,
    prepare: Callable[[int], Pixels] = pixels_of,
    pause: Callable[[], None] = lambda: None,
) -> list[tuple[range, Pixels]]:
    """Everything that comes out, copied while it is valid; `pause` is the time that the graph takes."""
    found = []
    batches = list(ONE_IMAGE.plan_images(count, batch_size))
    with contextlib.closing(stage_images(batches, filling(prepare), SHAPE, threads)) as ahead:
        for batch, rows in ahead:
            pause()
            pixels = stack(rows)
            assert pixels.flags.c_contiguous and np.shares_memory(pixels, rows[0])  # neighbouring rows of one buffer
            found.append((batch, pixels.copy()))
    return found


def image_threads() -> int:
    return sum(thread.name.startswith("edgeclip-images") for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("batches", "batch_size", "threads", "slots"),
    [(100, 1, 1, 2), (100, 1, 2, 3), (100, 1, 64, 65), (100, 32, 2, 2), (100, 32, 64, 3), (1, 8, 4, 1), (0, 1, 2, 0)],
)
def test_a_buffer_is_computed_on_and_every_thread_has_an_image(
    batches: int, batch_size: int, threads: int, slots: int
) -> None:
    assert count_slots(batches, batch_size, threads) == slots


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(("count", "batch_size"), [(0, None), (1, None), (2, None), (300, None), (300, 7), (5, 99)])
def test_every_image_comes_in_its_place(count: int, batch_size: int | None, threads: int) -> None:
    """Though they are ready in any order, and the buffers are used again and again."""
    pauses = np.random.default_rng(count + threads).random(count + 1) * 2e-3

    def prepare(index: int) -> Pixels:
        time.sleep(pauses[index])
        return pixels_of(index)

    found = staged(count, batch_size, threads, prepare)
    assert [batch for batch, _ in found] == list(ONE_IMAGE.plan_images(count, batch_size))
    for batch, pixels in found:
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, [pixels_of(index) for index in batch])


@pytest.mark.parametrize(("batch_size", "threads"), [(None, 1), (None, 3), (4, 3), (4, 9)])
def test_only_a_few_are_made_ahead(batch_size: int | None, threads: int) -> None:
    """However many there are: never more than the buffers hold, whether the graph is slow or quick."""
    started, done = [], []

    def prepare(index: int) -> Pixels:
        started.append(index)
        return pixels_of(index)

    def run_graph() -> None:
        time.sleep(1e-3)
        size = batch_size or 1
        assert max(started) < (len(done) + count_slots(99, size, threads)) * size
        done.append(1)

    staged(40, batch_size, threads, prepare, run_graph)
    assert sorted(started) == list(range(40))


def test_a_buffer_is_left_alone_until_the_next_batch_is_asked_for() -> None:
    """The slowest graph still finds its own images in it."""
    batches = list(ONE_IMAGE.plan_images(20, 2))
    with contextlib.closing(stage_images(batches, filling(pixels_of), SHAPE, 4)) as ahead:
        for batch, rows in ahead:
            time.sleep(5e-3)
            np.testing.assert_array_equal(rows, [pixels_of(index) for index in batch])


@pytest.mark.parametrize("taken", [0, 2, 13])
def test_buffers_are_made_once_and_given_back(taken: int) -> None:
    """However many batches were taken; those that nobody asked for were never made."""
    made: list[tuple[int, ...]] = []
    given_back: list[Pixels] = []

    def allocate(shape: tuple[int, ...]) -> Pixels:
        made.append(shape)
        return np.empty(shape, np.uint8)

    batches = list(ONE_IMAGE.plan_images(50, 4))
    staging = stage_images(batches, filling(pixels_of), SHAPE, 3, allocate, given_back.append)
    with contextlib.closing(staging) as ahead:
        owners = {id(row.base) for _, rows in itertools.islice(ahead, taken) for row in rows}
        assert not given_back or taken == len(batches)
    assert made == [(4, *SHAPE)] * (2 if taken else 0)
    assert {id(buffer) for buffer in given_back} == owners and len(given_back) == len(made)


def test_a_buffer_that_cannot_be_made_gives_the_others_back() -> None:
    made: list[Pixels] = []
    given_back: list[Pixels] = []

    def allocate(shape: tuple[int, ...]) -> Pixels:
        if made:
            raise MemoryError
        made.append(np.empty(shape, np.uint8))
        return made[-1]

    batches = list(ONE_IMAGE.plan_images(50, 4))
    with pytest.raises(MemoryError):
        next(stage_images(batches, filling(pixels_of), SHAPE, 3, allocate, given_back.append))
    assert [id(buffer) for buffer in given_back] == [id(buffer) for buffer in made]
    assert image_threads() == 0


def test_threads_work_at_once() -> None:
    """Four wait for each other, which one alone would do for ever."""
    together = threading.Barrier(4, timeout=20)

    def prepare(index: int) -> Pixels:
        together.wait()
        return pixels_of(index)

    assert len(staged(8, None, 4, prepare)) == 8


@pytest.mark.parametrize("batch_size", [None, 3, 100])
def test_the_first_that_fails_is_told_whichever_fails_first(batch_size: int | None) -> None:
    seen = threading.Event()

    def prepare(index: int) -> Pixels:
        if index == 7:
            seen.set()
            raise ValueError("image 7")
        if index == 5:
            assert seen.wait(20)  # it fails later
            raise ValueError("image 5")
        return pixels_of(index)

    with pytest.raises(ValueError, match="image 5"):
        staged(30, batch_size, 4, prepare)
    assert image_threads() == 0


def test_what_came_before_a_failure_came() -> None:
    def prepare(index: int) -> Pixels:
        if index == 4:
            raise ValueError
        return pixels_of(index)

    found = []
    ahead = stage_images(list(ONE_IMAGE.plan_images(10, None)), filling(prepare), SHAPE, 2)
    with pytest.raises(ValueError), contextlib.closing(ahead):  # noqa: PT011
        found.extend(batch.start for batch, _ in ahead)
    assert found == [0, 1, 2, 3]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_no_thread_and_no_work_is_left_when_the_graph_stops(interruption: type[BaseException]) -> None:
    """Ctrl-C arrives there: the thread that computes is the caller's."""
    started: list[int] = []

    def prepare(index: int) -> Pixels:
        started.append(index)
        time.sleep(2e-3)
        return pixels_of(index)

    def run_graph() -> None:
        raise interruption

    with pytest.raises(interruption):
        staged(1000, None, 3, prepare, run_graph)
    assert image_threads() == 0
    assert len(started) <= count_slots(1000, 1, 3)
