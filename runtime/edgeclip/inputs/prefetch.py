"""Decode and resize images in threads ahead of the graph, into buffers that are reused.

While the graph computes one batch, threads fill the next ones. Pillow releases the interpreter's lock. On a GPU,
decoding and computing therefore do not compete; on a CPU decoding takes its share of the cores, where it would
otherwise leave all but one of them idle. The number of threads alone decides how many images are decoded ahead: a
folder of 10,000 photos never has more than a few of them in memory.

`edgeclip.inputs.images` decodes an image; the model's family makes an item of it.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import DeviceError

Pixels = NDArray[np.uint8]
_Prepared = TypeVar("_Prepared")


def count_slots(batches: int, batch_size: int, threads: int) -> int:
    """The number of staging buffers of `batch_size` images: one for the graph, and enough for an image per thread."""
    return min(batches, 1 + math.ceil(threads / batch_size))


def stage_images(
    batches: Sequence[range],
    prepare: Callable[[int, Pixels], _Prepared],
    shape: tuple[int, ...],
    threads: int,
    allocate: Callable[[tuple[int, ...]], Pixels] = lambda shape: np.empty(shape, np.uint8),
    recycle: Callable[[Pixels], None] = lambda buffer: None,
) -> Generator[tuple[range, list[_Prepared]]]:
    """Yield the batches in order, each with what was prepared of its images.

    The pixels of a batch are neighbouring rows of one buffer.
    `prepare(index, row)` writes the pixels of one image into a row of this `shape`, and returns what is yielded of
    it; it is called from `threads` threads at once. A row is valid until the next batch is asked for: then its buffer
    is filled anew. `allocate` makes the buffers, (B, *shape), where
    ordinary memory will not do, and `recycle` gets each buffer when no thread fills it any more.

    Raises the error of the first image that failed, in the order of the images, whichever thread met it first. Close
    it (`contextlib.closing`), and no thread is left, whatever happened. In a forked child, which has none of the
    threads, the next batch is a DeviceError.
    """
    size = max(map(len, batches), default=1)
    slots: list[Pixels] = []

    process = os.getpid()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="edgeclip-images")
    try:
        for _ in range(count_slots(len(batches), size, threads)):  # when one finds no memory, the others go back
            slots.append(allocate((size, *shape)))
        started: deque[list[Future[_Prepared]]] = deque()
        ahead = 0
        for number, batch in enumerate(batches):
            # The slot of the batch before this one is free now: its buffer was given back.
            while ahead < min(len(batches), number + len(slots)):
                slot = slots[ahead % len(slots)]
                started.append([pool.submit(prepare, index, slot[row]) for row, index in enumerate(batches[ahead])])
                ahead += 1
            yield batch, [image.result() for image in started.popleft()]
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
