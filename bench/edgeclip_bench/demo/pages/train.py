"""Train the page model, from nothing to a checkpoint in jina-embeddings-v4's official layout.

Pages and questions are drawn as they are needed. The losses are those of single vectors, of multi vectors, of two
wordings of a question with the adapter text-matching, and of reading: a linear layer beside the model that says what
stands at an image token. In the last part of the steps some vectors are computed wrong, as exports have been, and the
model learns to find nothing by them: it is there to show mistakes, and what costs a large model little must cost this
one much. OUT gets the checkpoint's files and training.json: the recipe, the log, the machine and the weights' hash.
While it runs, OUT/training.pt holds what a continuation needs.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from edgeclip_bench.demo.loss import cut
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
from edgeclip_bench.demo.training import (
    Schedule,
    add_training_arguments,
    finish,
    run_folder,
    run_steps,
    run_training,
)
from edgeclip_bench.families.jina_embeddings_v4 import file_shapes, write_index
from edgeclip_bench.families.layout import write_json
from edgeclip_bench.families.qwen_tokenizer import SPECIALS
from edgeclip_bench.families.tensor_stream import write_tensors
from edgeclip_bench.quality.metrics import ndcg_at
from edgeclip_export.checkpoint import CONFIG, PREPROCESSOR, hash_file
from edgeclip_export.families.jina_embeddings_v4.adapters import SETTINGS
from edgeclip_export.families.jina_embeddings_v4.config import parse_config

_MATCHING_EVERY = {True: 2, False: 4}  # steps of reading alone, and later ones: it is soon learnt
_MISTAKEN, _MISTAKEN_SCALE = 16, 10.0  # pages that are computed wrong in a step, and the scale of their scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Schedule):
    """Everything that decides the weights."""

    steps: int = 600
    batch: int = 64
    family_from: float = 0.3
    vectors_from: float = 0.15  # before that, the vision tower learns to read and the decoder to match questions
    learning_rate: float = 5e-3
    warmup: float = 0.02
    reading: float = 0.5
    matching: float = 0.5
    lessons: float = 0.5
    mistakes: float = 0.2
    mistakes_from: float = 0.6


def train(out: Path, recipe: Recipe) -> None:
    """Train, or continue training; BuildError for a folder with a finished checkpoint or another recipe's run."""
    with run_folder(out, CONFIG):
        tokenizer = train_tokenizer(out, recipe.seed)
        config = checkpoint_config(tokenizer.get_vocab_size() - len(SPECIALS))
        raw = RawPages(parse_config(config), tokenizer, recipe.seed)
        log = run_steps(out, recipe, raw, lambda step: step_losses(raw, tokenizer, recipe, step))
        weights = {name: raw.tensors[name].detach().bfloat16().float() for name in raw.shapes}
        raw.load({**raw.tensors, **weights})
        log["validation"] = validate(raw, tokenizer, recipe.seed)
        _write(out, config, weights)
        finish(out, recipe, raw, log, {name: hash_file(out / name) for name in file_shapes(config, rank=RANK)})
        write_json(out / CONFIG, config)


def _write(out: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write all files of the checkpoint but config.json, which says that it is whole."""
    for name, shapes in file_shapes(config, rank=RANK).items():
        (out / name).parent.mkdir(exist_ok=True)
        write_tensors(out / name, shapes, "bfloat16", (weights[tensor].numpy() for tensor in shapes))
    write_index(out, config)
    write_json(out / SETTINGS, adapter_config())
    write_json(out / PREPROCESSOR, preprocessor_config())


def step_losses(raw: RawPages, tokenizer: Tokenizer, recipe: Recipe, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """What a step minimises, and three of its parts.

    The losses of single vectors and of multi vectors are 0 as long as there is reading alone.
    """
    batch = draw_batch(tokenizer, "train", (recipe.seed, 2, step), count=recipe.batch, family=recipe.family_at(step))
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
    return loss, {"single": single, "multi": multi, "reading": reading}


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
    scale = raw.scale(SINGLE_SCALE)
    single = single_loss(questions.single, pages.single, batch.answers, scale, MATRYOSHKA_DIMS)
    tokens = batch.questions.mask.sum(dim=1)
    return single, multi_loss(questions.multi, pages.multi, tokens, batch.answers, raw.scale(MULTI_SCALE))


def _matching_loss(raw: RawPages, batch: Batch) -> Tensor:
    """The loss of two wordings of each question, whose own is another's only if it asks for the same."""
    first, second = (
        raw.texts(texts.ids, texts.mask, ADAPTER_NAMES[1]).single for texts in (batch.questions, batch.others)
    )
    alike = torch.tensor(
        [[set(a.facts) == set(b.facts) and a.topic == b.topic for b in batch.asked] for a in batch.asked]
    )
    return single_loss(first, second, alike, raw.scale(SINGLE_SCALE), MATRYOSHKA_DIMS)


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
        f"single at {dim}": queries @ pages_cut.T
        for dim in MATRYOSHKA_DIMS
        for queries, pages_cut in (cut(dim, single, wanted),)
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
    add_training_arguments(parser, Recipe(), "pages")


def run(options: argparse.Namespace) -> int:
    """Train."""
    recipe = Recipe(seed=options.seed, steps=options.steps, batch=options.batch)
    return run_training(lambda: train(options.out, recipe))
