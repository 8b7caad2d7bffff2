"""Whether the service can answer: the bundle's self-test, run through the lanes on the device that serves.

Texts are asked for first, and the service is ready for them (`check("text")`) before an image's graph is loaded.

The first run asks for every vector; later runs ask for one more of each modality, in one of the model's spaces, in
turn, and judge it with the last answers of the others, so a probe costs one text and one image. A run holds for
`ready_s`. A probe waits a moment for a run and then gives the last verdict, because probes have time limits shorter
than a queue of images; a graph whose batch does not come back is red at once.

Once a graph gave a vector that is none, or its files changed under it, no vector is trusted: `doubt` says why,
requests are refused, and the next run reads the files first. Only a self-test that passes ends the doubt.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from edgeclip.bundle.selftest import SelfTest, read_selftest, run_selftest
from edgeclip.encoder import Encoder
from edgeclip.engine.unit_vectors import Vectors
from edgeclip.errors import BundleError, DeviceError, EdgeclipError, OutOfMemoryError, WrongVectorsError
from edgeclip.families.family import Item
from edgeclip.manifest import Modality, Space
from edgeclip.serve.errors import log_bug, without_paths
from edgeclip.serve.queue.calls import HandOn, LaneAnswer
from edgeclip.serve.queue.chain import run_through
from edgeclip.serve.queue.lanes import LaneFailed, QueueFull, TimedOut

_log = logging.getLogger("edgeclip.serve")
# How long a probe waits for a run: Kubernetes gives up after a second.
_PATIENCE_S = 0.7


class Lane(Protocol):
    """A graph's queue: `edgeclip.serve.queue.lanes.Lane`."""

    @property
    def is_wedged(self) -> bool:
        """Whether a batch has run too long."""

    async def submit(
        self, items: list[Item], *, space: Space, timeout_s: float, hand_on: HandOn | None, is_handed_on: bool
    ) -> LaneAnswer:
        """The graph's answer to items, in a space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether requests can be answered, and why not."""

    is_ready: bool
    reason: str


class Readiness:
    """The verdict, renewed when it is asked for and is old."""

    def __init__(self, encoder: Encoder, lanes: Mapping[str, Lane], *, ready_s: float, timeout_s: float) -> None:
        self._encoder, self._lanes = encoder, lanes
        self._selftest: SelfTest | None = None  # read once: the bundle on disk may be another later
        self.doubt: str | None = None
        self._doubts = 0
        self._ready_s, self._timeout_s = ready_s, timeout_s
        self._verdict = Verdict(is_ready=False, reason="starting: the self-test has not passed yet")
        self._judged_at = -float("inf")
        self._run: asyncio.Task[None] | None = None
        self._asked: _LaneAsk | None = None
        # Modalities whose part of the self-test has passed: ever, and in the run in progress.
        self._passed: set[Modality] = set()
        self._passing: set[Modality] = set()

    async def check(self, modality: Modality | None = None) -> Verdict:
        """The verdict, at most `ready_s` old where a run comes back in time.

        That of one modality is whether its part of the self-test has passed, whatever the others do.
        """
        verdict = await self._check(modality)
        if modality is None or verdict.is_ready or modality not in self._passed:
            return verdict
        return Verdict(is_ready=True, reason="") if self._is_usable(modality) else verdict

    @property
    def passed(self) -> tuple[Modality, ...]:
        """The modalities whose part of the self-test has passed."""
        return tuple(sorted(self._passed, reverse=True))

    def _is_usable(self, modality: Modality) -> bool:
        graphs = self._encoder.manifest.graphs_of(modality)
        return self.doubt is None and not any(self._lanes[graph].is_wedged for graph in graphs)

    async def _check(self, modality: Modality | None) -> Verdict:
        for graph, lane in self._lanes.items():
            if lane.is_wedged:
                return Verdict(is_ready=False, reason=f"the {graph} graph does not come back from a batch")
        if self.doubt is None and (names := await asyncio.to_thread(lambda: self._encoder.overwritten_files)):
            self.distrust(f"{' and '.join(names)} changed in place")
        if time.monotonic() - self._judged_at > self._ready_s:
            run = self.renew()
            if modality not in self._passed:
                await asyncio.wait({run}, timeout=_PATIENCE_S)
        return self._verdict

    def renew(self) -> "asyncio.Task[None]":
        """The run in progress, or a new one."""
        if self._run is None or self._run.done():
            self._run = asyncio.create_task(self._judge())
        return self._run

    def distrust(self, reason: str) -> None:
        """Turn red, and give out no vector, until a self-test passes that begins after this."""
        self.doubt = without_paths(reason)
        self._doubts += 1
        self._set(self.doubt)
        self._judged_at = -float("inf")
        self.renew()

    async def close(self) -> None:
        """End the run in progress, if there is one."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)

    async def _judge(self) -> None:
        doubts = self._doubts
        if self._asked is None:
            self._asked = _LaneAsk(self._encoder, self._lanes, asyncio.get_running_loop(), self._timeout_s)
        try:
            await asyncio.to_thread(self._test, self._asked)
        except QueueFull:
            return  # busy, and no worse than it was
        except TimedOut:
            reason = f"the self-test did not come back within {self._timeout_s:.0f} s"
        except (EdgeclipError, LaneFailed) as error:
            cause = error.__cause__ if isinstance(error, LaneFailed) and error.__cause__ else error
            reason = without_paths(str(cause)) or type(error).__name__
            if is_doubtful(cause) or not isinstance(error, LaneFailed):  # else it gave no vector, which is no doubt
                self.doubt = reason
        except Exception as error:  # or the last verdict would stand for ever
            log_bug(_log, "the self-test failed", error)
            reason = f"the self-test failed: {type(error).__name__}"
        else:
            reason = ""
        if not reason and doubts != self._doubts:  # while it ran
            self._run = asyncio.create_task(self._judge())
            return
        self._set(reason)
        self._judged_at = time.monotonic()

    def _test(self, ask: "_LaneAsk") -> None:
        """Runs in a thread: reads the files where there is doubt, then asks the graphs."""
        self._passing.clear()
        if self.doubt is not None:
            self._encoder.verify_files()
        manifest = self._encoder.manifest
        if self._selftest is None:
            self._selftest = read_selftest(manifest, self._encoder.folder)
        try:
            run_selftest(manifest, ask, self._selftest, device=self._encoder.device, passed=self._pass)
        except OutOfMemoryError:
            raise
        except DeviceError:
            self._encoder.verify_files()  # before a device is blamed
            raise

    def _pass(self, modality: Modality) -> None:
        """Note that a modality's part of the self-test has passed; called in the run's thread."""
        self._passing.add(modality)
        if modality not in self._passed and self.doubt is None:
            _log.info("ready for %ss: their part of the self-test passed on %s", modality, self._encoder.device)
            self._passed.add(modality)

    def _set(self, reason: str) -> None:
        if reason:
            self._passed = set() if self.doubt is not None else set(self._passing)
            self._asked = None  # the next run asks for everything anew
            if reason != self._verdict.reason:
                _log.error("not ready: %s", reason)
        else:
            self.doubt = None
            self._passed.update(self._encoder.manifest.modalities)
            if not self._verdict.is_ready:
                _log.info("ready: the self-test passed on %s", self._encoder.device)
        self._verdict = Verdict(is_ready=not reason, reason=reason)


def is_doubtful(error: BaseException | None) -> bool:
    """Whether a graph's failure means that its other vectors may be wrong, too."""
    return isinstance(error, BundleError | WrongVectorsError)


class _LaneAsk:
    """Answers the self-test through the lanes. Runs in a thread beside the event loop.

    The first call for a modality asks for every input in every space, each later call for one input in one space, in
    turn.
    """

    def __init__(
        self,
        encoder: Encoder,
        lanes: Mapping[str, Lane],
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
    ) -> None:
        self._encoder, self._lanes, self._loop, self._timeout_s = encoder, lanes, loop, timeout_s
        self._items: dict[Modality, list[Item]] = {}
        self._rows: dict[Modality, dict[tuple[int, Space], Vectors]] = {}
        self._calls: Counter[Modality] = Counter()

    def __call__(
        self, modality: Modality, inputs: Sequence[Any], tasks: Sequence[str | None], spaces: Sequence[Space]
    ) -> Mapping[Space, Vectors]:
        if modality not in self._items:
            self._items[modality] = self._encoder.prepare_inputs(modality, inputs, tasks)
        items = self._items[modality]
        # An image's spaces one after the other: its features are then computed once.
        questions = [(index, space) for index in range(len(items)) for space in spaces]
        if modality not in self._rows:
            self._rows[modality] = {(index, space): self._run(items[index], space) for index, space in questions}
        else:
            index, space = questions[self._calls[modality] % len(questions)]
            self._rows[modality][index, space] = self._run(items[index], space)
        self._calls[modality] += 1
        rows = self._rows[modality]
        return {space: np.concatenate([rows[index, space] for index in range(len(items))]) for space in spaces}

    def _run(self, item: Item, space: Space) -> Vectors:
        """The vectors (T, D) of one item, T is 1 in "single". Items are run one by one, because every queue has room
        for one.
        """
        run = run_through(partial(self._submit, space), [item])
        vectors: Vectors = np.atleast_2d(asyncio.run_coroutine_threadsafe(run, self._loop).result()[0])
        return vectors

    async def _submit(
        self, space: Space, graph: str, items: list[Item], *, hand_on: HandOn | None, is_handed_on: bool
    ) -> LaneAnswer:
        return await self._lanes[graph].submit(
            items, space=space, timeout_s=self._timeout_s, hand_on=hand_on, is_handed_on=is_handed_on
        )
