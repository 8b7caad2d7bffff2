"""Train the small model, from nothing to a checkpoint in the official layout.

Pictures and captions are drawn as they are needed. OUT gets the checkpoint's four files and training.json: the
recipe, the log, the machine and the weights' hash. While it runs, OUT/training.pt holds what a continuation needs. A
processor without bfloat16 takes 1.7 times as long.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from edgeclip_bench.demo.captions import LANGUAGES, caption
from edgeclip_bench.demo.drawing import draw_picture
from edgeclip_bench.demo.families import Split
from edgeclip_bench.demo.layout import IMAGE_SIZE_PX, MATRYOSHKA_DIMS, checkpoint_config, preprocessor_config
from edgeclip_bench.demo.loss import cut, matryoshka_loss
from edgeclip_bench.demo.scenes import draw_scenes
from edgeclip_bench.demo.tokenizer import train_tokenizer
from edgeclip_bench.demo.towers import LOGIT_SCALE, RawTowers
from edgeclip_bench.demo.training import (
    Schedule,
    add_training_arguments,
    finish,
    run_folder,
    run_steps,
    run_training,
)
from edgeclip_bench.families.layout import write_json
from edgeclip_export.checkpoint import CONFIG, PREPROCESSOR, TOKENIZER, WEIGHTS, hash_file
from edgeclip_export.families.jina_clip.config import parse_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Schedule):
    """Everything that decides the weights."""

    steps: int = 1000
    batch: int = 256
    family_from: float = 0.1
    learning_rate: float = 2.5e-3
    warmup: float = 0.04


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
    with run_folder(out, WEIGHTS):
        plain, tokenizer = train_tokenizer(recipe.seed), train_tokenizer(recipe.seed)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        config = checkpoint_config(tokenizer.get_vocab_size())
        towers = RawTowers(parse_config(config), recipe.seed)
        log = run_steps(out, recipe, towers, lambda step: step_losses(towers, tokenizer, recipe, step))
        weights = {name: tensor.detach().half().contiguous() for name, tensor in towers.tensors.items()}
        towers.load(weights)
        log["validation"] = {
            language: validate(towers, tokenizer, recipe.seed, language) for language in tqdm(LANGUAGES, disable=None)
        }
        plain.save(str(out / TOKENIZER))
        write_json(out / CONFIG, config)
        write_json(out / PREPROCESSOR, preprocessor_config())
        stage = out / f"{WEIGHTS}.tmp"
        save_file(weights, stage, metadata={"format": "pt"})
        finish(out, recipe, towers, log, hash_file(stage))
        stage.replace(out / WEIGHTS)


def step_losses(
    towers: RawTowers, tokenizer: Tokenizer, recipe: Recipe, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a step minimises, which is all that the log has of it."""
    batch = draw_batch(tokenizer, "train", (recipe.seed, 2, step), count=recipe.batch, family=recipe.family_at(step))
    images, texts = towers.encode(batch.pixels, batch.ids)
    first, second = texts.chunk(2)
    loss = matryoshka_loss(images, first, second, towers.scale(LOGIT_SCALE), MATRYOSHKA_DIMS)
    return loss, {"loss": loss}


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
        cut_texts, cut_images = cut(dim, texts, images)
        scores = cut_texts @ cut_images.T
        for direction, table in (("text_to_image", scores), ("image_to_text", scores.T)):
            better = (table >= table.diagonal()[:, None]).sum(dim=1) - 1
            for k in (1, 5):
                recall[f"{direction} recall@{k} at {dim}"] = round((better < k).float().mean().item(), 4)
    return recall


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    add_training_arguments(parser, Recipe(), "pictures")


def run(options: argparse.Namespace) -> int:
    """Train."""
    recipe = Recipe(seed=options.seed, steps=options.steps, batch=options.batch)
    return run_training(lambda: train(options.out, recipe))
