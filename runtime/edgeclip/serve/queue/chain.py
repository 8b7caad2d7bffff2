"""From a request's items to their vectors: through the lanes of one graph after another.

text   -> lane "text"                     -> vectors
image  -> lane "vision"                   -> vectors
image  -> lane "vision" -> lane "text"    -> vectors, in families whose image graph feeds the text graph

Each item goes on alone, as soon as a graph has answered for it: what lies between two graphs (6 MB of a page) is
never there for all items of a request. `edgeclip.engine.run` does the same for callers that have all items at once;
here each graph's queue is shared with other requests.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from edgeclip.engine.unit_vectors import Vectors
from edgeclip.families.family import Item
from edgeclip.serve.queue.calls import HandOn, LaneAnswer

_Result = TypeVar("_Result")
# The vectors of items: (N, D), or in the space "multi" a matrix (T, D) of each.
Rows = Vectors | list[Vectors]


class Submit(Protocol):
    """Submits items of one graph to its lane: `edgeclip.serve.queue.lanes.Lane.submit`."""

    def __call__(
        self, graph: str, items: list[Item], /, *, hand_on: HandOn | None, is_handed_on: bool
    ) -> Awaitable[LaneAnswer]:
        """The lane's answer."""


async def run_through(
    submit: Submit, items: list[Item], *, is_handed_on: bool = False, hands_on: bool = True
) -> Rows:
    """The vectors of items of one graph, in their order; raises what `submit` raises.

    `items` is emptied: each is let go when it is computed. The first error of any graph ends what still waits. With
    `hands_on` False no graph follows this one, and nothing is made ready for it.
    """
    if not hands_on:
        return _join(len(items), await submit(items[0].graph, items, hand_on=None, is_handed_on=is_handed_on), {})
    following: dict[int, asyncio.Task[Rows]] = {}
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:

            def hand_on(place: int, item: Item) -> asyncio.Task[Rows]:
                following[place] = group.create_task(run_through(submit, [item], is_handed_on=True))
                return following[place]

            answer = await submit(items[0].graph, items, hand_on=hand_on, is_handed_on=is_handed_on)
    except BaseExceptionGroup as errors:
        failure = errors.exceptions[0]
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # it has this frame in its traceback: a cycle that would hold the items
    return _join(len(items), answer, {place: task.result() for place, task in following.items()})


def _join(count: int, answer: LaneAnswer, following: dict[int, Rows]) -> Rows:
    """The vectors of a call: those that its graph gave, and those of each item that was handed on."""
    vectors, matrices = answer.vectors, answer.matrices
    for place, found in following.items():
        if isinstance(found, list):
            (matrices[place],) = found
            continue
        if vectors is None:
            vectors = np.empty((count, found.shape[1]), np.float32)
        vectors[place] = found[0]
    if matrices:
        return [matrices[place] for place in range(count)]
    assert vectors is not None, "a lane answers every item"
    return vectors


async def all_or_none(work: Sequence[Awaitable[_Result]]) -> list[_Result]:
    """Every result in order; the first error cancels what has not finished and is raised as it is."""
    if not work:
        return []
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
