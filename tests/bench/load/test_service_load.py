"""The load told of is the load that was: clients in flight, latencies from when a request was due, refusals."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from edgeclip import Encoder
from edgeclip.errors import InputError
from edgeclip_bench.load.questions import BULK_IMAGES, Questions
from edgeclip_bench.load.service_load import (
    OVERHEAD_ENCODERS,
    Client,
    Tally,
    bulk_images,
    closed_loop,
    connect,
    measure_overhead,
    open_loop,
    row,
)
from tests.scenes.command import bench
from tests.scenes.serving import serving


class Stub:
    """A service that takes `work_s` for each request, one after another, and counts who is there."""

    def __init__(self, *, work_s: float = 0.0, status: int = 200) -> None:
        self.work_s, self.status = work_s, status
        self.inside = self.most = 0
        self.bodies: list[Any] = []
        self._turn = asyncio.Lock()

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.inside += 1
        self.most = max(self.most, self.inside)
        async with self._turn:
            await asyncio.sleep(self.work_s)
        self.inside -= 1
        return web.Response(status=self.status)


@asynccontextmanager
async def client_of(stub: Stub) -> AsyncIterator[Client]:
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/v1/embeddings", stub.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with connect(f"http://127.0.0.1:{runner.addresses[0][1]}/", key=None) as client:
            yield client
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("clients", [1, 4])
def test_a_closed_loop_has_that_many_in_flight(clients: int) -> None:
    async def scene() -> tuple[Stub, Tally]:
        stub = Stub(work_s=0.01)
        async with client_of(stub) as client:
            return stub, await closed_loop(client, Questions().texts(), clients, 0.3)

    stub, tally = asyncio.run(scene())
    assert stub.most == clients
    assert len(tally.latencies_ms) == len(stub.bodies) > clients
    assert min(tally.latencies_ms) >= 10.0
    assert row("text", "closed", clients, tally).requests_a_second == len(tally.latencies_ms) / tally.seconds


def test_an_open_loop_s_latency_counts_from_when_the_request_was_due() -> None:
    """Twenty a second to who does ten: the last of about 20 waits for half of them."""

    async def scene() -> Tally:
        async with client_of(Stub(work_s=0.1)) as client:
            return await open_loop(client, Questions().texts(), 20.0, 1.0)

    tally = asyncio.run(scene())
    assert len(tally.latencies_ms) == 20
    assert max(tally.latencies_ms) > 500.0


def test_refusals_are_counted_and_are_no_latencies() -> None:
    async def scene() -> Tally:
        async with client_of(Stub(status=429, work_s=0.01)) as client:
            return await closed_loop(client, Questions().texts(), 2, 0.1)

    tally = asyncio.run(scene())
    assert set(tally.refusals) == {"429"} and not tally.latencies_ms
    assert row("text", "closed", 2, tally).latency is None


def test_a_service_that_is_not_there_is_counted_too() -> None:
    async def scene() -> Tally:
        tally = Tally()
        async with connect("http://127.0.0.1:9", key=None) as client:
            await client.send(next(Questions().texts()), tally)
        return tally

    assert sum(asyncio.run(scene()).refusals.values()) == 1


def test_one_in_ten_of_the_mixed_is_an_image() -> None:
    bodies = Questions().mixed()
    kinds = ["image" if "image" in next(bodies)["input"][0] else "text" for _ in range(30)]
    assert kinds == ([*["text"] * 9, "image"]) * 3


def test_the_bulk_job_is_there_and_ends() -> None:
    async def scene() -> Stub:
        stub = Stub(work_s=0.01)
        async with client_of(stub) as client:
            async with bulk_images(client, Questions()) as tally:
                await closed_loop(client, Questions().texts(), 1, 0.1)
            sent = len(stub.bodies)
            await asyncio.sleep(0.05)
            assert len(stub.bodies) <= sent + 4
            assert tally.seconds >= 0.1
        return stub

    stub = asyncio.run(scene())
    assert {len(body["input"]) for body in stub.bodies} == {1, BULK_IMAGES}


def test_the_real_service_under_a_little_load(
    bundle: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "load.json"
    with serving(bundle, encoder) as url:
        assert bench("service-load", url, "--seconds", 0.3, "--concurrency", 2, "--rate", 20, "--out", out) == 0
    report = json.loads(out.read_text())
    shown = capsys.readouterr().err
    names = ["text", "mixed", "text", "mixed", "text beside images", f"{BULK_IMAGES} images beside text"]
    assert [one["workload"] for one in report["rows"]] == names
    for one in report["rows"][:-1]:
        assert one["refused"] == {} and one["latency"]["samples"] > 0, one
        assert one["workload"] in shown


@pytest.mark.parametrize(
    ("given", "task", "image_task"),
    [(None, "retrieval.query", "retrieval.query"), ("code.passage", "code.passage", "code.passage")],
)
def test_a_model_that_needs_a_task_is_asked_with_one(given: str | None, task: str, image_task: str) -> None:
    facts = {"modalities": ["text", "image"]}
    model = {
        "modalities": ["text", "image"],
        "task_required": True,
        "task_details": dict.fromkeys(("retrieval.query", "code.passage"), facts),
    }
    questions = Questions.of(model, given, (56, 28), texts_only=False)
    assert (questions.task, questions.image_task) == (task, image_task)
    bodies = questions.mixed()
    assert {next(bodies)["task"] for _ in range(10)} == {task, image_task}
    assert not Questions.of(model, None, (56, 28), texts_only=True).has_images
    languages = {**model, "task_details": {"deu_Latn": {"modalities": ["text"]}}}
    of_languages = Questions.of(languages, None, (56, 28), texts_only=False)
    assert (of_languages.task, of_languages.image_task) == ("deu_Latn", None)
    assert all("task" not in body for body in itertools.islice(of_languages.bulk(), 9))
    with pytest.raises(InputError, match="--task x: wanted one of retrieval.query, code.passage"):
        Questions.of(model, "x", (56, 28), texts_only=False)


def test_images_of_a_bulk_job_differ() -> None:
    """Else a model that keeps features of the last images would answer sooner."""
    bodies = list(itertools.islice(Questions(image_px=(56, 28)).bulk(), 8))
    assert len({one["image"] for body in bodies for one in body["input"]}) == 8 * BULK_IMAGES


@pytest.mark.parametrize("has_images", [True, False])
def test_a_real_service_of_a_model_that_needs_a_task(
    v4_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], has_images: bool
) -> None:
    out = tmp_path / "load.json"
    options = ["--seconds", 0.3, "--concurrency", 2, "--image-px", 112, 84, "--out", out]
    with Encoder.open(v4_bundle, device="cpu") as encoder, serving(v4_bundle, encoder) as url:
        options += ["--bundle", v4_bundle, "--turns", 4] if has_images else ["--texts-only", "--task", "code.query"]
        assert bench("service-load", url, *options) == 0
        assert bench("service-load", url, "--task", "separation") == 1
        assert bench("service-load", f"{url}/nowhere", "--seconds", 0.1) == 1
    report = json.loads(out.read_text())
    assert [one["refused"] for one in report["rows"]] == [{}] * (4 if has_images else 1)
    samples = [one["services"][0]["samples"] for one in report["overhead"]]
    assert samples == ([4, 4] if has_images else [])
    assert "no edgeclip service answers there" in capsys.readouterr().err


def test_the_overhead_is_the_median_of_differences(bundle: Path, encoder: Encoder) -> None:
    with serving(bundle, encoder) as url, serving(bundle, encoder) as other:
        found = measure_overhead([url, other], bundle, key=None, turns=5)
        assert [one.encoding for one in found] == ["float", "base64"]
        for one in found:
            assert (len(one.services), len(one.encoders)) == (2, OVERHEAD_ENCODERS)
            assert all(each.samples == 5 and each.min_ms > 0 for each in one.services + one.encoders)
            lowest, highest = (
                np.mean([each.min_ms for each in one.services]) - np.mean([each.max_ms for each in one.encoders]),
                np.mean([each.max_ms for each in one.services]) - np.mean([each.min_ms for each in one.encoders]),
            )
            assert lowest <= one.median_difference_ms <= highest
        with pytest.raises(InputError, match="answered 404, wanted 200"):
            measure_overhead([f"{url}/nowhere"], bundle, key=None, turns=1)
