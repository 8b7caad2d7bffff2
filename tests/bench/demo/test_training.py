"""What is trained is what an export reads, and a run that was interrupted ends as one that was not."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from edgeclip import Encoder
from edgeclip.errors import BuildError
from edgeclip_bench.demo import layout, tokenizer, train, training
from edgeclip_bench.demo.captions import LANGUAGES, captions
from edgeclip_bench.demo.drawing import draw_picture
from edgeclip_bench.demo.families import Split
from edgeclip_bench.demo.layout import MATRYOSHKA_DIMS, checkpoint_config
from edgeclip_bench.demo.loss import matryoshka_loss
from edgeclip_bench.demo.scenes import draw_scenes
from edgeclip_bench.demo.towers import LOGIT_SCALE, RawTowers
from edgeclip_bench.demo.train import Batch, Recipe, draw_batch, step_losses, validate
from edgeclip_bench.demo.training import LOG, STATE, make_optimizers, take_step
from edgeclip_export import export_checkpoint
from edgeclip_export.checkpoint import hash_file
from edgeclip_export.families.jina_clip.config import parse_config
from edgeclip_export.families.jina_clip.tensors import tensor_shapes
from edgeclip_export.families.jina_clip.weights import open_weights
from edgeclip_export.opening import open_checkpoint
from tests.conftest import FILES
from tests.scenes.command import bench

# Of unit vectors of 128: the same fp32 arithmetic in another order. Measured: 1.5e-7.
FP32_PARITY = 2e-6
# The same with GEMMs in bfloat16, whose 8 bits round by 4e-3 of a value. Measured: 1.4e-3.
BF16_PARITY = 4e-3

RECIPE = Recipe(steps=6, batch=8, family=2, family_from=0.5)
WORD_TABLE = "text_model.transformer.roberta.embeddings.word_embeddings.parametrizations.weight."


@pytest.fixture(autouse=True, scope="module")
def is_quick() -> Iterator[None]:
    """Fewer layers, fewer captions counted, fewer pictures validated, a state saved every other step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "TEXT_LAYERS", 1)
        patch.setattr(layout, "VISION_LAYERS", 2)
        patch.setattr(tokenizer, "_CAPTIONS_PER_LANGUAGE", 100)
        patch.setattr(train, "validate", validate_few)
        patch.setattr(training, "_SAVE_EVERY", 2)
        yield


def validate_few(towers: RawTowers, *arguments: Any) -> dict[str, float]:
    """What is validated is what is written: fp16."""
    assert all(torch.equal(tensor, tensor.half().float()) for tensor in towers.tensors.values())
    return validate(towers, *arguments, count=10, family=2)


@dataclass(frozen=True)
class Drawn:
    """What a batch was drawn by."""

    split: str
    seed: tuple[int, ...]
    count: int
    family: int


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, is_quick: None) -> tuple[Path, list[Drawn]]:
    """A run that was not interrupted: its folder, read only, and the batches it drew."""
    out = tmp_path_factory.mktemp("trained") / "made" / "model"
    batches: list[Drawn] = []

    def draw(tokenizer: Tokenizer, split: Split, seed: tuple[int, ...], **options: Any) -> Batch:
        batches.append(Drawn(split, seed, options["count"], options["family"]))
        return draw_batch(tokenizer, split, seed, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_batch", draw)
        train.train(out, RECIPE)
    return out, batches


@pytest.fixture(scope="module")
def trained(run: tuple[Path, list[Drawn]]) -> Path:
    """The checkpoint of the run that was not interrupted. Read only."""
    return run[0]


@pytest.fixture(scope="module")
def plain(trained: Path) -> Tokenizer:
    """The checkpoint's tokenizer, not padding or cutting."""
    opened = Tokenizer.from_file(str(trained / "tokenizer.json"))
    opened.no_padding()
    opened.no_truncation()
    return opened


@pytest.fixture(scope="module")
def towers(trained: Path) -> RawTowers:
    """The trained towers, with the fp16 weights of the checkpoint."""
    config = parse_config(json.loads((trained / "config.json").read_text()))
    loaded = RawTowers(config, seed=9)
    loaded.load(load_file(trained / "model.safetensors"))
    return loaded


@pytest.fixture(scope="module")
def learnt(plain: Tokenizer) -> tuple[RawTowers, list[float]]:
    """Towers after twelve steps on one batch, and the losses on the way."""
    fresh = RawTowers(parse_config(checkpoint_config(plain.get_vocab_size())), seed=0)
    optimizers = make_optimizers(fresh, weight_decay=0.01)
    recipe = Recipe(steps=100, batch=8, warmup=0.01, learning_rate=3e-3)
    batch = draw_batch(plain, "train", (0,), count=8, family=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_batch", lambda *arguments, **options: batch)
        return fresh, [
            take_step(optimizers, recipe.rate(step), partial(step_losses, fresh, plain, recipe, step))["loss"]
            for step in range(12)
        ]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Interrupts the next run inside of a step, after its picture was drawn and encoded."""

    def inside(step: int) -> None:
        steps = iter(range(step))

        def loss(*arguments: Any) -> Tensor:
            if next(steps, None) is None:
                monkeypatch.setattr(train, "matryoshka_loss", matryoshka_loss)
                raise KeyboardInterrupt
            return matryoshka_loss(*arguments)

        monkeypatch.setattr(train, "matryoshka_loss", loss)

    return inside


def log_of(folder: Path) -> dict[str, Any]:
    log: dict[str, Any] = json.loads((folder / LOG).read_text())
    return log


def largest_difference(found: Tensor | NDArray[Any], wanted: Tensor | NDArray[Any]) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(wanted)).max())


# towers


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_every_raw_tensor_learns(plain: Tokenizer, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    """In the layout's full depth. Rows of the token table that no text has, padding's among them, cannot."""
    monkeypatch.setattr(layout, "TEXT_LAYERS", 3)
    monkeypatch.setattr(layout, "VISION_LAYERS", 4)
    fresh = RawTowers(parse_config(checkpoint_config(plain.get_vocab_size())), seed=0)
    fresh.has_bfloat16 = has_bfloat16
    batch = draw_batch(plain, "train", (0, 1), count=4, family=2)
    images, texts = fresh.encode(batch.pixels, batch.ids)
    first, second = texts.chunk(2)
    loss = matryoshka_loss(images, first, second, fresh.tensors[LOGIT_SCALE].exp(), MATRYOSHKA_DIMS)
    torch.autograd.backward(loss)
    gradients = {name: tensor.grad for name, tensor in fresh.tensors.items()}
    assert len(gradients) == 159
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), name
        # Measured: the least of a tensor's largest gradients is 2e-3, of a q_bias.
        assert gradient.abs().max() > 1e-4, name
        rows = gradient.flatten(1).abs().sum(dim=1) if gradient.ndim > 1 else gradient.abs()
        # In bfloat16 a bias's gradients may add up to nothing, once in a while.
        assert name.startswith(WORD_TABLE) or (rows > 0).float().mean() >= (0.98 if has_bfloat16 else 1), name
    for part, axis in (("original", 1), ("0.lora_A", 2)):
        learnt = gradients[WORD_TABLE + part].abs().sum(dim=axis).flatten().nonzero().flatten()  # type: ignore[union-attr]
        assert set(learnt.tolist()) == set(batch.ids.flatten().tolist()) - {1}


def test_raw_tensors_are_those_of_the_layout_in_two_parts(towers: RawTowers, trained: Path) -> None:
    """Muon takes the matrices that multiply, AdamW the rest; none is in both or in neither."""
    shapes = tensor_shapes(parse_config(json.loads((trained / "config.json").read_text())))
    assert {name: tuple(tensor.shape) for name, tensor in towers.tensors.items()} == shapes
    names = {id(tensor): name for name, tensor in towers.tensors.items()}
    matrices, others = ({names[id(tensor)] for tensor in part} for part in (towers.matrices(), towers.others()))
    assert matrices | others == set(shapes) and not matrices & others
    assert all(len(shapes[name]) == 2 for name in matrices)
    assert {name for name in others if len(shapes[name]) == 2} == {
        name for name in shapes if name.endswith("embeddings.parametrizations.weight.original")
    }


def test_towers_begin_as_their_seed_says(trained: Path) -> None:
    config = parse_config(json.loads((trained / "config.json").read_text()))
    one, same, other = (RawTowers(config, seed).tensors for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if one[name].ndim > 1)


def test_towers_give_unit_vectors_of_the_models_width(towers: RawTowers, plain: Tokenizer) -> None:
    batch = draw_batch(plain, "train", (0, 1), count=4, family=2)
    with torch.no_grad():
        images, texts = towers.encode(batch.pixels, batch.ids)
    assert (images.shape, texts.shape) == ((4, 128), (8, 128))
    assert images.dtype == texts.dtype == torch.float32
    assert largest_difference(torch.cat((images, texts)).norm(dim=1), torch.ones(12)) < 1e-6


def test_what_is_trained_is_what_is_exported(trained: Path, towers: RawTowers, tmp_path: Path) -> None:
    """Tokenizer, preprocessing and both towers: pictures and captions to vectors, here and by the runtime."""
    draw = np.random.default_rng(0)
    scenes = list(islice(draw_scenes("test", draw, family=4), 8))
    pictures = [draw_picture(scene, draw, side_px=116, width_px=116, height_px=116) for scene in scenes]
    told = [captions(scene, language)[2] for scene in scenes[:3] for language in LANGUAGES]
    official = Tokenizer.from_file(str(trained / "tokenizer.json"))  # pads to 77, which must not matter
    ids = torch.tensor([encoding.ids for encoding in official.encode_batch(told)])
    export_checkpoint(trained, tmp_path / "bundle")
    with Encoder.open(tmp_path / "bundle", device="cpu") as encoder:
        wanted = encoder.encode_image(pictures), encoder.encode_text(told)
    for has_bfloat16, parity in ((False, FP32_PARITY), (True, BF16_PARITY)):
        towers.has_bfloat16 = has_bfloat16
        with torch.no_grad():
            found = towers.encode(torch.from_numpy(np.stack(pictures)), ids)
        assert max(map(largest_difference, found, wanted)) <= parity


# what is learnt


def test_at_a_rate_of_nothing_nothing_is_learnt(tmp_path: Path) -> None:
    """So it is the recipe's rate that both optimizers go by."""
    train.train(tmp_path, Recipe(steps=1, batch=2, family=2, learning_rate=0.0))
    fresh = RawTowers(parse_config(json.loads((tmp_path / "config.json").read_text())), seed=0)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, fresh.tensors[name].detach().half()), name


def test_every_tensor_is_learnt(trained: Path, towers: RawTowers) -> None:
    """But the tokens no caption of these steps had, and what decays alike."""
    fresh = RawTowers(parse_config(json.loads((trained / "config.json").read_text())), seed=0)
    for name, tensor in towers.tensors.items():
        assert not torch.equal(tensor.detach(), fresh.tensors[name].detach().half().float()), name


def test_a_batch_can_be_learnt_by_heart(learnt: tuple[RawTowers, list[float]]) -> None:
    """Which nobody could who was shown another picture's captions; the logarithm of 8 is 2.08."""
    losses = learnt[1]
    assert losses[-1] < 1 < 2 < losses[0], losses


# runs


def test_a_run_leaves_a_checkpoint_and_its_log(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {*FILES, LOG}
    log = log_of(trained)
    assert log["weights_sha256"] == hash_file(trained / "model.safetensors")
    assert Recipe(**log["recipe"]) == RECIPE
    assert len(log["loss"]) == RECIPE.steps and all(0 < loss < 20 for loss in log["loss"])
    assert log["seconds"] >= 0 and log["machine"]["torch"] == torch.__version__
    assert list(log["validation"]) == list(LANGUAGES)
    names = {
        f"{direction} recall@{k} at {dim}"
        for direction in ("text_to_image", "image_to_text")
        for k in (1, 5)
        for dim in MATRYOSHKA_DIMS
    }
    for recall in log["validation"].values():
        assert set(recall) == names
        assert all(0 <= value <= 1 for value in recall.values())


def test_every_step_sees_pictures_of_its_own_and_families_later(run: tuple[Path, list[Drawn]]) -> None:
    steps, validations = run[1][: RECIPE.steps], run[1][RECIPE.steps :]
    assert [(one.split, one.count, one.family) for one in steps] == [("train", 8, 1)] * 3 + [("train", 8, 2)] * 3
    assert len({one.seed for one in steps}) == RECIPE.steps
    assert {one.split for one in validations} == {"validation"}
    assert len({one.seed for one in validations}) == 1  # every language is judged by the same pictures


def test_weights_are_half_precision_of_the_official_layout(trained: Path) -> None:
    weights = load_file(trained / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    config = parse_config(json.loads((trained / "config.json").read_text()))
    with open_weights(open_checkpoint(trained).checkpoint, config) as found:  # refuses what is missing or extra
        assert found.read(LOGIT_SCALE).item() == pytest.approx(np.log(1 / 0.07), abs=0.1)


def test_recall_is_what_numpy_counts(learnt: tuple[RawTowers, list[float]], plain: Tokenizer) -> None:
    """Of pictures kept for validation; the first of the two captions searches and is found."""
    towers = learnt[0]
    found = validate(towers, plain, 4, "en", count=30, family=5)
    batch = draw_batch(plain, "validation", (4, 3), count=30, family=5, language="en")
    with torch.no_grad():
        images, texts = (vectors.numpy() for vectors in towers.encode(batch.pixels, batch.ids[:30]))
    wanted = {}
    for dim in MATRYOSHKA_DIMS:
        cut_images, cut_texts = (
            rows[:, :dim] / np.linalg.norm(rows[:, :dim], axis=1, keepdims=True) for rows in (images, texts)
        )
        for direction, queries, found_ones in (
            ("text_to_image", cut_texts, cut_images),
            ("image_to_text", cut_images, cut_texts),
        ):
            cosines = queries @ found_ones.T
            ranks = [int((row > row[own]).sum()) for own, row in enumerate(cosines)]
            for k in (1, 5):
                wanted[f"{direction} recall@{k} at {dim}"] = round(np.mean([rank < k for rank in ranks]), 4)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert len(set(wanted.values())) > 3  # else directions and dimensions could be mixed up


def test_an_interrupted_run_ends_as_one_that_was_not(
    trained: Path, tmp_path: Path, interrupt: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted before anything was saved, then inside step 5; two steps of that are done again."""
    for step in (1, 5):
        interrupt(step)
        with pytest.raises(KeyboardInterrupt):
            train.train(tmp_path, RECIPE)
        assert [path.name for path in tmp_path.iterdir()] == ([STATE] if step > 1 else [])
    capsys.readouterr()
    train.train(tmp_path, RECIPE)
    assert capsys.readouterr().err == "going on from step 4 of 6\n"
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name
    found, wanted = log_of(tmp_path), log_of(trained)
    assert found.pop("seconds") >= 0 and wanted.pop("seconds") >= 0
    assert found == wanted
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, LOG}


def test_another_recipe_does_not_go_on(tmp_path: Path, interrupt: Callable[[int], None]) -> None:
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path, RECIPE)
    state = (tmp_path / STATE).read_bytes()
    with pytest.raises(BuildError) as caught:
        train.train(tmp_path, Recipe(steps=6, batch=4, family=2, family_from=0.5))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / STATE}: was begun with ") and "\n" not in message
    assert "'batch': 8" in message
    assert (tmp_path / STATE).read_bytes() == state


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(b"no state")
    with pytest.raises(BuildError) as caught:
        train.train(tmp_path, RECIPE)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / STATE}: ") and message.endswith("; remove it to begin anew")
    assert "\n" not in message


def test_a_finished_checkpoint_is_not_trained_on(trained: Path) -> None:
    before = hash_file(trained / "model.safetensors")
    with pytest.raises(BuildError, match="holds a trained checkpoint already"):
        train.train(trained, RECIPE)
    assert hash_file(trained / "model.safetensors") == before


def test_the_command_line(
    tmp_path: Path, interrupt: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """130 when it is interrupted, 0 when it is done, 1 and a line when there is nothing to do or to write to."""
    out = tmp_path / "model"
    arguments = [str(out), "--steps", "3", "--batch", "4", "--seed", "5"]
    interrupt(2)
    assert bench("train-demo", *arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert bench("train-demo", *arguments) == 0
    assert "going on from step 2 of 3" in capsys.readouterr().err
    assert Recipe(**log_of(out)["recipe"]) == Recipe(steps=3, batch=4, seed=5)
    (tmp_path / "file").touch()
    for target, message in ((out, "holds a trained checkpoint already"), (tmp_path / "file", "cannot be made")):
        assert bench("train-demo", target, *arguments[1:]) == 1
        out_text, err = capsys.readouterr()
        assert out_text == ""
        assert err.startswith(f"edgeclip: {target}: {message}") and err.count("\n") == 1
