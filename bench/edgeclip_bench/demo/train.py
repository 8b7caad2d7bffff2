"""Train the small model, from nothing to a checkpoint in the official layout.

Pictures and captions are drawn as they are needed. Each step's depend on the seed and the step's number alone, so an
interrupted run goes on where it stopped and sees the same data. Matrices are optimised by Muon (Jordan et al. 2024,
as torch.optim.Muon), everything else by AdamW; the rate warms up, stays, and falls to zero. OUT gets the checkpoint's
four files and training.json: the recipe, the log, the machine and the weights' hash. While it runs, OUT/training.pt
holds what a continuation needs. A processor without bfloat16 takes 1.7 times as long.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from edgeclip.errors import BuildError
from edgeclip_bench.demo.captions import LANGUAGES, caption
from edgeclip_bench.demo.drawing import draw_picture
from edgeclip_bench.demo.layout import IMAGE_SIZE_PX, MATRYOSHKA_DIMS, checkpoint_config, preprocessor_config
from edgeclip_bench.demo.loss import matryoshka_loss
from edgeclip_bench.demo.scenes import Split, draw_scenes
from edgeclip_bench.demo.tokenizer import train_tokenizer
from edgeclip_bench.demo.towers import LOGIT_SCALE, RawTowers
from edgeclip_bench.demo.training_state import LOG, STATE, machine_facts, make_folder, rate, resume, save
from edgeclip_export.checkpoint import CONFIG, PREPROCESSOR, TOKENIZER, WEIGHTS, hash_file
from edgeclip_export.families.jina_clip.config import parse_config

_SAVE_EVERY = 50
_MAX_SCALE = 100.0  # as CLIP's


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    steps: int = 1000
    batch: int = 256
    family: int = 8  # how many pictures of a batch differ in one attribute; 1 in the first steps
    family_from: float = 0.1
    learning_rate: float = 2.5e-3
    weight_decay: float = 0.02
    warmup: float = 0.04
    decay_from: float = 0.3

    def __post_init__(self) -> None:
        if self.seed < 0 or self.steps < 1 or self.batch < 2:
            raise BuildError(
                f"seed {self.seed}, {self.steps} steps, batches of {self.batch}: wanted a seed from 0, steps from 1 "
                "and batches from 2"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return rate(step, self.steps, peak=self.learning_rate, warmup=self.warmup, decay_from=self.decay_from)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pictures (B, S, S, 3) uint8, and the ids (2B, T) of their captions: those in one language, then in another."""

    pixels: Tensor
    ids: Tensor


def draw_batch(
    tokenizer: Tokenizer, split: Split, seed: Sequence[int], *, count: int, family: int, language: str | None = None
) -> Batch:
    """A batch from its seed; each picture has captions in two languages drawn for it, or two in the same."""
    draw = np.random.default_rng(tuple(seed))
    scenes = draw_scenes(split, draw, family=family)
    pictures, first, second = [], [], []
    for _ in range(count):
        scene = next(scenes)
        pictures.append(
            draw_picture(scene, draw, side_px=IMAGE_SIZE_PX, width_px=IMAGE_SIZE_PX, height_px=IMAGE_SIZE_PX)
        )
        names = (language,) * 2 if language else [LANGUAGES[at] for at in draw.choice(len(LANGUAGES), 2, False)]
        first.append(caption(scene, names[0], draw))
        second.append(caption(scene, names[1], draw))
    rows = [encoding.ids for encoding in tokenizer.encode_batch([*first, *second])]
    ids = np.full((len(rows), max(map(len, rows))), tokenizer.token_to_id("<pad>"), dtype=np.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return Batch(pixels=torch.from_numpy(np.stack(pictures)), ids=torch.from_numpy(ids))


def train(out: Path, recipe: Recipe) -> None:
    """Train, or continue training; BuildError for a folder with a finished checkpoint or another recipe's run."""
    make_folder(out, WEIGHTS)
    try:
        _train(out, recipe)
    except OSError as error:
        raise BuildError(f"{out}: cannot be written ({error.strerror or error})") from error


def _train(out: Path, recipe: Recipe) -> None:
    plain, tokenizer = train_tokenizer(recipe.seed), train_tokenizer(recipe.seed)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = checkpoint_config(tokenizer.get_vocab_size())
    towers = RawTowers(parse_config(config), recipe.seed)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(towers.matrices(), weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(towers.others(), betas=(0.9, 0.98), weight_decay=0.0),
    ]
    log = resume(out / STATE, asdict(recipe), towers, optimizers)
    started = time.monotonic() - log["seconds"]
    with tqdm(total=recipe.steps, initial=len(log["loss"]), unit="step", disable=None) as bar:
        for step in range(len(log["loss"]), recipe.steps):
            loss = _step(towers, optimizers, tokenizer, recipe, step)
            log["loss"].append(round(loss, 4))
            log["seconds"] = round(time.monotonic() - started, 1)
            if (step + 1) % _SAVE_EVERY == 0:
                save(out / STATE, asdict(recipe), towers, optimizers, log)
            bar.set_postfix_str(f"loss {loss:.3f}")
            bar.update()
    weights = {name: tensor.detach().half().contiguous() for name, tensor in towers.tensors.items()}
    towers.load(weights)
    log["validation"] = {
        language: validate(towers, tokenizer, recipe.seed, language) for language in tqdm(LANGUAGES, disable=None)
    }
    plain.save(str(out / TOKENIZER))
    _write_json(out / CONFIG, config)
    _write_json(out / PREPROCESSOR, preprocessor_config())
    stage = out / f"{WEIGHTS}.tmp"
    save_file(weights, stage, metadata={"format": "pt"})
    _write_json(
        out / LOG,
        {"weights_sha256": hash_file(stage), "recipe": asdict(recipe), "machine": machine_facts(towers), **log},
    )
    stage.replace(out / WEIGHTS)
    (out / STATE).unlink(missing_ok=True)


def _step(
    towers: RawTowers, optimizers: Sequence[torch.optim.Optimizer], tokenizer: Tokenizer, recipe: Recipe, step: int
) -> float:
    family = recipe.family if step >= recipe.family_from * recipe.steps else 1
    batch = draw_batch(tokenizer, "train", (recipe.seed, 2, step), count=recipe.batch, family=family)
    for optimizer in optimizers:
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
    images, texts = towers.encode(batch.pixels, batch.ids)
    first, second = texts.chunk(2)
    scale = towers.tensors[LOGIT_SCALE].exp().clamp(max=_MAX_SCALE)
    loss = matryoshka_loss(images, first, second, scale, MATRYOSHKA_DIMS)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


@torch.no_grad()
def validate(
    towers: RawTowers, tokenizer: Tokenizer, seed: int, language: str, *, count: int = 500, family: int = 20
) -> dict[str, float]:
    """Recall@1 and @5 of `count` pictures of combinations kept for validation, by dimension and direction."""
    batch = draw_batch(tokenizer, "validation", (seed, 3), count=count, family=family, language=language)
    pixels, ids = batch.pixels.split(100), batch.ids[:count].split(100)
    parts = [towers.encode(*part) for part in zip(pixels, ids, strict=True)]
    images, texts = (torch.cat(vectors) for vectors in zip(*parts, strict=True))
    recall = {}
    for dim in MATRYOSHKA_DIMS:
        scores = F.normalize(texts[:, :dim], dim=1) @ F.normalize(images[:, :dim], dim=1).T
        for direction, table in (("text_to_image", scores), ("image_to_text", scores.T)):
            better = (table >= table.diagonal()[:, None]).sum(dim=1) - 1
            for k in (1, 5):
                recall[f"{direction} recall@{k} at {dim}"] = round((better < k).float().mean().item(), 4)
    return recall


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, or that of a run that was interrupted")
    for name, what in (("seed", "of weights and data"), ("steps", "of training"), ("batch", "pictures in a step")):
        default = getattr(Recipe(), name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default})")


def run(options: argparse.Namespace) -> int:
    """Train."""
    try:
        train(options.out, Recipe(seed=options.seed, steps=options.steps, batch=options.batch))
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from the last {_SAVE_EVERY} steps", file=sys.stderr)
        return 130
    return 0
