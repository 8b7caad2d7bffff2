"""One graph that is open in onnxruntime: run it. `edgeclip.engine.opening` opens it."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.watched_files import WatchedFiles
from edgeclip.engine.adapters import Adapters
from edgeclip.engine.batch_policy import BatchPolicy, is_oversized
from edgeclip.engine.cuda.capture_gate import GATE
from edgeclip.engine.cuda.held_adapters import HeldAdapters
from edgeclip.engine.devices import Device
from edgeclip.engine.ort import first_line, run_options
from edgeclip.errors import BundleError, DeviceError, InputError, OutOfMemoryError
from edgeclip.host.out_of_memory import is_out_of_memory

Arrays = Mapping[str, NDArray[Any]]
# Runs of a batch while its weights are touched, renamed or written.
_TRIES = 3


class Lane(Protocol):
    """What runs a session on CUDA with buffers of its own (`edgeclip.engine.cuda.cuda_session`)."""

    def run(self, feed: Arrays, adapter: str | None) -> dict[str, NDArray[Any]]:
        """Every output of the graph for a batch."""

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Page-locked memory for pixels."""

    def recycle(self, memory: NDArray[np.uint8]) -> None:
        """Keep memory that nothing uses any more."""


class GraphSession:
    """An open graph on a device. Calling it from several threads at once is safe.

    `session` is onnxruntime's. `files` are the weights that it reads in place, watched before and after every run.
    `lane` runs it on CUDA; None elsewhere. `policy` divides a caller's batch where an engine has profiles.
    """

    def __init__(
        self,
        session: Any,
        path: Path,
        graph: str,
        device: Device,
        *,
        files: WatchedFiles,
        adapters: Adapters,
        policy: BatchPolicy | None = None,
        lane: Lane | None = None,
    ) -> None:
        self._session, self._path, self._graph, self._device = session, path, graph, device
        self.files, self._adapters, self._policy, self._lane = files, adapters, policy, lane
        self._outputs = tuple(output.name for output in session.get_outputs())
        self._has_adapters = adapters.are_wanted
        self._held: HeldAdapters | None = None
        if lane is None and adapters.are_wanted and device.kind in ("cuda", "tensorrt"):
            self._held = HeldAdapters(session, adapters, ("cuda", device.index))
        # What a GPU computes with are copies.
        self._is_mapped = device.kind in ("cpu", "openvino")
        # The CPU's arena keeps what the largest batch took: 240 MB of a text of 2048 tokens. Giving it back after
        # every run costs some 10 % at 300 and 512 tokens, so that is done after those that are larger than planned.
        # No arena at all is no answer: malloc keeps as much, and an image takes 10 % longer.
        self._shrinking = None
        if device.kind == "cpu":
            self._shrinking = run_options(**{"memory.enable_memory_arena_shrinkage": "cpu:0"})

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs."""
        return self._outputs

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Memory for pixels (B, S, S, 3) that the device reads without another copy: page-locked for CUDA.

        Give it to `recycle` when it is no longer used.
        """
        return self._lane.allocate(shape) if self._lane else np.empty(shape, np.uint8)

    def recycle(self, memory: NDArray[np.uint8]) -> None:
        """Keep memory of `allocate`, which nothing uses any more, for the next call."""
        if self._lane:
            self._lane.recycle(memory)

    def run(
        self, feed: Arrays, fetch: Sequence[str] | None = None, adapter: str | None = None
    ) -> dict[str, NDArray[Any]]:
        """The outputs named in `fetch` (None: all of them) for a batch: arrays with a batch axis, by name.

        `feed` has the batch's arrays by the names of the inputs, in the order of the graph, those of adapters left
        out; `adapter` names the adapter to use, None is the base model. A batch larger than TensorRT's profiles is
        run in parts; inputs that fit no profile are an InputError. Raises BundleError when weights that are read in
        place were overwritten, DeviceError for inputs that the graph cannot take.
        """
        if not feed:
            raise DeviceError(f"the {self._graph} graph failed on {self._device}: there are no arrays")
        shape = next(iter(feed.values())).shape
        parts = self._policy.parts(self._graph, shape) if self._policy else []
        names = self._outputs if fetch is None else tuple(fetch)
        before = self._check_files()  # reading beyond the new end of a file that was cut ends the process (SIGBUS)
        for _ in range(_TRIES):
            try:
                if parts[1:]:
                    found = [
                        self._run({name: rows[part] for name, rows in feed.items()}, names, adapter) for part in parts
                    ]
                    outputs = {name: np.concatenate([one[name] for one in found]) for name in names}
                else:
                    outputs = self._run(feed, names, adapter)
            finally:
                after = self._check_files()
            if after == before:
                return outputs
            before = after  # right again, or only touched: but what was it when it was read?
        raise BundleError(f"{self._path.parent}: files of {self._path.name} change all the time while they are used")

    def _check_files(self) -> tuple[object, ...]:
        return self.files.check() if self._is_mapped else ()

    def _run(self, feed: Arrays, names: Sequence[str], adapter: str | None) -> dict[str, NDArray[Any]]:
        try:
            if self._lane:
                outputs = self._lane.run(feed, adapter)
                return {name: outputs[name] for name in names}
            shape = next(iter(feed.values())).shape
            options = self._shrinking if is_oversized(self._graph, shape) else None
            if self._held and adapter is not None:
                with gate(self._device):
                    return self._held.run(feed, names, adapter, options)
            whole = {**feed, **self._adapters.get(adapter)} if self._has_adapters or adapter is not None else feed
            with gate(self._device):
                return dict(zip(names, self._session.run(list(names), whole, options), strict=True))
        except (
            BundleError,
            InputError,
        ):  # of an adapter, or of the session for padded texts, opened for the first one
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {rows.shape}" for name, rows in feed.items())
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"out of memory: the {self._graph} graph ran on {self._device} with a batch of {shapes} "
                    f"({first_line(error)}); give smaller inputs, fewer at once, or more memory"
                ) from error
            raise DeviceError(
                f"the {self._graph} graph failed on {self._device} with a batch of {shapes} ({first_line(error)})"
            ) from error


def gate(device: Device) -> contextlib.AbstractContextManager[None]:
    """Keep allocations on a GPU outside of a lane from running while a lane captures (`CaptureGate`)."""
    return GATE.together() if device.kind == "cuda" else contextlib.nullcontext()
