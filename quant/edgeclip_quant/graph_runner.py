"""Open and run a bundle's graphs on the CPU as the runtime does, so that what is measured here is what will run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.devices import Device, choose_threads, usable_cpus
from edgeclip.engine.ort import first_line, start_session
from edgeclip.engine.products import adds_in_16_bits, pairs_overflow
from edgeclip.engine.providers import plan_session
from edgeclip.errors import BuildError
from edgeclip.families.family import Arrays, Item
from edgeclip.manifest import Precision, Space
from edgeclip_quant.emulation import emulating_session
from edgeclip_quant.inputs.feeder import Feeder

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Progress = Callable[[str, int, int], None]
# A feed to the graph's outputs by name.
Run = Callable[[Arrays], Mapping[str, NDArray[Any]]]


def open_run(path: Path, kernels: Mapping[str, int] | None = None, threads: int | None = None) -> Run:
    """Open a graph on the CPU; a BuildError, when it is opened or run, gives onnxruntime's reason.

    `kernels` are those of its layers; None where they are not known. `threads` None: all that may be used.
    """
    threads = threads or usable_cpus()
    plan = plan_session(
        Device(kind="cpu"),
        "fp32",
        threads=threads,
        adds_in_16_bits=adds_in_16_bits(),
        kernels=None if pairs_overflow() else kernels,
    )
    try:
        session = start_session(path, plan=plan, threads=threads)
    except Exception as error:  # onnxruntime's share no base class
        raise _cannot_run(path, error) from error
    return run_of(session, path)


def run_of(session: "InferenceSession", path: Path) -> Run:
    """A function that runs a session on a feed; BuildError when it fails."""
    names = [output.name for output in session.get_outputs()]

    def run(feed: Arrays) -> Mapping[str, NDArray[Any]]:
        try:
            return dict(zip(names, session.run(None, dict(feed)), strict=True))
        except Exception as error:
            raise _cannot_run(path, error) from error

    return run


def answers(run: Run, feeds: Sequence[Arrays], what: str, progress: Progress) -> list[NDArray[np.float32]]:
    """The rows (N, D) of each of the graph's outputs for all feeds."""
    return [np.concatenate(some) for some in zip(*each_answer(run, feeds, what, progress), strict=True)]


def each_answer(
    run: Run, feeds: Sequence[Arrays], what: str, progress: Progress
) -> Iterator[list[NDArray[np.float32]]]:
    """The rows (N, D) of each of the graph's outputs, feed by feed; each is run when it is asked for."""
    for done, feed in enumerate(feeds):
        progress(what, done, len(feeds))
        yield [rows_of(array) for array in run(feed).values()]


def answer(path: Path, feeds: Sequence[Arrays], what: str, progress: Progress) -> NDArray[np.float32]:
    """The rows (N, D) of the first output, from a graph that is opened only for this."""
    return answers(open_run(path), feeds, what, progress)[0]


def rows_of(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (..., D) as rows (N, D)."""
    return array.reshape(-1, array.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One run of one graph on the way from an item to its vectors."""

    graph: str
    feed: Arrays
    outputs: Mapping[str, NDArray[Any]]


class Graphs:
    """A bundle's graphs in one folder, each opened when it is first run in a `with`, and closed at its end.

    `files` are those of the graphs, by graph, that need not lie in the bundle's own folder. A graph whose precision
    is fp16 is emulated. `kernels` are those of the graphs' layers, by graph, where they are known.
    """

    def __init__(
        self,
        feeder: Feeder,
        files: Mapping[str, Path],
        precisions: Mapping[str, Precision] | None = None,
        kernels: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        self._feeder, self._files, self._precisions = feeder, files, precisions or {}
        self._kernels = kernels or {}
        self._threads = choose_threads(feeder.manifest, usable_cpus())
        self._runs: dict[str, Run] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runs.clear()
        self._stack.close()

    def open(self, graph: str) -> Run:
        """One graph, opened where it was not."""
        if graph not in self._runs:
            path = self._files[graph]
            if self._precisions.get(graph) == "fp16":
                session = self._stack.enter_context(emulating_session(path, path.parent))
                self._runs[graph] = run_of(session, path)
            else:
                self._runs[graph] = open_run(path, self._kernels.get(graph), self._threads)
        return self._runs[graph]

    def run(self, graph: str, feed: Arrays) -> Mapping[str, NDArray[Any]]:
        """The outputs of one graph."""
        return self.open(graph)(feed)

    def steps(self, item: Item) -> list[Step]:
        """Every run that an item needs, the last of which gives its vectors."""
        steps: list[Step] = []
        waiting: Item | None = item
        while waiting is not None:
            feed = self._feeder.feed([waiting])
            outputs = self.run(waiting.graph, feed)
            steps.append(Step(graph=waiting.graph, feed=feed, outputs=outputs))
            waiting = self._feeder.family.follow(waiting, {name: array[0] for name, array in outputs.items()})
        return steps

    def vectors(
        self, items: Sequence[Item], spaces: Sequence[Space], what: str, progress: Progress
    ) -> Mapping[Space, NDArray[np.float32]]:
        """The vectors of all items in each space, as rows (N, D): one for each item in `single`, one for each token
        in `multi`.
        """
        found = self.matrices(items, spaces, what, progress)
        return {space: np.concatenate(rows) for space, rows in found.items()}

    def matrices(
        self, items: Sequence[Item], spaces: Sequence[Space], what: str, progress: Progress
    ) -> Mapping[Space, list[NDArray[np.float32]]]:
        """The vectors of each item in each space, as rows (T, D): one in `single`, one for each token in `multi`."""
        rows: dict[Space, list[NDArray[np.float32]]] = {space: [] for space in spaces}
        for done, item in enumerate(items):
            progress(what, done, len(items))
            last = self.steps(item)[-1]
            for space in spaces:
                rows[space].append(rows_of(last.outputs[self._feeder.family.output(last.graph, space)]))
        return rows


def _cannot_run(path: Path, error: Exception) -> BuildError:
    return BuildError(f"onnxruntime cannot run {path.name} ({first_line(error)})")
