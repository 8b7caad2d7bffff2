"""What a run of training leaves so that it can go on: weights, the optimizers' state, and the log.

A state says which recipe it was made by, and goes on with that alone.
"""

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edgeclip.errors import BuildError
from edgeclip_bench.demo.raw_tensors import RawTensors

LOG = "training.json"
STATE = "training.pt"


def make_folder(out: Path, weights: str) -> None:
    """Make the folder of a run, or take that of one to go on with; BuildError where `weights` are in it already."""
    if (out / weights).exists():
        raise BuildError(f"{out}: holds a trained checkpoint already; choose another name")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{out}: cannot be made ({error.strerror})") from error


def rate(step: int, steps: int, *, peak: float, warmup: float, decay_from: float) -> float:
    """The learning rate of a step: it rises, stays at the peak, and falls to zero."""
    done = step / steps
    return peak * min(1.0, (done + 1 / steps) / warmup, (1 - done) / (1 - decay_from))


def resume(
    path: Path, recipe: dict[str, Any], raw: RawTensors, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restore the state of an interrupted run; return its log, an empty one where there is nothing to continue."""
    if not path.exists():
        return {"seconds": 0.0, "loss": []}
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # zip's, pickle's, torch's own: whatever a damaged file gives
        raise BuildError(
            f"{path}: no whole training state ({type(error).__name__}); remove it to begin anew"
        ) from error
    if state["recipe"] != recipe:
        raise BuildError(f"{path}: was begun with {state['recipe']}; remove it, or go on with the same")
    raw.load(state["tensors"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    log: dict[str, Any] = state["log"]
    print(f"going on from step {len(log['loss'])} of {recipe['steps']}", file=sys.stderr)
    return log


def save(
    path: Path,
    recipe: dict[str, Any],
    raw: RawTensors,
    optimizers: Sequence[torch.optim.Optimizer],
    log: dict[str, Any],
) -> None:
    """Write the state beside its name, then under it."""
    stage = path.with_name(f"{path.name}.tmp")
    state = {
        "recipe": recipe,
        "tensors": {name: tensor.detach() for name, tensor in raw.tensors.items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "log": log,
    }
    torch.save(state, stage)
    os.replace(stage, path)


def machine_facts(raw: RawTensors) -> dict[str, Any]:
    """What the log says of the machine."""
    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.machine(),
        "bfloat16": raw.has_bfloat16,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
