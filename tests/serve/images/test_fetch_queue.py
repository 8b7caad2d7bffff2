"""Servers that hang hold up their own images alone, and what is fetched is counted until it is decoded."""

import asyncio
import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeclip import Encoder
from edgeclip.serve.errors import ApiError
from edgeclip.serve.images.fetch_queue import MOST_OF_A_REQUEST, FetchQueue
from tests.conftest import DATA
from tests.scenes.serving import serving, wait_for

GRAY = (DATA / "images" / "gray.jpg").read_bytes()
SENT = {"image": base64.b64encode(GRAY).decode()}
QUICK = {"url": "https://quick.example/a.png"}


class Web:
    """A `fetch` that hangs at every host below hangs.example, and counts what hangs."""

    def __init__(self) -> None:
        self.hanging = 0

    async def __call__(self, url: str, /, *, take: Callable[[int], None]) -> bytes:
        if "hangs.example" in url:
            self.hanging += 1
            try:
                await asyncio.sleep(20)
            finally:
                self.hanging -= 1
        take(len(GRAY))
        return GRAY


@contextmanager
def asking(url: str, document: Any, times: int) -> Iterator[None]:
    """Requests of one document that are in progress in the block, and are given up at its end."""
    loop = asyncio.new_event_loop()
    tasks: list[asyncio.Task[Any]] = []

    async def ask() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            tasks.extend(
                asyncio.create_task(client.post(f"{url}/v1/embeddings", json=document)) for _ in range(times)
            )
            await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(ask(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        thread.join()
        loop.close()


def statuses(url: str, *inputs: Any) -> list[int]:
    return [httpx.post(f"{url}/v1/embeddings", json={"input": each}, timeout=5).status_code for each in inputs]


@pytest.mark.parametrize(
    ("hosts", "each", "times"), [("hangs.example", 1, 64), ("hangs.example", 16, 4), ("a{}.hangs.example", 16, 8)]
)
def test_urls_that_hang_hold_no_other_image(
    bundle: Path, encoder: Encoder, hosts: str, each: int, times: int
) -> None:
    """Many requests of one, few of many, many names of one site: another site's image, and one that was sent."""
    web = Web()
    slow = [{"url": f"https://{hosts.format(number)}/{number}.png"} for number in range(each)]
    with (
        serving(bundle, encoder, fetch=web, max_images=16, max_queued_images=16) as url,
        asking(url, {"input": slow}, times),
    ):
        wait_for(lambda: web.hanging >= 16)
        assert statuses(url, QUICK, SENT, [QUICK, SENT, "a"]) == [200] * 3
    assert web.hanging == 0


def test_more_of_one_site_than_may_wait_are_429(bundle: Path, encoder: Encoder) -> None:
    web = Web()
    slow = [{"url": "https://hangs.example/a.png"}] * 8
    with (
        serving(bundle, encoder, fetch=web, max_images=8, max_queued_images=8) as url,
        asking(url, {"input": slow}, 4),
    ):
        wait_for(lambda: web.hanging >= 16)
        assert statuses(url, slow, QUICK) == [429, 200]


def test_what_was_fetched_counts_among_the_images_in_progress(bundle: Path, encoder: Encoder) -> None:
    from tests.scenes.serving import troubling, until_ready

    with (
        troubling(bundle) as troubled,
        serving(bundle, troubled, fetch=Web(), max_images=2, max_queued_images=2, ready_s=600) as url,
    ):
        until_ready(url)
        troubled.may_run.clear()
        with asking(url, {"input": [QUICK, QUICK]}, 1):
            wait_for(lambda: 'edgeclip_queue_depth{graph="vision"} 0' not in httpx.get(f"{url}/metrics").text
                     or statuses(url, QUICK) == [429])  # fmt: skip
            assert statuses(url, QUICK, SENT) == [429, 429]
            troubled.may_run.set()


class Room:
    """Counts what is held, and refuses more than `most`."""

    def __init__(self, most: int) -> None:
        self.most, self.held, self.highest = most, 0, 0

    def take(self, count: int) -> None:
        if self.held + count > self.most:
            raise ApiError(429, "full")
        self.held += count
        self.highest = max(self.highest, self.held)

    def give(self, count: int) -> None:
        self.held -= count

    def incomplete(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_bytes_are_counted_from_the_fetch_to_the_end_of_the_decoding() -> None:
    """Few images of a request at once, however many it has."""

    async def scene() -> None:
        room = Room(10**9)
        queue = FetchQueue(Web(), places=64, most_of_a_site=100)
        with queue.request([QUICK["url"]] * 50, room) as urls:

            async def use() -> None:
                async with urls.fetched(QUICK["url"]) as data:
                    assert data == GRAY and room.held >= len(GRAY)
                    await asyncio.sleep(0.001)

            await asyncio.gather(*(use() for _ in range(50)))
            assert room.held == 0 and room.highest == MOST_OF_A_REQUEST * len(GRAY)

    asyncio.run(scene())


def test_bytes_that_find_no_room_end_the_fetch() -> None:
    async def scene() -> None:
        room = Room(len(GRAY) - 1)
        with ExitStack() as opened:
            urls = opened.enter_context(FetchQueue(Web(), places=64, most_of_a_site=1).request([QUICK["url"]], room))
            with pytest.raises(ApiError, match="full"):
                async with urls.fetched(QUICK["url"]):
                    pass
        assert room.held == 0

    asyncio.run(scene())
