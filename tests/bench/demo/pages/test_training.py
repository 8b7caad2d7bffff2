"""What is trained is what an export reads, and a run that was interrupted ends as one that was not."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from edgeclip import Encoder, MultiVectors
from edgeclip.errors import BuildError
from edgeclip_bench.demo import training
from edgeclip_bench.demo.loss import contrast
from edgeclip_bench.demo.pages import layout, tokenizer, train
from edgeclip_bench.demo.pages.batches import GRIDS, PARTICULARS, draw_batch, tokenize
from edgeclip_bench.demo.pages.contents import TOPICS
from edgeclip_bench.demo.pages.layout import ADAPTER_NAMES, MATRYOSHKA_DIMS
from edgeclip_bench.demo.pages.loss import maxsim, nothing_found, reading_loss
from edgeclip_bench.demo.pages.questions import LANGUAGES, word
from edgeclip_bench.demo.pages.towers import READING, RawPages
from edgeclip_bench.demo.pages.train import Recipe, losses, step_losses, validate
from edgeclip_bench.demo.training import LOG, STATE, make_optimizers, take_step
from edgeclip_export import export_checkpoint
from edgeclip_export.checkpoint import hash_file
from edgeclip_export.families.jina_embeddings_v4.config import PROMPTS, parse_config

# Of unit vectors: the same fp32 arithmetic in another order. Measured: 8e-7.
FP32_PARITY = 5e-6
RECIPE = Recipe(steps=6, batch=8, family=2, family_from=0.5, vectors_from=0.2, mistakes_from=0.4)
RETRIEVAL, MATCHING = ADAPTER_NAMES


@pytest.fixture(autouse=True, scope="module")
def is_quick() -> Iterator[None]:
    """Fewer layers, fewer questions counted, fewer pages validated, a state saved every other step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "TEXT_LAYERS", 1)
        patch.setattr(layout, "VISION_LAYERS", 4)  # the last of the blocks that see the whole image is the fourth
        patch.setattr(tokenizer, "_QUESTIONS_PER_LANGUAGE", 100)
        patch.setattr(train, "validate", validate_few)
        patch.setattr(training, "_SAVE_EVERY", 2)
        yield


def validate_few(raw: RawPages, *arguments: Any) -> dict[str, float]:
    """What is validated is what is written: bfloat16."""
    assert all(torch.equal(raw.tensors[name], raw.tensors[name].bfloat16().float()) for name in raw.shapes)
    return validate(raw, *arguments, count=12, family=12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, is_quick: None) -> Path:
    """The checkpoint of a run that was not interrupted. Read only."""
    out = tmp_path_factory.mktemp("trained") / "made" / "model"
    train.train(out, RECIPE)
    return out


@pytest.fixture(scope="module")
def plain(trained: Path) -> Tokenizer:
    return Tokenizer.from_file(str(trained / "tokenizer.json"))


def open_raw(folder: Path, plain: Tokenizer) -> RawPages:
    """The trained towers, with the weights of the checkpoint."""
    loaded = RawPages(parse_config(json.loads((folder / "config.json").read_text())), plain, seed=9)
    loaded.load({**loaded.tensors, **weights_of(folder)})
    return loaded


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("**/*.safetensors") for name, tensor in load_file(file).items()}


# tokenizer and batches


def test_prompts_and_words_are_few_tokens_and_the_seed_decides(
    trained: Path, plain: Tokenizer, tmp_path: Path
) -> None:
    again = tokenizer.train_tokenizer(tmp_path, 0)
    assert again.to_str() == plain.to_str()
    for prompt in PROMPTS.values():
        assert len(plain.encode(f"{prompt}x").tokens) == 4  # the word, the colon, the space, the x
    batch = draw_batch(plain, "train", (0, 0), count=32, family=1)
    assert batch.questions.mask.sum(dim=1).max() < 30
    assert plain.decode(batch.questions.ids[0, :4].tolist()).startswith("Query:")


def test_a_batch_belongs_together(plain: Tokenizer) -> None:
    for seed, (columns, rows) in enumerate(GRIDS):
        batch = draw_batch(plain, "validation", (3, seed), count=12, family=12)
        assert batch.pixels.shape == (12, rows * layout.TOKEN_PX, columns * layout.TOKEN_PX, 3)
        assert batch.answers.diagonal().all() and not batch.answers.all()
        readings = batch.readings
        tokens = rows * columns
        headings = (readings.topics >= 0).nonzero().flatten()
        assert (readings.places[headings] // tokens).tolist() == list(range(12))
        assert [TOPICS[index] for index in readings.topics[headings]] == [page.topic for page in batch.pages]
        assert readings.places.max() < 12 * tokens
    told = tokenize(plain, ["x", word(batch.asked[0], "de", np.random.default_rng(0))])
    assert told.mask.sum(dim=1).tolist()[0] == 4 < told.mask.sum(dim=1).tolist()[1] == told.ids.shape[1]


def test_questions_and_pages_tell_what_they_hold(plain: Tokenizer) -> None:
    """A topic by the end of its word, a fact by its value; what a page holds includes what its question asks."""
    batch = draw_batch(plain, "train", (5, 1), count=16, family=4)
    names = {index: name for name, index in PARTICULARS.items()}
    told = batch.told_by_questions
    by_row: dict[int, list[object]] = {}
    for place, index in zip(told.places.tolist(), told.particulars.tolist(), strict=True):
        row, column = divmod(place, batch.questions.ids.shape[1])
        by_row.setdefault(row, []).append(names[index])
        token = plain.decode([int(batch.questions.ids[row, column])])
        assert token == str(getattr(names[index], "value", token)) and token.strip()
    for question, found in zip(batch.asked, by_row.values(), strict=True):
        assert found == [question.topic, *question.facts]
    assert not (told.held & ~batch.told_by_pages.held).any()
    assert torch.equal(batch.told_by_pages.places, batch.readings.places)


# losses


def test_maxsim_is_that_of_multi_vectors() -> None:
    """Rows of zeros are no tokens of a question."""
    draw = np.random.default_rng(0)
    queries, pages = (
        [draw.standard_normal((length, 8)).astype(np.float32) for length in lengths]
        for lengths in ((3, 5), (6, 6, 6))
    )
    wanted = MultiVectors.of(queries).maxsim(MultiVectors.of(pages))
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in queries], batch_first=True)
    found = maxsim(padded, torch.from_numpy(np.stack(pages)))
    assert np.abs(found.numpy() - wanted).max() < 1e-5


def test_a_page_that_answers_too_is_no_negative() -> None:
    scores = torch.tensor([[2.0, 9.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    alone = torch.eye(3, dtype=torch.bool)
    answers = alone.clone()
    answers[0, 1] = True
    assert contrast(scores, answers) < 0.3 < 1 < contrast(scores, alone)


def test_nothing_is_found_where_all_scores_are_equal() -> None:
    assert nothing_found(torch.full((4, 6), 3.0)).item() == pytest.approx(0, abs=1e-6)
    assert nothing_found(torch.eye(6) * 10) > 1


# towers


def test_every_tensor_learns(trained: Path, plain: Tokenizer) -> None:
    """Both adapters too. Rows of the token table that no text has cannot."""
    raw = open_raw(trained, plain)
    batch = draw_batch(plain, "train", (0, 1), count=8, family=2)
    pages = raw.pages(batch.pixels, RETRIEVAL)
    questions = raw.texts(batch.questions.ids, batch.questions.mask, RETRIEVAL)
    single, multi = losses(raw, batch, pages, questions)
    reading, matching = train._reading_loss(raw, batch, pages.features), train._matching_loss(raw, batch)
    lessons = train._lessons(raw, batch, pages, questions)
    torch.autograd.backward(single + multi + reading + matching + lessons)
    for name, tensor in raw.tensors.items():
        if name.endswith(f"multi_vector_projector.lora_A.{MATCHING}.weight") or name.endswith(
            f"multi_vector_projector.lora_B.{MATCHING}.weight"
        ):
            continue  # questions are matched by single vectors
        assert tensor.grad is not None and tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name


def test_what_is_trained_is_what_is_exported(trained: Path, plain: Tokenizer, tmp_path: Path) -> None:
    """Tokenizer, preprocessing and both towers: pages and questions to vectors, here and by the runtime."""
    export_checkpoint(trained, tmp_path / "bundle")
    raw = open_raw(trained, plain)
    with Encoder.open(tmp_path / "bundle", device="cpu") as encoder, torch.no_grad():
        assert set(encoder.tasks) == {"retrieval.query", "retrieval.passage", "text-matching"}
        for seed in range(len(GRIDS)):
            batch = draw_batch(plain, "test", (0, seed), count=4, family=2)
            pictures = list(batch.pixels.numpy())
            found = raw.pages(batch.pixels, RETRIEVAL)
            single = encoder.encode_image(pictures, task="retrieval.passage")
            multi = encoder.encode_image_multivector(pictures, task="retrieval.passage")
            assert np.abs(found.single.numpy() - single).max() < FP32_PARITY
            assert max(np.abs(mine.numpy() - its).max() for mine, its in zip(found.multi, multi, strict=True)) < (
                FP32_PARITY
            )
        draw = np.random.default_rng(0)
        texts = [word(question, language, draw) for question in batch.asked for language in LANGUAGES]
        ids = tokenize(plain, texts)
        for task, adapter in (("retrieval.query", RETRIEVAL), ("text-matching", MATCHING)):
            told = raw.texts(ids.ids, ids.mask, adapter)
            assert np.abs(told.single.numpy() - encoder.encode_text(texts, task=task)).max() < FP32_PARITY
            for mine, its in zip(told.multi, encoder.encode_text_multivector(texts, task=task), strict=True):
                assert np.abs(mine[: len(its)].numpy() - its).max() < FP32_PARITY
                assert not mine[len(its) :].any()


@pytest.mark.parametrize("mistake", ["positions", "windows", "small windows", "pooling", "scale", "projector"])
def test_a_mistake_changes_what_it_is_said_to_change(trained: Path, plain: Tokenizer, mistake: Any) -> None:
    raw = open_raw(trained, plain)
    pixels = draw_batch(plain, "test", (0, 0), count=2, family=2).pixels
    with torch.no_grad():
        right, wrong = raw.pages(pixels, RETRIEVAL), raw.pages(pixels, RETRIEVAL, mistake=mistake)
    assert torch.equal(right.single, wrong.single) == (mistake == "projector")
    assert torch.equal(right.multi, wrong.multi) == (mistake == "pooling")
    assert torch.equal(right.features, wrong.features) == ("windows" not in mistake)


# runs


def test_a_batch_can_be_learnt_by_heart(trained: Path, plain: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which nobody could who was shown another page's question; the logarithm of 8 is 2.08."""
    raw = open_raw(trained, plain)
    batch = draw_batch(plain, "train", (0, 0), count=8, family=1)
    monkeypatch.setattr(train, "draw_batch", lambda *arguments, **options: batch)
    optimizers = make_optimizers(raw, weight_decay=0.01)
    recipe = Recipe(steps=100, batch=8, warmup=0.01, vectors_from=0.0, mistakes_from=1.0)
    found = [
        tuple(take_step(optimizers, recipe.rate(step), partial(step_losses, raw, plain, recipe, step)).values())
        for step in range(16)
    ]
    for first, last in zip(found[0], found[-1], strict=True):
        assert last < 0.75 * first, found
    assert found[-1][0] < 1.5


def test_a_run_leaves_a_checkpoint_and_its_log(trained: Path) -> None:
    log = json.loads((trained / LOG).read_text())
    assert not (trained / STATE).exists()
    assert Recipe(**log["recipe"]) == RECIPE
    assert {name: hash_file(trained / name) for name in log["weights_sha256"]} == log["weights_sha256"]
    assert len(log["weights_sha256"]) == 3
    assert len(log["loss"]) == RECIPE.steps and all(0 <= one < 20 for losses in log["loss"] for one in losses)
    assert log["loss"][0][:2] == [0, 0] and all(one > 0 for losses in log["loss"][2:] for one in losses)
    spaces = {name.partition(",")[0] for name in log["validation"]}
    assert spaces == {"multi", *(f"single at {dim}" for dim in MATRYOSHKA_DIMS)}
    assert all(0 <= value <= 1 for value in log["validation"].values())
    weights = weights_of(trained)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert READING not in weights


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Interrupts the next run inside of a step, after its pages were drawn and encoded."""

    def inside(step: int) -> None:
        steps = iter(range(step))

        def stopped(*arguments: Any) -> Tensor:
            if next(steps, None) is None:
                monkeypatch.setattr(train, "reading_loss", reading_loss)
                raise KeyboardInterrupt
            return reading_loss(*arguments)

        monkeypatch.setattr(train, "reading_loss", stopped)

    return inside


def test_an_interrupted_run_ends_as_one_that_was_not(
    trained: Path, tmp_path: Path, interrupt: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted before anything was saved, then inside step 5; two steps of that are done again."""
    for step in (1, 5):
        interrupt(step)
        with pytest.raises(KeyboardInterrupt):
            train.train(tmp_path, RECIPE)
        assert (tmp_path / STATE).exists() == (step > 1)
    capsys.readouterr()
    train.train(tmp_path, RECIPE)
    assert "going on from step 4 of 6\n" in capsys.readouterr().err
    for file in trained.rglob("*"):
        if file.is_file() and file.name != LOG:
            assert file.read_bytes() == (tmp_path / file.relative_to(trained)).read_bytes(), file.name


def test_a_finished_checkpoint_and_another_recipes_run_are_left_alone(
    trained: Path, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    with pytest.raises(BuildError, match="holds a trained checkpoint already"):
        train.train(trained, RECIPE)
    interrupt(3)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path, RECIPE)
    with pytest.raises(BuildError, match="was begun with"):
        train.train(tmp_path, Recipe(steps=7, batch=8, family=2))


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"steps": 0}, {"batch": 1}])
def test_a_recipe_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BuildError, match="wanted a seed from 0"):
        Recipe(**wrong)  # type: ignore[arg-type]
