"""Short work of many requests in one thread: in turns, its errors told, nothing run that nobody waits for."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from edgeclip.serve.queue.fair_thread import FairThread


class Scene:
    """A thread that is held up until it may go on, and the order of what it ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.may_go = threading.Event()
        self.thread = FairThread("test-fair", lambda: None)

    def ask(self, request: int, name: str, cost: int = 1) -> "asyncio.Task[str]":
        def work() -> str:
            assert self.may_go.wait(20)
            self.ran.append(name)
            return name

        return asyncio.create_task(self.thread.run(request, cost, work))


def play(scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        here = Scene()
        await scene(here)
        here.may_go.set()
        here.thread.close()

    asyncio.run(run())


def test_requests_take_turns() -> None:
    async def scene(here: Scene) -> None:
        tasks = [here.ask(0, "many") for _ in range(10)]
        await asyncio.sleep(0)
        tasks.append(here.ask(1, "one"))
        await asyncio.sleep(0)
        here.may_go.set()
        await asyncio.gather(*tasks)
        assert here.ran.index("one") <= 2 and len(here.ran) == 11

    play(scene)


def test_what_costs_least_goes_first_among_requests_that_came_alike() -> None:
    async def scene(here: Scene) -> None:
        tasks = [here.ask(0, "runs")]
        await asyncio.sleep(0)
        tasks += [here.ask(number, "long", 100) for number in range(1, 20)]
        tasks.append(here.ask(20, "short", 5))
        await asyncio.sleep(0)
        here.may_go.set()
        await asyncio.gather(*tasks)
        assert here.ran[:2] == ["runs", "short"]

    play(scene)


def test_what_is_cancelled_or_forgotten_is_not_run() -> None:
    async def scene(here: Scene) -> None:
        first = here.ask(0, "first")
        await asyncio.sleep(0)
        gone, kept = here.ask(1, "gone"), here.ask(2, "kept")
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        here.thread.forget(1)
        here.may_go.set()
        assert await asyncio.gather(first, kept) == ["first", "kept"]
        assert here.ran == ["first", "kept"]

    play(scene)


def test_an_error_is_raised_to_who_asked_and_the_next_is_run() -> None:
    async def scene(here: Scene) -> None:
        here.may_go.set()
        with pytest.raises(ZeroDivisionError):
            await here.thread.run(0, 1, lambda: 1 // 0)
        assert await here.ask(1, "next") == "next"

    play(scene)
