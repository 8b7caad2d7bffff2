"""The bytes of requests in progress are bounded, and no slow request keeps a small or a moving one out."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeclip import Encoder
from edgeclip.serve.errors import ApiError
from edgeclip.serve.http import pending_bytes
from edgeclip.serve.http.pending_bytes import FREE_BYTES, PendingBytes, Room
from edgeclip.serve.metrics import Metrics
from tests.scenes.raw_http import connect
from tests.scenes.serving import serving

MOST = 1_000_000


class Scene:
    """Requests that took bytes and rest, incomplete or not."""

    def __init__(self) -> None:
        self.pending = PendingBytes(MOST, Metrics(version="1", model="m", device="cpu", precisions={"text": "fp32"}))
        self.ended: dict[str, Any] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def request(self, name: str, counted: int, *, is_complete: bool = False) -> Room:
        got: asyncio.Future[Room] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            with self.pending.room() as room, contextlib.nullcontext() if is_complete else room.incomplete():
                room.take(FREE_BYTES + counted)
                got.set_result(room)
                await asyncio.Event().wait()

        def note(task: "asyncio.Task[None]") -> None:
            error = "cancelled" if task.cancelled() else task.exception()
            self.ended[name] = error.status if isinstance(error, ApiError) else error
            if not got.done():
                got.set_exception(ApiError(429, "refused"))

        self.tasks.append(asyncio.create_task(work()))
        self.tasks[-1].add_done_callback(note)
        return await got


def play(scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        here = Scene()
        await scene(here)
        for task in here.tasks:
            task.cancel()
        await asyncio.gather(*here.tasks, return_exceptions=True)
        # Nothing is held any more: one request may have all.
        await here.request("last", MOST)
        here.tasks[-1].cancel()

    asyncio.run(run())


def test_the_first_bytes_of_a_request_always_have_room() -> None:
    async def scene(here: Scene) -> None:
        await here.request("full", MOST, is_complete=True)
        for number in range(20):
            await here.request(f"small {number}", 0)
        assert here.ended == {}
        with pytest.raises(ApiError):
            await here.request("large", 1)

    play(scene)


def test_the_largest_that_is_incomplete_is_given_up_for_a_smaller_one() -> None:
    async def scene(here: Scene) -> None:
        await here.request("complete", 300_000, is_complete=True)
        await here.request("larger", 400_000)
        await here.request("smaller", 290_000)
        await here.request("new", 200_000)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert here.ended == {"larger": 429}

    play(scene)


def test_a_request_that_is_larger_than_those_that_move_is_refused_itself() -> None:
    async def scene(here: Scene) -> None:
        await here.request("a", 500_000)
        await here.request("b", 400_000)
        with pytest.raises(ApiError):
            await here.request("largest", 600_000)
        assert here.ended == {"largest": 429}

    play(scene)


def test_what_stands_still_goes_before_what_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for one that is larger."""
    monkeypatch.setattr(pending_bytes, "_STILL_S", 0.05)

    async def scene(here: Scene) -> None:
        await here.request("still", 300_000)
        moving = await here.request("moving", 400_000)
        await asyncio.sleep(0.06)
        moving.take(1)
        await here.request("new", 500_000)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert here.ended == {"still": 429}

    play(scene)


def test_a_request_that_the_service_s_end_cancels_is_no_429() -> None:
    async def scene(here: Scene) -> None:
        await here.request("a", 10)
        here.tasks[0].cancel()
        await asyncio.gather(*here.tasks, return_exceptions=True)
        await asyncio.sleep(0)
        assert here.ended == {"a": "cancelled"}

    play(scene)


def stalled(url: str, size: int) -> socket.socket:
    """A client that has sent so many bytes of a larger body."""
    client = connect(url)
    client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
    client.sendall(b'{"input":["'.ljust(size, b"a"))
    return client


def test_bodies_that_stall_keep_nobody_out(bundle: Path, encoder: Encoder) -> None:
    """Small requests are taken beside them, and a large one in their place; the first to go is told 429."""
    with (
        serving(bundle, encoder, max_body_bytes=300_000, max_pending_bytes=300_000) as url,
        contextlib.ExitStack() as opened,
    ):
        clients = [opened.enter_context(stalled(url, 210_000)) for _ in range(2)]
        for document in ({"input": "a" * 4000}, {"input": ["a word"] * 2000, "dimensions": 1}):
            answer = httpx.post(f"{url}/v1/embeddings", json={"truncate": True, **document}, timeout=60)
            assert answer.status_code == 200
        body = json.dumps({"input": "a"}).ljust(200_000).encode()
        assert httpx.post(f"{url}/v1/embeddings", content=body, timeout=60).status_code == 200
        told = []
        for client in clients:
            client.settimeout(1)
            with contextlib.suppress(TimeoutError):
                told.append(client.recv(4096).split(b" ")[1])
        assert told == [b"429"]
