"""Checkpoints as today's libraries save them give the official layout's vectors, and the export says what it undid.

Each is made here from the golden checkpoint; those of transformers and huggingface_hub by these libraries themselves.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ProcessorMixin, XLMRobertaTokenizerFast
from transformers.image_processing_utils import BaseImageProcessor

from edgeclip import BuildError, Encoder, Manifest
from edgeclip.errors import CheckpointWarning
from edgeclip_bench.rivals.plain_towers import load_plain_text
from edgeclip_export import export_checkpoint
from edgeclip_export.bundle import PARITY
from edgeclip_export.checkpoint import hash_file, read_json
from edgeclip_export.families.jina_clip.config import parse_config
from edgeclip_export.families.jina_clip.weights import open_weights
from edgeclip_export.opening import open_checkpoint
from tests.conftest import CHECKPOINT

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG = parse_config(read_json(CHECKPOINT / "config.json"))
NORM = "vision_model.norm.weight"
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKPOINT, tmp_path / "model")


def resave(folder: Path, change: Change) -> None:
    tensors = {name: tensor.clone() for name, tensor in change(load_file(folder / WEIGHTS)).items()}
    save_file(tensors, folder / WEIGHTS)


def opened(folder: Path) -> None:
    """Check the weights as an export does."""
    with open_weights(open_checkpoint(folder).checkpoint, parse_config(read_json(folder / "config.json"))):
        pass


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_vectors(folder: Path, encoder: Encoder) -> Manifest:
    """Export it; texts and images have the official layout's vectors."""
    manifest = export_checkpoint(folder, folder.parent / "bundle")
    texts = ["the blue cat", "<pad> in text", "海滩上美丽 的", ""]
    images = list(np.random.default_rng(0).integers(0, 256, (2, 70, 90, 3), dtype=np.uint8))
    with Encoder.open(folder.parent / "bundle", device="cpu") as found:
        assert np.abs(found.encode_text(texts) - encoder.encode_text(texts)).max() <= PARITY
        assert np.abs(found.encode_image(images) - encoder.encode_image(images)).max() <= PARITY
    return manifest


def named(prefix: str) -> Change:
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def wrapped_inside(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch.compile of one tower, DistributedDataParallel of the other, the model an attribute of a trainer's."""
    parts = {"vision_model.": "vision_model._orig_mod.", "text_model.": "text_model.module."}
    renamed = {}
    for name, tensor in tensors.items():
        part = next((part for part in parts if name.startswith(part)), "")
        renamed[f"clip.{parts.get(part, '')}{name.removeprefix(part)}"] = tensor
    return renamed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (named("module."), "`module.`"),
        (named("_orig_mod."), "`_orig_mod.`"),
        (named("model."), "`model.`"),
        (named("module._orig_mod."), "`module._orig_mod.`"),
        (named("0.auto_model."), "`0.auto_model.`"),
        (named("_fsdp_wrapped_module.model."), "`_fsdp_wrapped_module.model.`"),
        (wrapped_inside, "`clip._orig_mod.`, `clip.module.`, `clip.`"),
    ],
)
def test_wrappers_in_names_are_left_out_and_named(folder: Path, change: Change, said: str) -> None:
    """What is read is what the official names have, to the bit."""
    resave(folder, change)
    with (
        open_weights(open_checkpoint(folder).checkpoint, CONFIG) as found,
        open_weights(open_checkpoint(CHECKPOINT).checkpoint, CONFIG) as own,
    ):
        assert found.notes == (f"{folder / WEIGHTS}: {said} in the names of its tensors was left out",)
        assert own.notes == ()
        for name in load_file(CHECKPOINT / WEIGHTS):
            assert torch.equal(found.read(name), own.read(name))


def test_an_export_says_what_it_left_out(folder: Path, encoder: Encoder) -> None:
    resave(folder, named("module._orig_mod."))
    with pytest.warns(CheckpointWarning, match=r"`module\._orig_mod\.` in the names") as told:
        check_vectors(folder, encoder)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: named("student.")(t) | named("teacher.")(t), "holds two models, `student.`, `teacher.`; save one"),
        (lambda t: named("module.")(t) | t, "are both"),
        (
            lambda t: named("model.")(t) | {"optimizer.step": torch.zeros(1)},
            "optimizer.step not part of a checkpoint",
        ),
        (lambda t: named("model.")({name: t[name] for name in t if name != NORM}), f"{NORM} missing"),
        (lambda t: named("model.")(t | {NORM: torch.ones(65)}), f"{NORM} has shape (65,), config.json wants (64,)"),
    ],
)
def test_names_stay_strict_behind_a_prefix(folder: Path, change: Change, said: str) -> None:
    resave(folder, change)
    assert said in refusal(lambda: opened(folder))


def merge(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torch's remove_parametrizations leaves it, computed here: W + B A, for a table W + A B (scale 1)."""
    plain = {name: tensor for name, tensor in tensors.items() if ".parametrizations." not in name}
    for name, weight in tensors.items():
        if name.endswith(".original"):
            start = name.removesuffix("original")
            a, b = (tensors[f"{start}0.lora_{which}"][0].float() for which in "AB")
            product = a @ b if ".embeddings." in name else b @ a
            plain[name.replace(".parametrizations.weight.original", ".weight")] = weight.float() + product
    return plain


@pytest.mark.parametrize("is_named", [True, False], ids=["adapters in config.json", "none in config.json"])
def test_merged_lora_is_exported_and_said(folder: Path, encoder: Encoder, is_named: bool) -> None:
    resave(folder, merge)
    if not is_named:
        config = read_json(folder / "config.json")
        config["text_config"]["default_lora_task"] = None
        config["text_config"]["hf_model_config_kwargs"]["lora_adaptations"] = None
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(CheckpointWarning, match="LoRA is merged already, and no file says of which task") as told:
        check_vectors(folder, encoder)
    assert len(told) == 1
    assert "if it was of retrieval.query" in str(told[0].message)


def test_the_plain_towers_read_merged_lora_too(folder: Path) -> None:
    """They are the oracle of a rival's comparison, whatever layout its checkpoint has."""
    resave(folder, merge)
    ids = torch.tensor([[0, 5, 9, 2]])
    assert (load_plain_text(folder)(ids) - load_plain_text(CHECKPOINT)(ids)).abs().max() <= PARITY


def half_merged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "text_model.transformer.roberta.encoder.layers.0.mixer.Wqkv"
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}.parametrizations")}
    return kept | {f"{name}.weight": merge(tensors)[f"{name}.weight"]}


def as_peft(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = merge(tensors)
    name = "text_model.transformer.roberta.encoder.layers.0.mixer.Wqkv"
    weight = plain.pop(f"{name}.weight")
    return {f"base_model.model.{key}": tensor for key, tensor in plain.items()} | {
        f"base_model.model.{name}.base_layer.weight": weight,
        f"base_model.model.{name}.lora_A.default.weight": torch.zeros(4, 64),
        f"base_model.model.{name}.lora_B.default.weight": torch.zeros(192, 4),
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (half_merged, "Wqkv.parametrizations.weight.original, "),
        (as_peft, "are peft's, not merged; merge them (merge_and_unload)"),
        (lambda t: merge(t) | {"lora_scale": torch.ones(1)}, "lora_scale not part of a checkpoint"),
    ],
)
def test_lora_that_is_merged_in_part_is_refused(folder: Path, change: Change, said: str) -> None:
    resave(folder, change)
    assert said in refusal(lambda: opened(folder))


def test_adapters_that_the_configuration_does_not_name_are_refused(folder: Path) -> None:
    config = read_json(folder / "config.json")
    config["text_config"]["default_lora_task"] = None
    del config["text_config"]["hf_model_config_kwargs"]["lora_adaptations"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "holds adapters, and config.json names none in lora_adaptations" in refusal(lambda: opened(folder))


BUFFERS = {
    "text_model.transformer.roberta.embeddings.position_ids": torch.arange(10)[None],
    "text_model.transformer.roberta.embeddings.token_type_ids": torch.zeros(1, 10, dtype=torch.int64),
    "text_model.transformer.roberta.encoder.layers.0.mixer.rotary_emb.inv_freq": torch.full((8,), 3e38),
    "vision_model.rope.freqs_cos": torch.full((16, 16), float("nan")),
    "vision_model.blocks.0.attn.rope.freqs_sin": torch.zeros(16, 16),
}


def test_buffers_that_were_saved_along_are_passed_over(folder: Path) -> None:
    """Garbage in them, as transformers 5 leaves it, harms nothing. Another tensor beside them is refused."""
    resave(folder, lambda tensors: tensors | BUFFERS)
    opened(folder)
    resave(folder, lambda tensors: tensors | {"vision_model.rope.scale": torch.ones(1)})
    assert "vision_model.rope.scale not part of a checkpoint" in refusal(lambda: opened(folder))


@pytest.fixture
def sharded(folder: Path) -> Path:
    """As save_pretrained writes a model in shards, by huggingface_hub."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_torch_state_dict(weights, folder, max_shard_size="300kB")
    assert (folder / INDEX).exists() and len(list(folder.glob("model-*.safetensors"))) > 3
    return folder


def test_shards_are_read_as_one(sharded: Path, encoder: Encoder) -> None:
    """The manifest's hash of the weights changes with any of them."""
    manifest = check_vectors(sharded, encoder)
    found = open_checkpoint(sharded).checkpoint
    assert manifest.source.weights_sha256 == found.hash_weights()
    last = found.weights[-1]
    resaved = load_file(last)
    resaved[next(iter(resaved))].view(-1)[0] += 1
    save_file(resaved, last)
    assert manifest.source.weights_sha256 != found.hash_weights()


def test_one_file_is_hashed_as_it_is(folder: Path) -> None:
    assert open_checkpoint(folder).checkpoint.hash_weights() == hash_file(folder / WEIGHTS)


def edit_map(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    document = json.loads((folder / INDEX).read_text())
    change(document["weight_map"])
    (folder / INDEX).write_text(json.dumps(document))


def copy_norm(folder: Path) -> None:
    """Into the shards that do not have it."""
    for shard in folder.glob("model-*.safetensors"):
        save_file(load_file(shard) | {NORM: torch.ones(64)}, shard)


def lose(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    weights = load_file(shard)
    weights.popitem()
    save_file(weights, shard)


def link_nowhere(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    shard.symlink_to("../../blobs/4d7a21")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: sorted(f.glob("model-*.safetensors"))[1].unlink(), f"{INDEX} names model-00002-of-"),
        (link_nowhere, "a link to ../../blobs/4d7a21, which is not there; the Hub's cache lost it"),
        (lambda f: sorted(f.glob("model-*.safetensors"))[1].write_bytes(b"cut"), "not a whole safetensors file"),
        (copy_norm, f"{NORM} lies in model-"),
        (lose, "has no "),
        (lambda f: edit_map(f, lambda m: m.pop(NORM)), f"holds {NORM}, which {INDEX} does not name"),
        (lambda f: edit_map(f, lambda m: m.update({NORM: min(m.values())})), f"has no {NORM}, which "),
        (lambda f: edit_map(f, lambda m: m.update(more=min(m.values()))), "has no more, which "),
        (lambda f: edit_map(f, lambda m: m.update({NORM: "../x.safetensors"})), f"{NORM} lies in '../x.safetensors'"),
        (
            lambda f: edit_map(f, lambda m: m.update({NORM: "x.bin"})),
            "wanted the name of a safetensors file beside it",
        ),
        (lambda f: edit_map(f, lambda m: m.clear()), "has no weight_map that names tensors"),
        (lambda f: (f / INDEX).write_text("{"), "not readable as JSON"),
        (lambda f: shutil.copy(CHECKPOINT / WEIGHTS, f), f"holds {WEIGHTS} and {INDEX}, which names other files"),
    ],
)
def test_shards_that_are_not_whole_are_refused(sharded: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(sharded)
    assert said in refusal(lambda: opened(sharded))


class TinyImageProcessor(BaseImageProcessor):
    """An image processor with the settings of the golden checkpoint's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        vars(self).update(settings)


class TinyProcessor(ProcessorMixin):
    """With a tokenizer, as multimodal processors have one."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        super().__init__(image_processor, tokenizer)


@pytest.fixture
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and what it imports
        yield


@pytest.mark.usefixtures("_quiet")
def test_what_transformers_5_saves_is_read(folder: Path, encoder: Encoder) -> None:
    """processor_config.json alone, with the settings inside, and its own tokenizer.json; transformers writes both."""
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    tokenizer = XLMRobertaTokenizerFast.from_pretrained(folder)
    processor = TinyProcessor(TinyImageProcessor(**settings), tokenizer)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    processor.save_pretrained(folder)
    assert (folder / "processor_config.json").exists() and not (folder / "preprocessor_config.json").exists()
    assert read_json(folder / "processor_config.json")["image_processor"]["size"] == 64
    check_vectors(folder, encoder)


def test_json_with_a_byte_order_mark_is_read(folder: Path) -> None:
    """As editors on Windows write it."""
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    opened(folder)
