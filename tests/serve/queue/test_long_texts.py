"""A long text is run beside the short ones and delays none of them; `--max-length` bounds what is taken."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.engine.batch_policy import BatchPolicy, Kind
from edgeclip.engine.devices import PROVIDERS
from edgeclip.engine.unit_vectors import Vectors
from edgeclip.errors import InputError
from edgeclip.families.family import Item
from edgeclip.manifest import Space
from edgeclip.serve.app import create_app
from edgeclip.serve.settings import Settings
from tests.scenes.lane_scenes import PATIENCE_S, asked, batch_of, ids, lane, limits, sizes
from tests.scenes.serving import serving

LONG = 100


class Held:
    """A graph that holds long texts at a gate and answers the others at once."""

    def __init__(self) -> None:
        self.may_go, self.is_held = threading.Event(), threading.Event()
        self.lengths: list[int] = []
        self.priorities: dict[str, list[int]] = {}

    def __call__(self, items: Sequence[Item], /, *, space: Space) -> Vectors:
        batch = batch_of(items)
        self.lengths.append(batch.shape[1])
        if sys.platform == "linux":
            here = threading.current_thread().name
            priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            self.priorities.setdefault(here, []).append(priority)
        if batch.shape[1] >= LONG:
            self.is_held.set()
            assert self.may_go.wait(PATIENCE_S)
        return np.stack([batch[:, 0], np.full(len(batch), batch.shape[1])], axis=1).astype(np.float32)

    async def held(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.is_held.is_set():
                await asyncio.sleep(0.001)


def beside(scene: Callable[[Any, Held], Any], **options: Any) -> Held:
    """Play a scene with a lane whose policy runs texts of 65 tokens and more beside the others."""
    graph = Held()

    async def play() -> None:
        async with lane(graph, **{"policy": sizes(long_tokens=64)} | options) as opened:
            try:
                await scene(opened, graph)
            finally:
                graph.may_go.set()

    asyncio.run(play())
    return graph


def test_short_texts_are_answered_while_a_long_one_runs() -> None:
    async def scene(opened: Any, graph: Held) -> None:
        clients = [asked(opened, ids(LONG)) for _ in range(2)]
        await graph.held()
        for length in (3, 16, 64):
            assert (await asked(opened, ids(length)))[0, 1] == length
        assert not any(client.done() for client in clients)
        graph.may_go.set()
        await asyncio.gather(*clients)

    assert beside(scene).lengths == [LONG, 3, 16, 64, LONG]


def test_without_long_texts_in_the_policy_there_is_one_queue() -> None:
    async def scene(opened: Any, graph: Held) -> None:
        client = asked(opened, ids(LONG))
        await graph.held()
        short = asked(opened, ids(3))
        await asyncio.sleep(0.05)
        assert not short.done()
        graph.may_go.set()
        await asyncio.gather(client, short)

    assert beside(scene, policy=sizes()).lengths == [LONG, 3]


def test_a_request_of_both_gets_its_vectors_in_order() -> None:
    async def scene(opened: Any, graph: Held) -> None:
        graph.may_go.set()
        lengths = [LONG, 3, 200, 3, 64, 65]
        found = await asked(opened, *(ids(length, index) for index, length in enumerate(lengths)))
        assert found.tolist() == [[index, length] for index, length in enumerate(lengths)]

    beside(scene)


def test_long_texts_take_turns_by_requests() -> None:
    """One client's twenty do not hold up another's one."""

    async def scene(opened: Any, graph: Held) -> None:
        many = asked(opened, *[ids(LONG)] * 20)
        await graph.held()
        one = asked(opened, ids(LONG + 1))
        await asyncio.sleep(0.02)
        graph.may_go.set()
        await asyncio.gather(many, one)

    assert beside(scene).lengths.index(LONG + 1) <= 2


def test_a_long_text_that_is_cancelled_while_it_waits_is_not_run() -> None:
    async def scene(opened: Any, graph: Held) -> None:
        running = asked(opened, ids(LONG))
        await graph.held()
        gone = asked(opened, ids(LONG + 1))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        graph.may_go.set()
        await running

    assert beside(scene).lengths == [LONG]


def test_a_long_text_that_hangs_turns_the_lane_wedged_later_than_a_batch() -> None:
    """It has what the others leave of the cores."""

    async def scene(opened: Any, graph: Held) -> None:
        client = asked(opened, ids(LONG))
        await graph.held()
        await asyncio.sleep(0.8)
        assert not opened.is_wedged
        async with asyncio.timeout(PATIENCE_S):
            while not opened.is_wedged:
                await asyncio.sleep(0.01)
        graph.may_go.set()
        await client

    beside(scene, limits=limits(wedged_s=0.5))


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is the whole process' elsewhere")
def test_only_the_thread_of_long_texts_is_lowered_and_not_before_the_graph_is_open() -> None:
    """The first run may open the graph, and its threads serve the short texts too."""

    async def scene(opened: Any, graph: Held) -> None:
        graph.may_go.set()
        await asked(opened, ids(LONG))
        await asked(opened, ids(LONG))
        await asked(opened, ids(3))
        await asked(opened, ids(3))

    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    priorities = beside(scene, long_niceness=3).priorities
    assert priorities == {"edgeclip-long-text": [here, min(19, here + 3)], "edgeclip-text": [here, here]}


def test_a_cpu_runs_long_texts_beside_and_a_gpu_does_not(encoder: Encoder) -> None:
    """A short text waits for a batch of at most 512 tokens."""
    for kind in PROVIDERS:
        policy = BatchPolicy.choose(kind, encoder.manifest, "latency")
        assert policy.long_tokens == (512 if kind == "cpu" else None)
        if policy.long_tokens:
            short = range(2, policy.long_tokens + 1)
            assert max(policy.rows(Kind(length, "text")) * length for length in short) <= policy.long_tokens


@pytest.fixture(scope="module")
def client(bundle: Path, encoder: Encoder) -> Iterator[httpx.Client]:
    with serving(bundle, encoder, max_length=12) as url, httpx.Client(base_url=url, timeout=60) as opened:
        yield opened


TEXT = "a red bicycle " * 40


def test_a_text_longer_than_max_length_is_cut_as_by_the_encoder(client: httpx.Client, encoder: Encoder) -> None:
    answer = client.post("/v1/embeddings", json={"input": [TEXT], "truncate": True}).json()
    found = np.array(answer["data"][0]["embedding"])
    with pytest.warns(UserWarning, match="cut to 12 tokens"):
        wanted = encoder.encode_text([TEXT], max_length=12)
    assert np.abs(found - wanted).max() < 1e-5
    assert answer["usage"]["prompt_tokens"] == 12


def test_a_text_longer_than_max_length_is_refused_where_cutting_is_not_wanted(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["a", TEXT], "truncate": False})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "input[1] is longer than 12 tokens" in error["message"] and error["param"] == "input[1]"


def test_max_length_is_shown(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["max_length"] == 12
    described = client.get("/openapi.json").json()["components"]["schemas"]["Model"]["properties"]
    assert described["max_length"]["type"] == "integer"


def test_a_max_length_beyond_the_model_s_is_refused_at_the_start(bundle: Path, encoder: Encoder) -> None:
    for length in (1, 8193):
        with pytest.raises(InputError, match=f"max_length is {length}, wanted an int from 2 to 8192"):
            create_app(Settings(bundle=bundle, max_length=length), encoder)
