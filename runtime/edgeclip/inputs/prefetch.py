"""Decode and resize images in threads ahead of the tower, into buffers that are reused.

While the tower computes one batch, threads fill the next ones. Pillow releases the interpreter's lock. On a GPU,
decoding and computing therefore do not compete; on a CPU decoding takes its share of the cores, where it would
otherwise leave all but one of them idle. The number of threads alone decides how many images are decoded ahead: a
folder of 10,000 photos never has more than a few of them in memory.

`edgeclip.inputs.images` decodes an image, `edgeclip.families.jina_clip` turns it into pixels.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import DeviceError

Pixels = NDArray[np.uint8]


def count_slots(batches: int, batch_size: int, threads: int) -> int:
    """The number of staging buffers of `batch_size` images: one for the tower, and enough for an image per thread."""
    return min(batches, 1 + math.ceil(threads / batch_size))


def stage_images(
    batches: Sequence[range],
    prepare: Callable[[int], Pixels],
    shape: tuple[int, ...],
    threads: int,
    allocate: Callable[[tuple[int, ...]], Pixels] = lambda shape: np.empty(shape, np.uint8),
    recycle: Callable[[Pixels], None] = lambda buffer: None,
) -> Generator[tuple[range, Pixels]]:
    """Yield the batches in order, each with its pixels (len(batch), *shape) uint8.

    `prepare(index)` gives the pixels of one image, `shape` (height, width, 3), and is called from `threads` threads
    at once. The pixels that are yielded are valid until the next batch is asked for: then their buffer is filled
    anew. `allocate` makes the buffers, (B, *shape), where ordinary memory will not do, and `recycle` gets each buffer
    when no thread fills it any more.

    Raises the error of the first image that failed, in the order of the images, whichever thread met it first. Close
    it (`contextlib.closing`), and no thread is left, whatever happened. In a forked child, which has none of the
    threads, the next batch is a DeviceError.
    """
    size = max(map(len, batches), default=1)
    slots: list[Pixels] = []

    def fill(index: int, row: Pixels) -> None:
        row[...] = prepare(index)

    process = os.getpid()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="edgeclip-images")
    try:
        for _ in range(count_slots(len(batches), size, threads)):  # when one finds no memory, the others go back
            slots.append(allocate((size, *shape)))
        started: deque[list[Future[None]]] = deque()
        ahead = 0
        for number, batch in enumerate(batches):
            # The slot of the batch before this one is free now: its buffer was given back.
            while ahead < min(len(batches), number + len(slots)):
                slot = slots[ahead % len(slots)]
                started.append([pool.submit(fill, index, slot[row]) for row, index in enumerate(batches[ahead])])
                ahead += 1
            for image in started.popleft():
                image.result()
            yield batch, slots[number % len(slots)][: len(batch)]
            if os.getpid() != process:
                raise DeviceError(
                    "these images were begun before the process was forked, and the threads that decode them are not "
                    "in the child; begin anew there (iter_images)"
                )
    finally:
        if os.getpid() == process:  # a forked child would wait for threads that it does not have
            pool.shutdown(wait=True, cancel_futures=True)
            for slot in slots:
                recycle(slot)
