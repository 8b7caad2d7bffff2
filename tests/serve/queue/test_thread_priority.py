"""A thread is lowered alone, what it starts is lowered with it, and neither lane starves the other."""

import asyncio
import hashlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.engine.unit_vectors import Vectors
from edgeclip.families.family import Item
from edgeclip.manifest import Space
from edgeclip.serve.queue.lanes import Lane, LaneLimits
from edgeclip.serve.queue.thread_priority import LEAST_SHARE, MOST_SHARE, lower_this_thread, niceness_for
from tests.scenes.lane_scenes import ids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's own on Linux only")

BLOCK = bytes(1 << 18)
# Of niceness 0 and more: sched_prio_to_weight in the kernel's kernel/sched/core.c.
WEIGHTS = (1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15)


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform == "linux" and niceness() >= 19, reason="there is nothing lower")
def test_a_thread_and_its_own_are_lowered_and_no_other() -> None:
    before = niceness()

    def lowered() -> tuple[bool, int, int]:
        is_lowered = lower_this_thread(3)
        with ThreadPoolExecutor(1) as own:
            return is_lowered, niceness(), own.submit(niceness).result()

    with ThreadPoolExecutor(1) as pool:
        is_lowered, itself, its_own = pool.submit(lowered).result()
    assert is_lowered
    assert itself == its_own == min(19, before + 3)
    assert niceness() == before


def test_zero_does_nothing() -> None:
    before = niceness()
    assert not lower_this_thread(0)
    assert niceness() == before


@pytest.mark.parametrize(
    ("share", "wanted"), [(MOST_SHARE, 0), (0.33, 3), (0.25, 5), (0.2, 6), (0.1, 10), (LEAST_SHARE, 17)]
)
def test_a_share_is_a_niceness_by_the_kernel_s_weights(share: float, wanted: int) -> None:
    assert niceness_for(share) == wanted
    of_weights = WEIGHTS[wanted] / (WEIGHTS[wanted] + WEIGHTS[0])
    assert of_weights == pytest.approx(share, rel=0.15)


@pytest.mark.skipif(sys.platform == "linux" and niceness() > 14, reason="there is no room below")
def test_images_keep_their_share_beside_texts_without_a_pause() -> None:
    """Two lanes on one core, both of them never idle: what each had of it by its thread's own clock.

    Other programs take from both alike, so the bounds are of the share and not of time.
    """
    core = min(os.sched_getaffinity(0))

    class Burner:
        """A graph that computes for 20 ms of its thread's time, with Python's lock released."""

        def __init__(self) -> None:
            self.spent_s = 0.0

        def __call__(self, items: Sequence[Item], /, *, space: Space) -> Vectors:
            os.sched_setaffinity(threading.get_native_id(), {core})
            began_s = time.thread_time()
            while time.thread_time() - began_s < 0.02:
                hashlib.sha256(BLOCK)
            self.spent_s += time.thread_time() - began_s
            return np.ones((len(items), 1), np.float32)

    async def scene() -> tuple[float, float]:
        graphs: dict[str, Burner] = {"text": Burner(), "vision": Burner()}
        limits = LaneLimits(max_queued=1000, wedged_s=60.0)
        one = BatchPolicy(tokens=1, images=1)
        lanes = {
            graph: Lane(
                graph, run, policy=one, limits=limits, niceness=niceness_for(0.25) if graph == "vision" else 0
            )
            for graph, run in graphs.items()
        }
        for lane in lanes.values():
            await lane.start()
        images = asyncio.create_task(lanes["vision"].submit([ids(1, graph="vision")] * 500, timeout_s=100.0))
        text = ids(1)
        await lanes["text"].submit([text], timeout_s=100.0)  # both have begun
        before = graphs["text"].spent_s, graphs["vision"].spent_s
        while graphs["text"].spent_s - before[0] < 1.0:
            await asyncio.gather(*(lanes["text"].submit([text], timeout_s=100.0) for _ in range(5)))
        spent = graphs["text"].spent_s - before[0], graphs["vision"].spent_s - before[1]
        images.cancel()
        await asyncio.gather(images, *(lane.close() for lane in lanes.values()), return_exceptions=True)
        return spent

    texts_s, images_s = asyncio.run(scene())
    assert 0.12 <= images_s / (images_s + texts_s) <= 0.4
