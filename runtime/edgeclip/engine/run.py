"""The one loop from prepared items to vectors: batch, run, follow, until every item's graph gave vectors.

items -> batches of one kind -> graph -> outputs of each item -> the next graph's item, or its vectors
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.engine.unit_vectors import Vectors, find_fault, shorten
from edgeclip.errors import BundleError, WrongVectorsError
from edgeclip.families.family import Arrays, Family, Item
from edgeclip.manifest import Manifest

Outputs = Mapping[str, NDArray[Any]]


class RunGraph(Protocol):
    """Run a batch through a graph: `edgeclip.engine.session.GraphSession.run`, for the graph of that name."""

    def __call__(self, graph: str, feed: Arrays, adapter: str | None) -> Outputs:
        """Every output, with a batch axis, by name."""


class Runner:
    """Runs items of a bundle. `run_graph` runs one batch, `verify` raises BundleError for a graph whose files changed
    since the export, and is asked when vectors are wrong. For use by many threads.
    """

    def __init__(
        self,
        manifest: Manifest,
        family: Family,
        policy: BatchPolicy,
        run_graph: RunGraph,
        verify: Callable[[str], None],
    ) -> None:
        self._manifest, self._family, self._policy = manifest, family, policy
        self._run_graph, self._verify = run_graph, verify

    def run(
        self, items: Sequence[Item], dim: int, batch_size: int | None = None
    ) -> Iterator[tuple[list[int], Vectors]]:
        """Yield the unit vectors (B, dim) of items as they are computed, each batch with the indices of its items.

        Raises what `run_batch` raises.
        """
        places, waiting = list(range(len(items))), list(items)
        while waiting:
            next_places: list[int] = []
            next_items: list[Item] = []
            for batch in self._policy.plan(waiting, batch_size):
                found = self.run_batch([waiting[index] for index in batch], dim)
                indices = [places[index] for index in batch]
                if isinstance(found, np.ndarray):
                    yield indices, found
                else:
                    next_places += indices
                    next_items += found
            places, waiting = next_places, next_items

    def run_batch(self, items: Sequence[Item], dim: int) -> Vectors | list[Item]:
        """Run items of one kind as one batch: their unit vectors (B, dim), or the items of the next graph.

        Raises BundleError for files that changed since the export, WrongVectorsError for other vectors that hold NaN
        or whose length is not 1, DeviceError for inputs that the graph cannot take.
        """
        first = items[0]
        outputs = self._run_graph(first.graph, self._family.feed(items), first.adapter)
        following = self._family.follow(first, _row(outputs, 0))
        if following is None:
            return self._vectors(first.graph, outputs, len(items), dim)
        others = (self._family.follow(item, _row(outputs, row)) for row, item in enumerate(items[1:], 1))
        return [following, *(item for item in others if item is not None)]

    def _vectors(self, graph: str, outputs: Outputs, rows: int, dim: int) -> Vectors:
        """The single vectors of a batch, checked, cut and then normalised."""
        vectors: Vectors = outputs[self._family.output(graph, "single")]
        full = self._manifest.embedding_dim
        if vectors.shape != (rows, full):
            raise BundleError(
                f"the {graph} graph gives {vectors.shape} for {rows} inputs of {full} dimensions; export it again"
            )
        if fault := find_fault(vectors, dim):
            self._verify(graph)
            raise WrongVectorsError(
                f"the {graph} graph answered with {fault}; its files are as exported, so it does not run right here"
            )
        return shorten(vectors, dim)


def _row(outputs: Outputs, index: int) -> Arrays:
    """What a batch's outputs hold for one item."""
    return {name: rows[index] for name, rows in outputs.items()}
