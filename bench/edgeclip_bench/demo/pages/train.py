"""Train the page model, from nothing to a checkpoint in jina-embeddings-v4's official layout.

Pages and questions are drawn as they are needed. Each step's depend on the seed and the step's number alone, so an
interrupted run goes on where it stopped and sees the same data. Matrices are optimised by Muon, everything else by
AdamW. The losses are those of single vectors, of multi vectors, of two wordings of a question with the adapter
text-matching, and of reading: a linear layer beside the model that says what stands at an image token. In the last
part of the steps some vectors are computed wrong, as exports have been, and the model learns to find nothing by them:
it is there to show mistakes, and what costs a large model little must cost this one much. OUT gets the checkpoint's
files and training.json: the recipe, the log, the machine and the weights' hash. While it runs,
OUT/training.pt holds what a continuation needs.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from edgeclip.errors import BuildError
from edgeclip_bench.demo.pages.batches import GRIDS, Batch, draw_batch
from edgeclip_bench.demo.pages.layout import (
    ADAPTER_NAMES,
    MATRYOSHKA_DIMS,
    RANK,
    adapter_config,
    checkpoint_config,
    preprocessor_config,
)
from edgeclip_bench.demo.pages.loss import (
    maxsim,
    multi_lesson,
    multi_loss,
    nothing_found,
    reading_loss,
    single_lesson,
    single_loss,
)
from edgeclip_bench.demo.pages.tokenizer import train_tokenizer
from edgeclip_bench.demo.pages.towers import (
    MULTI_PROTOTYPES,
    MULTI_SCALE,
    READING,
    SINGLE_PROTOTYPES,
    SINGLE_SCALE,
    AdapterMistake,
    PageMistake,
    PageVectors,
    RawPages,
    Vectors,
)
from edgeclip_bench.demo.training_state import LOG, STATE, machine_facts, make_folder, rate, resume, save
from edgeclip_bench.families.jina_embeddings_v4 import file_shapes, write_index
from edgeclip_bench.families.layout import write_json
from edgeclip_bench.families.qwen_tokenizer import SPECIALS
from edgeclip_bench.families.tensor_stream import write_tensors
from edgeclip_bench.quality.metrics import ndcg_at
from edgeclip_export.checkpoint import CONFIG, PREPROCESSOR, hash_file
from edgeclip_export.families.jina_embeddings_v4.adapters import SETTINGS
from edgeclip_export.families.jina_embeddings_v4.config import parse_config

_SAVE_EVERY = 50
_MATCHING_EVERY = {True: 2, False: 4}  # steps of reading alone, and later ones: it is soon learnt
_MISTAKEN, _MISTAKEN_SCALE = 16, 10.0  # pages that are computed wrong in a step, and the scale of their scores
_MAX_SCALE = 100.0  # as CLIP's


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    steps: int = 600
    batch: int = 64
    family: int = 8  # how many pages of a batch differ in one particular; 1 in the first steps
    family_from: float = 0.3
    vectors_from: float = 0.15  # before that, the vision tower learns to read and the decoder to match questions
    learning_rate: float = 5e-3
    weight_decay: float = 0.02
    warmup: float = 0.02
    decay_from: float = 0.3
    reading: float = 0.5
    matching: float = 0.5
    lessons: float = 0.5
    mistakes: float = 0.2
    mistakes_from: float = 0.6

    def __post_init__(self) -> None:
        if self.seed < 0 or self.steps < 1 or self.batch < 2:
            raise BuildError(
                f"seed {self.seed}, {self.steps} steps, batches of {self.batch}: wanted a seed from 0, steps from 1 "
                "and batches from 2"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return rate(step, self.steps, peak=self.learning_rate, warmup=self.warmup, decay_from=self.decay_from)


def train(out: Path, recipe: Recipe) -> None:
    """Train, or continue training; BuildError for a folder with a finished checkpoint or another recipe's run."""
    make_folder(out, CONFIG)
    try:
        _train(out, recipe)
    except OSError as error:
        raise BuildError(f"{out}: cannot be written ({error.strerror or error})") from error


def _train(out: Path, recipe: Recipe) -> None:
    tokenizer = train_tokenizer(out, recipe.seed)
    config = checkpoint_config(tokenizer.get_vocab_size() - len(SPECIALS))
    raw = RawPages(parse_config(config), tokenizer, recipe.seed)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(raw.matrices(), weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(raw.others(), betas=(0.9, 0.98), weight_decay=0.0),
    ]
    log = resume(out / STATE, asdict(recipe), raw, optimizers)
    started = time.monotonic() - log["seconds"]
    with tqdm(total=recipe.steps, initial=len(log["loss"]), unit="step", disable=None) as bar:
        for step in range(len(log["loss"]), recipe.steps):
            losses = _step(raw, optimizers, tokenizer, recipe, step)
            log["loss"].append([round(loss, 4) for loss in losses])
            log["seconds"] = round(time.monotonic() - started, 1)
            if (step + 1) % _SAVE_EVERY == 0:
                save(out / STATE, asdict(recipe), raw, optimizers, log)
            bar.set_postfix_str("single {:.3f}, multi {:.3f}, reading {:.3f}".format(*losses))
            bar.update()
    weights = {name: raw.tensors[name].detach().bfloat16().float() for name in raw.shapes}
    raw.load({**raw.tensors, **weights})
    log["validation"] = validate(raw, tokenizer, recipe.seed)
    _write(out, config, weights)
    hashes = {name: hash_file(out / name) for name in file_shapes(config, rank=RANK)}
    write_json(out / LOG, {"weights_sha256": hashes, "recipe": asdict(recipe), "machine": machine_facts(raw), **log})
    write_json(out / CONFIG, config)
    (out / STATE).unlink(missing_ok=True)


def _write(out: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write all files of the checkpoint but config.json, which says that it is whole."""
    for name, shapes in file_shapes(config, rank=RANK).items():
        (out / name).parent.mkdir(exist_ok=True)
        write_tensors(out / name, shapes, "bfloat16", (weights[tensor].numpy() for tensor in shapes))
    write_index(out, config)
    write_json(out / SETTINGS, adapter_config())
    write_json(out / PREPROCESSOR, preprocessor_config())


def _step(
    raw: RawPages, optimizers: Sequence[torch.optim.Optimizer], tokenizer: Tokenizer, recipe: Recipe, step: int
) -> tuple[float, float, float]:
    """One step; the losses of single vectors and of multi vectors are 0 as long as there is reading alone."""
    family = recipe.family if step >= recipe.family_from * recipe.steps else 1
    batch = draw_batch(tokenizer, "train", (recipe.seed, 2, step), count=recipe.batch, family=family)
    for optimizer in optimizers:
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
    is_reading = step < recipe.vectors_from * recipe.steps
    matches = step % _MATCHING_EVERY[is_reading] == 0
    matching = _matching_loss(raw, batch) if matches else 0.0
    if is_reading:
        single = multi = torch.zeros(())
        reading = _reading_loss(raw, batch, raw.features(batch.pixels))
        loss = reading + recipe.matching * matching
    else:
        pages = raw.pages(batch.pixels, ADAPTER_NAMES[0])
        questions = raw.texts(batch.questions.ids, batch.questions.mask, ADAPTER_NAMES[0])
        single, multi = losses(raw, batch, pages, questions)
        reading = _reading_loss(raw, batch, pages.features)
        turn = step - int(recipe.mistakes_from * recipe.steps)
        wrong = _mistaken_loss(raw, batch, pages, questions, turn) if turn >= 0 else 0.0
        loss = single + multi + recipe.reading * reading + recipe.matching * matching + recipe.mistakes * wrong
        loss = loss + recipe.lessons * _lessons(raw, batch, pages, questions)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return single.item(), multi.item(), reading.item()


def _reading_loss(raw: RawPages, batch: Batch, features: Tensor) -> Tensor:
    return reading_loss(F.linear(features.flatten(0, 1), raw.tensors[READING]), batch.readings)


def _lessons(raw: RawPages, batch: Batch, pages: PageVectors, questions: Vectors) -> Tensor:
    """What pages and questions have in common, said of each token and of each single vector."""
    single, multi = raw.tensors[SINGLE_PROTOTYPES], raw.tensors[MULTI_PROTOTYPES]
    return (
        single_lesson(pages.single, batch.told_by_pages, single, MATRYOSHKA_DIMS)
        + single_lesson(questions.single, batch.told_by_questions, single, MATRYOSHKA_DIMS)
        + multi_lesson(pages.image, batch.told_by_pages, multi)
        + multi_lesson(questions.multi, batch.told_by_questions, multi)
    )


def losses(raw: RawPages, batch: Batch, pages: Vectors, questions: Vectors) -> tuple[Tensor, Tensor]:
    """The losses of single and of multi vectors of a batch of pages and their questions."""
    scale = _scale(raw, SINGLE_SCALE)
    single = single_loss(questions.single, pages.single, batch.answers, scale, MATRYOSHKA_DIMS)
    tokens = batch.questions.mask.sum(dim=1)
    return single, multi_loss(questions.multi, pages.multi, tokens, batch.answers, _scale(raw, MULTI_SCALE))


def _matching_loss(raw: RawPages, batch: Batch) -> Tensor:
    """The loss of two wordings of each question, whose own is another's only if it asks for the same."""
    first, second = (
        raw.texts(texts.ids, texts.mask, ADAPTER_NAMES[1]).single for texts in (batch.questions, batch.others)
    )
    alike = torch.tensor(
        [[set(a.facts) == set(b.facts) and a.topic == b.topic for b in batch.asked] for a in batch.asked]
    )
    return single_loss(first, second, alike, _scale(raw, SINGLE_SCALE), MATRYOSHKA_DIMS)


def _mistaken_loss(raw: RawPages, batch: Batch, pages: Vectors, questions: Vectors, turn: int) -> Tensor:
    """How much is found where one thing is computed wrong, by turns: the prompt, some pages, or the adapter."""
    retrieval, kinds = ADAPTER_NAMES[0], (None, *get_args(PageMistake), *get_args(AdapterMistake))
    tokens = batch.questions.mask.sum(dim=1, keepdim=True)  # the two prompts are of one length
    kind = kinds[turn % len(kinds)]
    if kind is None:
        questions = raw.texts(batch.misread.ids, batch.misread.mask, retrieval)
        some, others = pages.single.detach(), pages.multi.detach()
    else:
        if kind in get_args(AdapterMistake):
            questions = raw.texts(batch.questions.ids, batch.questions.mask, retrieval, mistake=kind)
        else:
            questions = Vectors(single=questions.single.detach(), multi=questions.multi.detach())
        wrong = raw.pages(batch.pixels[:_MISTAKEN], retrieval, mistake=kind)
        some, others = wrong.single, wrong.multi
    found = []
    if kind != "projector":
        found.append(questions.single @ some.T)
    if kind != "pooling":
        found.append(maxsim(questions.multi, others) / tokens)
    return torch.stack([nothing_found(_MISTAKEN_SCALE * scores) for scores in found]).sum()


def _scale(raw: RawPages, name: str) -> Tensor:
    return raw.tensors[name].exp().clamp(max=_MAX_SCALE)


@torch.no_grad()
def validate(
    raw: RawPages, tokenizer: Tokenizer, seed: int, *, count: int = 48, family: int = 12
) -> dict[str, float]:
    """nDCG@5 of questions for pages with facts kept for validation, by dimension, of multi vectors, and by kind.

    There are `count` pages of each size, and every question searches all.
    """
    batches = [
        draw_batch(tokenizer, "validation", (seed, 3, size), count=count, family=family) for size in range(len(GRIDS))
    ]
    asked = [question for batch in batches for question in batch.asked]
    written = [page for batch in batches for page in batch.pages]
    grades = [{place: 1 for place, page in enumerate(written) if one.is_answered_by(page)} for one in asked]
    pages = [raw.pages(batch.pixels, ADAPTER_NAMES[0]) for batch in batches]
    questions = [raw.texts(batch.questions.ids, batch.questions.mask, ADAPTER_NAMES[0]) for batch in batches]
    single, wanted = (torch.cat([one.single for one in ones]) for ones in (questions, pages))
    scores = {
        f"single at {dim}": F.normalize(single[:, :dim], dim=1) @ F.normalize(wanted[:, :dim], dim=1).T
        for dim in MATRYOSHKA_DIMS
    }
    rows = [torch.cat([maxsim(one.multi, page.multi) for page in pages], dim=1) for one in questions]
    scores["multi"] = torch.cat(rows)
    kinds = np.array([question.kind for question in asked])
    found: dict[str, float] = {}
    for name, table in scores.items():
        values = ndcg_at(table.argsort(dim=1, descending=True, stable=True)[:, :5].numpy(), grades, 5)
        found[name] = round(float(values.mean()), 4)
        found |= {f"{name}, {kind}": round(float(values[kinds == kind].mean()), 4) for kind in sorted(set(kinds))}
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, or that of a run that was interrupted")
    for name, what in (("seed", "of weights and data"), ("steps", "of training"), ("batch", "pages in a step")):
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
