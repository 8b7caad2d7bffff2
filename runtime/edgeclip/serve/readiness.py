"""Whether the service can answer: the bundle's self-test, run through the lanes on the device that serves.

The first run asks for every vector; later ones ask each tower for one more, in turn, and judge it with the others'
last answers, so a probe costs one text and one image. A run holds for `ready_s`. A probe waits a moment for a run and
then gives the last verdict, for probes have time limits shorter than a queue of images; a tower whose batch does not
come back is red at once.

Once a tower gave a vector that is none, or its files changed under it, no vector is trusted: `doubt` says why,
requests are refused, and the next run reads the files first. Only a self-test that passes ends the doubt.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.selftest import SelfTest, read_selftest, run_selftest
from edgeclip.encoder import Encoder
from edgeclip.errors import BundleError, DeviceError, EdgeclipError, WrongVectorsError
from edgeclip.manifest import TowerName
from edgeclip.serve.errors import log_bug, without_paths
from edgeclip.serve.queue.lanes import LaneFailed, QueueFull, TimedOut

_log = logging.getLogger("edgeclip.serve")
# How long a probe waits for a run: Kubernetes gives up after a second.
_PATIENCE_S = 0.7


class Towers(Protocol):
    """A lane, as far as readiness asks."""

    @property
    def is_wedged(self) -> bool:
        """Whether a batch has run too long."""

    async def submit(self, items: Sequence[NDArray[Any]], *, timeout_s: float) -> NDArray[np.float32]:
        """The vectors of inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether requests can be answered, and why not."""

    is_ready: bool
    reason: str


class Readiness:
    """The verdict, renewed when somebody asks and it is old."""

    def __init__(
        self, encoder: Encoder, lanes: Mapping[TowerName, Towers], *, ready_s: float, timeout_s: float
    ) -> None:
        self._encoder, self._lanes = encoder, lanes
        self._selftest: SelfTest | None = None  # read once: the bundle on disk may be another later
        self.doubt: str | None = None
        self._doubts = 0
        self._ready_s, self._timeout_s = ready_s, timeout_s
        self._verdict = Verdict(is_ready=False, reason="starting: the self-test has not passed yet")
        self._judged_at = -float("inf")
        self._run: asyncio.Task[None] | None = None
        self._tested: _TestedTowers | None = None

    async def check(self) -> Verdict:
        """The verdict, at most `ready_s` old where a run comes back in time."""
        for tower, lane in self._lanes.items():
            if lane.is_wedged:
                return Verdict(is_ready=False, reason=f"the {tower} tower does not come back from a batch")
        if self.doubt is None and (names := await asyncio.to_thread(lambda: self._encoder.overwritten_files)):
            self.distrust(f"{' and '.join(names)} changed in place")
        if time.monotonic() - self._judged_at > self._ready_s:
            await asyncio.wait({self.renew()}, timeout=_PATIENCE_S)
        return self._verdict

    def renew(self) -> "asyncio.Task[None]":
        """The run in progress, or a new one."""
        if self._run is None or self._run.done():
            self._run = asyncio.create_task(self._judge())
        return self._run

    def distrust(self, reason: str) -> None:
        """Red, and no vector is given out, until a self-test passes that begins after this."""
        self.doubt = without_paths(reason)
        self._doubts += 1
        self._set(self.doubt)
        self._judged_at = -float("inf")
        self.renew()

    async def close(self) -> None:
        """Wait for no run any more."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)

    async def _judge(self) -> None:
        doubts = self._doubts
        if self._tested is None:
            self._tested = _TestedTowers(self._encoder, self._lanes, asyncio.get_running_loop(), self._timeout_s)
        try:
            await asyncio.to_thread(self._test, self._tested)
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

    def _test(self, tested: "_TestedTowers") -> None:
        """In a thread: the files where there is doubt, then the towers."""
        if self.doubt is not None:
            self._encoder.verify_files()
        if self._selftest is None:
            self._selftest = read_selftest(self._encoder.manifest, self._encoder.folder)
        try:
            run_selftest(cast(Encoder, tested), self._selftest)
        except DeviceError:
            self._encoder.verify_files()  # before a device is blamed
            raise

    def _set(self, reason: str) -> None:
        if reason:
            self._tested = None  # the next run asks for everything anew
            if reason != self._verdict.reason:
                _log.error("not ready: %s", reason)
        else:
            self.doubt = None
            if not self._verdict.is_ready:
                _log.info("ready: the self-test passed on %s", self._encoder.device)
        self._verdict = Verdict(is_ready=not reason, reason=reason)


def is_doubtful(error: BaseException | None) -> bool:
    """Whether a tower's failure means that its other vectors may be wrong, too."""
    return isinstance(error, BundleError | WrongVectorsError)


class _TestedTowers:
    """What `run_selftest` asks of an Encoder, answered by the lanes. Runs in a thread beside the event loop."""

    def __init__(
        self,
        encoder: Encoder,
        lanes: Mapping[TowerName, Towers],
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
    ) -> None:
        self.manifest, self.device = encoder.manifest, encoder.device
        self._encoder, self._lanes, self._loop, self._timeout_s = encoder, lanes, loop, timeout_s
        self._inputs: dict[TowerName, Sequence[NDArray[Any]]] = {}
        self._vectors: dict[TowerName, NDArray[np.float32]] = {}
        self._turn = 0

    def encode_text(self, texts: Sequence[str], *, progress: bool) -> NDArray[np.float32]:
        self._turn += 1  # texts are asked for first
        if "text" not in self._inputs:
            self._inputs["text"] = self._encoder.tokenize(texts).rows
        return self._answer("text")

    def encode_image(self, images: Sequence[NDArray[np.uint8]], *, progress: bool) -> NDArray[np.float32]:
        if "vision" not in self._inputs:
            self._inputs["vision"] = [self._encoder.preprocess(image) for image in images]
        return self._answer("vision")

    def _answer(self, tower: TowerName) -> NDArray[np.float32]:
        inputs = self._inputs[tower]
        if tower not in self._vectors:
            self._vectors[tower] = np.stack([self._ask(tower, one) for one in inputs])
        else:
            index = self._turn % len(inputs)
            self._vectors[tower][index] = self._ask(tower, inputs[index])
        return self._vectors[tower]

    def _ask(self, tower: TowerName, one: NDArray[Any]) -> NDArray[np.float32]:
        """One by one, which any queue has room for."""
        asked = self._lanes[tower].submit([one], timeout_s=self._timeout_s)
        vector: NDArray[np.float32] = asyncio.run_coroutine_threadsafe(asked, self._loop).result()[0]
        return vector
