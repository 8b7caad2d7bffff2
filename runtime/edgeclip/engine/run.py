"""The one loop from prepared items to vectors: batch, run, follow, until every item's graph gave vectors.

items -> batches of one kind -> graph -> outputs of each item -> the next graph's item, or its vectors
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.engine.kept_outputs import KeptOutputs
from edgeclip.engine.unit_vectors import Vectors, find_fault, shorten
from edgeclip.errors import BundleError, WrongVectorsError
from edgeclip.families.family import Arrays, Family, Item
from edgeclip.manifest import Manifest, Space

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
        self._kept = KeptOutputs()

    def run(
        self, items: Sequence[Item], dim: int, batch_size: int | None = None, *, space: Space = "single"
    ) -> Iterator[tuple[list[int], Vectors]]:
        """Yield the unit vectors of items as they are computed, each batch with the indices of its items.

        They are (B, dim), or in the space "multi" (B, T, dim). Raises what `run_batch` raises.
        """
        for indices, graph, outputs in self._run(items, batch_size):
            yield indices, self._vectors(graph, outputs, len(indices), dim, space)

    def run_spaces(
        self, items: Sequence[Item], spaces: Sequence[Space], batch_size: int | None = None
    ) -> Iterator[tuple[list[int], tuple[Vectors, ...]]]:
        """Yield the full-width vectors of items in each of the spaces, from one run of every graph.

        Raises what `run_batch` raises.
        """
        for indices, graph, outputs in self._run(items, batch_size):
            yield (
                indices,
                tuple(
                    self._vectors(graph, outputs, len(indices), self._manifest.dim(space), space) for space in spaces
                ),
            )

    def _run(self, items: Sequence[Item], batch_size: int | None) -> Iterator[tuple[list[int], str, Outputs]]:
        """Yield the outputs of the last graph of items, each batch with the indices of its items."""
        places, waiting = list(range(len(items))), list(items)
        while waiting:
            next_places: list[int] = []
            next_items: list[Item] = []
            for batch in self._policy.plan(waiting, batch_size):
                found = self._step([waiting[index] for index in batch])
                indices = [places[index] for index in batch]
                if isinstance(found, tuple):
                    yield indices, *found
                else:
                    next_places += indices
                    next_items += found
            places, waiting = next_places, next_items

    def keep(self, most_bytes: int) -> None:
        """Keep at most so many bytes of outputs for other tasks; those that were kept are given up."""
        self._kept.bound(most_bytes)

    def forget(self) -> None:
        """Give up outputs that were kept for other tasks."""
        self._kept.clear()

    def run_batch(self, items: Sequence[Item], dim: int, *, space: Space = "single") -> Vectors | list[Item]:
        """Run items of one kind as one batch: their unit vectors, or the items of the next graph.

        Vectors are (B, dim), or in the space "multi" (B, T, dim). Raises BundleError for files that changed since the
        export, WrongVectorsError for other vectors that hold NaN or whose length is not 1, DeviceError for inputs
        that the graph cannot take.
        """
        found = self._step(items)
        return self._vectors(*found, len(items), dim, space) if isinstance(found, tuple) else found

    def _step(self, items: Sequence[Item]) -> tuple[str, Outputs] | list[Item]:
        """Run items of one kind as one batch: the graph and its outputs where it was the last, or the next items."""
        kept = [self._kept.get(item.key) for item in items]
        waiting = [item for item, outputs in zip(items, kept, strict=True) if outputs is None]
        outputs: Outputs = {}
        if waiting:
            first = waiting[0]
            outputs = self._run_graph(first.graph, self._family.feed(waiting), first.adapter)
            if self._family.follow(first, _row(outputs, 0)) is None:
                return first.graph, outputs
        rows = iter(range(len(waiting)))
        return [
            self._follow(item, self._keep(item, _row(outputs, next(rows))) if known is None else known)
            for item, known in zip(items, kept, strict=True)
        ]

    def _keep(self, item: Item, outputs: Arrays) -> Arrays:
        return outputs if item.key is None else self._kept.keep(item.key, outputs)

    def _follow(self, item: Item, outputs: Arrays) -> Item:
        following = self._family.follow(item, outputs)
        assert following is not None, "all items of a graph are followed, or none is"
        return following

    def _vectors(self, graph: str, outputs: Outputs, rows: int, dim: int, space: Space) -> Vectors:
        """The vectors of a batch in a space, checked, cut and then normalised."""
        vectors: Vectors = outputs[self._family.output(graph, space)]
        is_single = space == "single"
        full = self._manifest.dim(space)
        if (vectors.shape[0], vectors.shape[-1], vectors.ndim) != (rows, full, 2 if is_single else 3):
            raise BundleError(
                f"the {graph} graph gives {vectors.shape} for {rows} inputs of {full} dimensions; export it again"
            )
        if fault := find_fault(vectors.reshape(-1, full), dim):
            self._verify(graph)
            raise WrongVectorsError(
                f"the {graph} graph answered with {fault}; its files are as exported, so it does not run right here"
            )
        return shorten(vectors, dim) if is_single else vectors


def _row(outputs: Outputs, index: int) -> Arrays:
    """What a batch's outputs hold for one item."""
    return {name: rows[index] for name, rows in outputs.items()}
