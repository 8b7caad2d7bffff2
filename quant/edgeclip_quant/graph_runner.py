"""Open and run a graph on the CPU as the runtime does, so that what is measured here is what will run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeclip.engine.devices import Device, usable_cpus
from edgeclip.engine.session import plan_tower
from edgeclip.errors import BuildError
from edgeclip_quant.inputs.made_up import Batches

Run = Callable[[NDArray[Any]], NDArray[np.float32]]

_FATAL_ONLY = 4


def open_tower(path: Path) -> Run:
    """Open a graph on the CPU; a BuildError, when it is opened or run, gives onnxruntime's reason."""
    threads = usable_cpus()
    plan = plan_tower("text", Device(kind="cpu"), threads, None)  # on the CPU the same for both towers
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL_ONLY  # what it would print, it raises
    for entry in plan.entries:
        options.add_session_config_entry(*entry)
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(plan.without)
        )
    except Exception as error:  # onnxruntime's share no base class
        raise _cannot_run(path, error) from error
    return run_of(session, path)


def run_of(session: onnxruntime.InferenceSession, path: Path) -> Run:
    """A function that runs a session on a batch; BuildError when it fails."""
    name = session.get_inputs()[0].name

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        try:
            output: NDArray[np.float32] = session.run(None, {name: batch})[0]
        except Exception as error:
            raise _cannot_run(path, error) from error
        return output

    return run


def answers(run: Run, batches: Batches, what: str, progress: Callable[[str, int, int], None]) -> NDArray[np.float32]:
    """The vectors of all batches (N, D)."""
    rows = []
    for done, batch in enumerate(batches):
        progress(what, done, len(batches))
        rows.append(run(batch))
    return np.concatenate(rows)


def answer(path: Path, batches: Batches, what: str, progress: Callable[[str, int, int], None]) -> NDArray[np.float32]:
    """The vectors of all batches (N, D), from a graph that is opened only for this."""
    return answers(open_tower(path), batches, what, progress)


def _cannot_run(path: Path, error: Exception) -> BuildError:
    words = str(error).strip().split("\n")[0]
    return BuildError(f"onnxruntime cannot run {path.name} ({words})")
