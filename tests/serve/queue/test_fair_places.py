"""Work that hangs at one target leaves places to every other, and requests take turns."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from edgeclip.serve.queue.fair_places import FairPlaces

COUNT = 12


class Scene:
    """Work that hangs in its place until it is cancelled, in the order in which it got there."""

    def __init__(self) -> None:
        self.places = FairPlaces(COUNT)
        self.inside: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def hang(self, target: str, *, request: int | None = None, name: str = "") -> "asyncio.Task[None]":
        number = self.places.new_request() if request is None else request

        async def work() -> None:
            async with self.places.place(number, target):
                self.inside.append(name or target)
                try:
                    await asyncio.Event().wait()
                finally:
                    self.inside.remove(name or target)

        self.tasks.append(asyncio.create_task(work()))
        await settle()
        return self.tasks[-1]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def play(scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        here = Scene()
        await scene(here)
        for task in here.tasks:
            task.cancel()
        await asyncio.gather(*here.tasks, return_exceptions=True)
        # Whatever happened, every place is free again, and as many can be had as ever.
        here.tasks.clear()
        for number in range(COUNT):
            await here.hang(f"end {number}")
        assert len(here.inside) == COUNT
        for task in here.tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*here.tasks)

    asyncio.run(run())


def test_a_target_that_hangs_never_gets_more_than_a_third() -> None:
    async def scene(here: Scene) -> None:
        for _ in range(50):
            await here.hang("slow")
        assert here.inside == ["slow"] * (COUNT // 3)
        await here.hang("quick")
        assert here.inside[-1] == "quick"

    play(scene)


def test_a_target_that_has_none_gets_a_place_beside_several_that_hang() -> None:
    async def scene(here: Scene) -> None:
        for _ in range(20):
            for number in range(COUNT - 4):
                await here.hang(f"slow {number}")
        assert len(here.inside) < COUNT
        await here.hang("quick")
        assert here.inside[-1] == "quick"

    play(scene)


def test_a_place_that_is_left_goes_to_the_request_whose_turn_it_is() -> None:
    """A request of one is not behind all of a request of many at the same target."""

    async def scene(here: Scene) -> None:
        many = here.places.new_request()
        first = [await here.hang("a", request=many, name="many") for _ in range(30)]
        await here.hang("a", name="one")
        assert "one" not in here.inside
        for task in first[:2]:
            task.cancel()
        await settle()
        assert "one" in here.inside and here.inside.count("many") == COUNT // 3 - 1

    play(scene)


def test_what_is_cancelled_while_it_waits_gets_no_place() -> None:
    async def scene(here: Scene) -> None:
        request = here.places.new_request()
        waiting = [await here.hang("a", request=request) for _ in range(COUNT)][COUNT // 3 :]
        for task in waiting:
            task.cancel()
        await settle()
        here.places.forget(request)
        assert here.places.depth == 0 and len(here.inside) == COUNT // 3

    play(scene)


def test_what_is_cancelled_in_the_moment_of_its_turn_leaves_its_place() -> None:
    async def scene(here: Scene) -> None:
        tasks = [await here.hang("a") for _ in range(COUNT // 3 + 1)]
        tasks[0].cancel()
        await asyncio.sleep(0)  # the last one was given its place, and has not run since
        tasks[-1].cancel()
        await settle()
        assert len(here.inside) == COUNT // 3 - 1

    play(scene)
