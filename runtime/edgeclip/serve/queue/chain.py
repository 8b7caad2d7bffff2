"""From a request's items to their vectors: through the lanes of one graph after another.

text   -> lane "text"                     -> vectors
image  -> lane "vision"                   -> vectors
image  -> lane "vision" -> lane "text"    -> vectors, in families whose image graph feeds the text graph

`edgeclip.engine.run` does the same for callers that have all items at once; here each graph's queue is shared with
other requests.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np

from edgeclip.engine.unit_vectors import Vectors
from edgeclip.families.family import Item
from edgeclip.serve.queue.lanes import LaneAnswer

_Result = TypeVar("_Result")
# The vectors of items: (N, D), or in the space "multi" a matrix (T, D) of each.
Rows = Vectors | list[Vectors]
# Submits items of one graph to its lane.
Submit = Callable[[str, Sequence[Item]], Awaitable[LaneAnswer]]


async def run_through(submit: Submit, items: Sequence[Item]) -> Rows:
    """The vectors of items of one graph, in their order; raises what `submit` raises.

    Items that a graph hands on are submitted to the next graph once all items of this call have left the first one.
    """
    answer = await submit(items[0].graph, items)
    vectors, following = answer.vectors, answer.following
    by_graph: dict[str, list[int]] = {}
    for place, item in following.items():
        by_graph.setdefault(item.graph, []).append(place)
    next_graphs = [run_through(submit, [following[place] for place in places]) for places in by_graph.values()]
    matrices = answer.matrices
    for places, found in zip(by_graph.values(), await all_or_none(next_graphs), strict=True):
        if isinstance(found, list):
            matrices.update(zip(places, found, strict=True))
            continue
        if vectors is None:
            vectors = np.empty((len(items), found.shape[1]), np.float32)
        vectors[places] = found
    if matrices:
        return [matrices[place] for place in range(len(items))]
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
