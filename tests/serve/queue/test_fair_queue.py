"""Batches are of one kind, requests take turns by what they cost, and nothing is lost or starved."""

import numpy as np
import pytest

from edgeclip.engine.batch_policy import BatchPolicy, Kind
from edgeclip.serve.queue.fair_queue import FairQueue


def texts(*lengths: int) -> list[Kind]:
    return [Kind(cost=length, alike=length) for length in lengths]


def queue(*, max_batch: int = 100, token_budget: int = 64) -> FairQueue:
    return FairQueue(BatchPolicy(tokens=token_budget, images=max_batch, max_batch=max_batch).rows)


def test_nothing_waits_nothing_is_taken() -> None:
    assert queue().take() == []


def test_texts_of_one_length_share_a_batch_up_to_the_budget_and_the_count() -> None:
    waiting = queue(token_budget=64)
    waiting.add(0, texts(*[16] * 5, 32))
    assert waiting.take() == [(0, index) for index in range(4)]
    assert waiting.take() == [(0, 4)]
    assert waiting.take() == [(0, 5)]
    few = queue(max_batch=2)
    few.add(0, texts(1, 1, 1))
    assert [len(few.take()) for _ in range(2)] == [2, 1]


def test_a_text_longer_than_the_budget_goes_alone() -> None:
    waiting = queue(token_budget=64)
    waiting.add(0, texts(8192, 8192))
    assert waiting.take() == [(0, 0)]


def test_requests_share_a_batch() -> None:
    waiting = queue()
    waiting.add(0, texts(16))
    waiting.add(1, texts(16))
    assert waiting.take() == [(0, 0), (1, 0)]


def test_masked_texts_share_with_none_but_their_like() -> None:
    waiting = queue()
    waiting.add(0, [Kind(cost=4, alike=(4, False)), Kind(cost=4, alike=(4, True))])
    assert [waiting.take(), waiting.take()] == [[(0, 0)], [(0, 1)]]


def test_a_single_text_is_next_however_many_wait_before_it() -> None:
    waiting = queue()
    waiting.add(0, texts(*[16] * 2000))
    for _ in range(10):
        waiting.take()
    waiting.add(1, texts(12))
    assert waiting.take() == [(1, 0)]


def test_a_stream_of_single_texts_does_not_starve_a_large_request() -> None:
    """Each round one request comes and one text is served."""
    waiting = queue(max_batch=1)
    waiting.add(0, texts(*[16] * 100))
    served = []
    for number in range(1, 101):
        waiting.add(number, texts(16))
        served += [request for request, _ in waiting.take()]
    assert served.count(0) >= 5
    gaps = np.diff([place for place, request in enumerate(served) if request == 0])
    assert gaps.max() < 60


def test_requests_get_equal_tokens_not_equal_batches() -> None:
    """While both wait: one of long texts, one of short ones."""
    waiting = queue(max_batch=1)
    waiting.add(0, texts(*[64] * 50))
    waiting.add(1, texts(*[16] * 200))
    tokens = {0: 0, 1: 0}
    for _ in range(100):
        ((request, _),) = waiting.take()
        tokens[request] += 64 if request == 0 else 16
    assert abs(tokens[0] - tokens[1]) <= 64


def test_the_shorter_of_two_that_came_together_is_first() -> None:
    waiting = queue()
    waiting.add(0, texts(512))
    waiting.add(1, texts(16))
    assert waiting.take() == [(1, 0)]


def test_depth_and_cost_follow_what_is_taken_and_removed() -> None:
    waiting = queue()
    waiting.add(0, texts(16, 16, 32))
    waiting.add(1, texts(8))
    assert (waiting.depth, waiting.cost) == (4, 72)
    assert waiting.take() == [(1, 0)]
    assert waiting.take() == [(0, 0), (0, 1)]
    assert (waiting.depth, waiting.cost) == (1, 32)
    waiting.remove(0)
    waiting.remove(0)
    assert (waiting.depth, waiting.cost) == (0, 0)
    assert waiting.take() == []


@pytest.mark.parametrize("seed", range(5))
def test_every_item_is_taken_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    waiting = queue(max_batch=int(random.integers(1, 9)))
    wanted, got = set(), []
    for number in range(40):
        lengths = random.integers(1, 20, random.integers(1, 30))
        waiting.add(number, texts(*map(int, lengths)))
        wanted |= {(number, index) for index in range(len(lengths))}
        got += waiting.take()
    while taken := waiting.take():
        got += taken
    assert len(got) == len(wanted) and set(got) == wanted
    assert (waiting.depth, waiting.cost) == (0, 0)


IMAGE = Kind(cost=1, graph="vision", alike=(8, 8, 3))


def finished(waiting: FairQueue, arrivals: dict[int, tuple[int, int]]) -> dict[int, int]:
    """When each request has its last image, counted in images; arrivals are (when, how many), one image a batch."""
    left = {number: count for number, (_, count) in arrivals.items()}
    done: dict[int, int] = {}
    now = 0
    while len(done) < len(arrivals):
        for number, (when, count) in arrivals.items():
            if when == now:
                waiting.add(number, [IMAGE] * count)
        now += 1
        for number, _ in waiting.take():
            left[number] -= 1
            if not left[number]:
                done[number] = now
    return done


def images(quantum: int) -> FairQueue:
    return FairQueue(BatchPolicy(tokens=64, images=1).rows, quantum=quantum)


def test_equal_requests_are_answered_one_after_another_and_not_all_at_the_end() -> None:
    four = dict.fromkeys(range(4), (0, 8))
    assert list(finished(images(8), four).values()) == [8, 16, 24, 32]
    assert list(finished(images(0), four).values()) == [29, 30, 31, 32]


def test_a_single_image_goes_between_those_of_a_request_that_has_begun() -> None:
    arrivals = {0: (0, 8), 1: (0, 8), 2: (3, 1)}
    assert finished(images(8), arrivals) == {0: 9, 1: 17, 2: 4}


def test_a_request_of_more_than_a_packet_shares() -> None:
    assert finished(images(8), {0: (0, 64), 1: (0, 12)}) == {0: 76, 1: 20}


@pytest.mark.parametrize("seed", range(20))
def test_packets_answer_nobody_later_than_turns_do_by_more_than_a_packet(seed: int) -> None:
    random = np.random.default_rng(seed)
    arrivals = {number: (int(random.integers(0, 100)), int(random.integers(1, 24))) for number in range(12)}
    arrivals[0] = (0, arrivals[0][1])
    packets, turns = finished(images(8), arrivals), finished(images(0), arrivals)
    assert all(packets[number] <= turns[number] + 8 for number in arrivals)
    waited = [sum(done[number] - when for number, (when, _) in arrivals.items()) for done in (packets, turns)]
    assert waited[0] <= waited[1]


def test_a_stream_of_single_images_does_not_starve_a_packet() -> None:
    """One comes for each that is served: by turns between two, eight images take sixteen, and the running one."""
    arrivals = {0: (0, 8)} | {number: (number, 1) for number in range(1, 60)}
    assert finished(images(8), arrivals)[0] <= 24
