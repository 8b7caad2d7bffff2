"""A run of training: the recipe's schedule, the loop, the state from which an interrupted run goes on, and the log.

Both small models are trained by it; each brings its tensors and what a step minimises. Matrices are optimised by Muon
(Jordan et al. 2024, as torch.optim.Muon), everything else by AdamW; the rate warms up, stays, and falls to zero. A
step's data depend on the seed and the step's number alone, so an interrupted run goes on where it stopped and sees
the same data. A state says which recipe it was made by, and goes on with that alone.
"""

import argparse
import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edgeclip.errors import BuildError
from edgeclip_bench.demo.raw_tensors import RawTensors
from edgeclip_bench.families.layout import write_json

LOG = "training.json"
STATE = "training.pt"
_SAVE_EVERY = 50

# From a step's number: what the step minimises, and the losses by name that the log and the progress bar show.
Losses = Callable[[int], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The part of a recipe that is the same for every model: seed, steps, batches and the learning rate."""

    seed: int = 0
    steps: int
    batch: int
    family: int = 8  # how many pictures or pages of a batch differ in one attribute; 1 in the first steps
    family_from: float
    learning_rate: float
    weight_decay: float = 0.02
    warmup: float
    decay_from: float = 0.3

    def __post_init__(self) -> None:
        if self.seed < 0 or self.steps < 1 or self.batch < 2:
            raise BuildError(
                f"seed {self.seed}, {self.steps} steps, batches of {self.batch}: wanted a seed from 0, steps from 1 "
                "and batches from 2"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step: it rises, stays at its most, and falls to zero."""
        done = step / self.steps
        return self.learning_rate * min(
            1.0, (done + 1 / self.steps) / self.warmup, (1 - done) / (1 - self.decay_from)
        )

    def family_at(self, step: int) -> int:
        """How many pictures or pages of this step's batch differ in one attribute."""
        return self.family if step >= self.family_from * self.steps else 1


@contextlib.contextmanager
def run_folder(out: Path, weights: str) -> Iterator[None]:
    """The folder of a run, made or taken to go on with.

    BuildError where `weights` are in it already, and where it cannot be written.
    """
    if (out / weights).exists():
        raise BuildError(f"{out}: holds a trained checkpoint already; choose another name")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{out}: cannot be made ({error.strerror})") from error
    try:
        yield
    except OSError as error:
        raise BuildError(f"{out}: cannot be written ({error.strerror or error})") from error


def run_steps(out: Path, recipe: Schedule, raw: RawTensors, losses: Losses) -> dict[str, Any]:
    """Do the steps that are left of a run in `out`; return its log: seconds, and each step's losses."""
    optimizers = make_optimizers(raw, recipe.weight_decay)
    log = _resume(out / STATE, asdict(recipe), raw, optimizers)
    started = time.monotonic() - log["seconds"]
    with tqdm(total=recipe.steps, initial=len(log["loss"]), unit="step", disable=None) as bar:
        for step in range(len(log["loss"]), recipe.steps):
            found = take_step(optimizers, recipe.rate(step), partial(losses, step))
            rounded = [round(loss, 4) for loss in found.values()]
            log["loss"].append(rounded if len(rounded) > 1 else rounded[0])
            log["seconds"] = round(time.monotonic() - started, 1)
            if (step + 1) % _SAVE_EVERY == 0:
                _save(out / STATE, asdict(recipe), raw, optimizers, log)
            bar.set_postfix_str(", ".join(f"{name} {loss:.3f}" for name, loss in found.items()))
            bar.update()
    return log


def make_optimizers(raw: RawTensors, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the other tensors."""
    return [
        torch.optim.Muon(raw.matrices(), weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(raw.others(), betas=(0.9, 0.98), weight_decay=0.0),
    ]


def take_step(
    optimizers: Sequence[torch.optim.Optimizer],
    rate: float,
    losses: Callable[[], tuple[Tensor, Mapping[str, Tensor]]],
) -> dict[str, float]:
    """One step at a learning rate; return the losses by name, as they were before it."""
    for optimizer in optimizers:
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = rate
    total, parts = losses()
    torch.autograd.backward(total)
    for optimizer in optimizers:
        optimizer.step()
    return {name: part.item() for name, part in parts.items()}


def finish(
    out: Path, recipe: Schedule, raw: RawTensors, log: Mapping[str, Any], hashes: str | Mapping[str, str]
) -> None:
    """Write training.json beside the weights with these hashes, and remove what a continuation would need."""
    facts = {
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.machine(),
        "bfloat16": raw.has_bfloat16,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    write_json(out / LOG, {"weights_sha256": hashes, "recipe": asdict(recipe), "machine": facts, **log})
    (out / STATE).unlink(missing_ok=True)


def add_training_arguments(parser: argparse.ArgumentParser, usual: Schedule, what: str) -> None:
    """Declare the arguments of a training on the command line; a batch has so many of `what`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, or that of a run that was interrupted")
    for name, told in (("seed", "of weights and data"), ("steps", "of training"), ("batch", f"{what} in a step")):
        default = getattr(usual, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{told} ({default})")


def run_training(train: Callable[[], None]) -> int:
    """Train; return the exit status, 130 where it was interrupted."""
    try:
        train()
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from the last {_SAVE_EVERY} steps", file=sys.stderr)
        return 130
    return 0


def _resume(
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


def _save(
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
