"""What a graph's metrics conclude about its pace; and what it costs to ask for metrics, and who may."""

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeclip import Encoder
from edgeclip.serve.app import create_app
from edgeclip.serve.metrics import GraphMetrics, KeptText, Metrics
from edgeclip.serve.run import configure, listen
from edgeclip.serve.settings import Settings
from tests.scenes.serving import serving, troubling, until_ready, wait_for


def vision() -> GraphMetrics:
    metrics = Metrics(version="0", model="m", device="cpu", precisions={"text": "fp32", "vision": "fp32"})
    return metrics.graphs["vision"]


def test_the_best_pace_is_the_quickest_batchs() -> None:
    graph = vision()
    for size, compute_s in ((1, 30.0), (4, 2.0), (4, 8.0)):
        assert graph.best_pace(60) is None  # the first may have loaded the graph
        graph.batch(size, [0.0] * size, compute_s, cost=2 * size)
    assert graph.best_pace(60) == 0.25


def test_an_old_pace_is_none() -> None:
    """Else whoever is refused by it could never show that it is over."""
    graph = vision()
    graph.batch(16, [0.0] * 16, 160.0, cost=16)
    time.sleep(0.02)
    assert graph.best_pace(0.01) is None
    assert graph.best_pace(60) == 10.0


ASKING = 32  # connections


def test_many_who_ask_for_metrics_share_one_rendering(
    bundle: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread beside the event loop, and kept for a second: 14 ms for each answer stopped all others."""
    threads: list[threading.Thread] = []
    real = Metrics.render

    def counted(metrics: Metrics) -> bytes:
        threads.append(threading.current_thread())
        return real(metrics)

    async def crowd(url: str) -> int:
        """The answers of /metrics that came while /health/live was asked 20 times."""
        limits = httpx.Limits(max_connections=ASKING)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            count, is_over = 0, False

            async def ask() -> None:
                nonlocal count
                while not is_over:
                    answer = await client.get("/metrics")
                    assert answer.status_code == 200 and b"edgeclip_requests_total" in answer.content
                    count += 1

            asking = [asyncio.create_task(ask()) for _ in range(ASKING)]
            async with httpx.AsyncClient(base_url=url, timeout=60) as other:
                for _ in range(20):
                    assert (await other.get("/health/live")).status_code == 200
            is_over = True
            await asyncio.gather(*asking)
            return count

    monkeypatch.setattr(Metrics, "render", counted)
    with serving(bundle, encoder, metrics_s=600) as url:
        assert asyncio.run(crowd(url)) >= ASKING
    assert len(threads) == 1 and "Thread-" not in threads[0].name  # which is the test server's loop


def test_a_text_is_kept_for_its_time() -> None:
    """One rendering for all who wait, another when it is old; one that fails is told to all and tried again."""
    calls: list[None] = []

    def render() -> bytes:
        calls.append(None)
        time.sleep(0.05)
        if len(calls) == 3:
            raise OSError("too many open files")
        return b"%d" % len(calls)

    async def ask() -> None:
        text = KeptText(render, keep_s=0.2)
        assert await asyncio.gather(*(text.get() for _ in range(50))) == [b"1"] * 50
        assert await text.get() == b"1"
        await asyncio.sleep(0.3)
        leaving = asyncio.create_task(text.get())
        waiting = asyncio.create_task(text.get())
        await asyncio.sleep(0.01)
        leaving.cancel()  # a client that goes away takes nothing from the others
        assert await waiting == b"2"
        await asyncio.sleep(0.3)
        found = await asyncio.gather(*(text.get() for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [OSError] * 3
        assert await text.get() == b"4"

    asyncio.run(ask())


def test_metrics_may_have_a_port_of_their_own(bundle: Path, encoder: Encoder) -> None:
    """Nothing else is there, and they are nowhere else."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Settings(bundle=bundle, metrics_port=port)
    server = configure(settings, create_app(settings, encoder))
    with listen("127.0.0.1", 0) as main, listen("127.0.0.1", port) as metrics:
        thread = threading.Thread(target=server.run, args=([main, metrics],))
        thread.start()
        try:
            wait_for(lambda: server.is_started)
            found = {
                (name, path): httpx.get(f"http://127.0.0.1:{listener.getsockname()[1]}{path}").status_code
                for name, listener in (("main", main), ("metrics", metrics))
                for path in ("/metrics", "/health/live", "/v1/models", "/")
            }
        finally:
            server.end()
            thread.join()
    right = {("main", "/health/live"), ("main", "/v1/models"), ("main", "/"), ("metrics", "/metrics")}
    assert {asked for asked, status in found.items() if status == 200} == right
    assert {status for asked, status in found.items() if asked not in right} == {404}


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/models", "/health/live", "/docs/swagger-ui-bundle.js", "/"])
def test_what_anybody_may_ask_for_is_written_once(
    bundle: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """From the second request on nothing is encoded and no file is read."""
    with serving(bundle, encoder) as url:
        first = httpx.get(url + path)

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("written again")

        for target in ("json.dumps", "pathlib.Path.read_bytes", "edgeclip.serve.swagger_page.find_spec"):
            monkeypatch.setattr(target, refuse)
        second = httpx.get(url + path)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content == second.content


def test_many_who_ask_whether_it_is_ready_share_one_self_test(bundle: Path) -> None:
    """Of a text and an image; another when it is old, however slow the machine is."""
    with troubling(bundle) as encoder, serving(bundle, encoder, ready_s=0.5) as url:
        until_ready(url)

        async def crowd() -> list[int]:
            limits = httpx.Limits(max_connections=ASKING)
            async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
                answers = await asyncio.gather(*(client.get("/health/ready") for _ in range(4 * ASKING)))
                return [answer.status_code for answer in answers]

        time.sleep(0.6)
        encoder.batches.clear()
        began_s = time.monotonic()
        assert asyncio.run(crowd()) == [200] * 4 * ASKING
        runs = 1 + (time.monotonic() - began_s) // 0.5
        assert len(encoder.batches) <= 2 * min(runs, ASKING)
