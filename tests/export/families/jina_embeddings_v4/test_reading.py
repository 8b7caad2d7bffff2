"""Reading a checkpoint: what is missing, extra or of another kind is refused by its name, and nothing is guessed."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from edgeclip.errors import BuildError
from edgeclip_export.export import _card_license
from edgeclip_export.families import find_family
from edgeclip_export.families.jina_embeddings_v4.adapters import adapter_tensor_shapes
from edgeclip_export.families.jina_embeddings_v4.config import parse_config
from edgeclip_export.families.jina_embeddings_v4.tensors import tensor_shapes
from edgeclip_export.families.jina_embeddings_v4.tokenizer import read_tokenizer
from edgeclip_export.opening import open_checkpoint
from tests.scenes.v4_golden import CHECKPOINT, META

CONFIG, PREPROCESSOR, ADAPTERS = "config.json", "preprocessor_config.json", "adapters/adapter_config.json"
SHARD, LORA = "model-00002-of-00002.safetensors", "adapters/adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


def test_the_golden_checkpoint_is_read(folder: Path) -> None:
    with plan(folder) as found:
        assert [graph.name for graph in found.graphs] == ["vision", "text"]
        assert list(found.adapters) == ["retrieval", "text-matching", "code"]
        assert not found.notes


@pytest.mark.parametrize(
    "name", ["tokenizer.json", PREPROCESSOR, ADAPTERS, LORA, SHARD, "model-00001-of-00002.safetensors"]
)
def test_a_file_that_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    if name == "tokenizer.json":
        (folder / "vocab.json").unlink()
    assert name in refused(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CONFIG, {"multi_vector_projector_dim": None}, "multi_vector_projector_dim"),
        (CONFIG, {"single_vector_pool_strategy": "cls"}, "single_vector_pool_strategy 'cls'"),
        (CONFIG, {"image_token_id": None}, "image_token_id"),
        (CONFIG, {"task_names": ["retrieval", "separation"]}, "task_names has separation"),
        (CONFIG, {"matryoshka_dims": [8, 65]}, "do not lie between 1 and 64"),
        (CONFIG, {"text_config.num_key_value_heads": 3}, "do not share 3 heads of keys evenly"),
        (CONFIG, {"text_config.rope_scaling.mrope_section": [2, 3, 4]}, "mrope_section"),
        (CONFIG, {"text_config.rope_scaling.rope_type": "yarn"}, "rope_type 'yarn'"),
        (CONFIG, {"text_config.hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (CONFIG, {"text_config.use_sliding_window": True}, "use_sliding_window True"),
        (CONFIG, {"text_config.intermediate_size": 97}, "gate_proj"),
        (CONFIG, {"vision_config.window_size": 100}, "window_size 100"),
        (CONFIG, {"vision_config.fullatt_block_indexes": [1, 4]}, r"\[1, 4\] are not all among its 4 blocks"),
        (CONFIG, {"vision_config.out_hidden_size": 32}, "image features are 32 wide"),
        (CONFIG, {"vision_config.depth": 5}, "visual.blocks.4"),
        (ADAPTERS, {"r": 8}, "lora_A"),
        (ADAPTERS, {"r": "4"}, "r is '4'"),
        (ADAPTERS, {"lora_alpha": 0}, "lora_alpha is 0"),
        (ADAPTERS, {"use_rslora": True}, "use_rslora is True"),
        (ADAPTERS, {"use_dora": True}, "use_dora is True"),
        (ADAPTERS, {"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        (PREPROCESSOR, {"resample": 2}, "resample is 2"),
        (PREPROCESSOR, {"patch_size": 16}, "patch_size is 16"),
        (PREPROCESSOR, {"do_normalize": False}, "do_normalize is False"),
        (PREPROCESSOR, {"image_std": [1, 0, 1]}, "image_std"),
        (PREPROCESSOR, {"image_mean": [1, 0]}, "image_mean"),
        (PREPROCESSOR, {"max_pixels": 1000}, "max_pixels is 1000 and size says 602112"),
        (PREPROCESSOR, {"rescale_factor": 0.5}, "rescale_factor is 0.5"),
    ],
)
def test_a_setting_that_would_need_other_arithmetic_is_refused(
    folder: Path, file: str, change: Mapping[str, Any], message: str
) -> None:
    edit(folder / file, change)
    with pytest.raises(BuildError, match=message) as caught, plan(folder):
        pass
    assert "\n" not in str(caught.value)


def add_lm_head(weights: Weights) -> None:
    weights["lm_head.weight"] = torch.zeros(400, 64)


def drop_norm(weights: Weights) -> None:
    del weights["model.norm.weight"]


def shorten_bias(weights: Weights) -> None:
    weights["multi_vector_projector.bias"] = torch.zeros(15)


def store_integers(weights: Weights) -> None:
    weights["model.norm.weight"] = torch.ones(64, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_lm_head, "lm_head.weight not part of a checkpoint with this config.json"),
        (drop_norm, "model.norm.weight"),
        (shorten_bias, r"multi_vector_projector.bias has shape \(15,\), config.json wants \(16,\)"),
        (store_integers, "model.norm.weight is I32"),
    ],
)
def test_weights_are_held_strictly_against_the_configuration(
    folder: Path, change: Callable[[Weights], None], message: str
) -> None:
    weights = load_file(folder / SHARD)
    change(weights)
    save_file(weights, folder / SHARD)
    index = json.loads((folder / INDEX).read_text())
    others = {name: shard for name, shard in index["weight_map"].items() if shard != SHARD}
    index["weight_map"] = others | dict.fromkeys(weights, SHARD)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(BuildError, match=message), plan(folder):
        pass


FACTOR = "base_model.model.multi_vector_projector.lora_A.code.weight"


@pytest.mark.parametrize("name", [FACTOR, "base_model.model.model.visual.blocks.0.mlp.up_proj.lora_A.code.weight"])
def test_adapters_are_held_strictly_too(folder: Path, name: str) -> None:
    weights = load_file(folder / LORA)
    if name in weights:
        del weights[name]
    else:
        weights[name] = torch.zeros(4, 64)
    save_file(weights, folder / LORA)
    assert name in refused(folder)


def test_the_layout_has_the_official_numbers_of_tensors() -> None:
    document = json.loads((CHECKPOINT / CONFIG).read_text())
    document["text_config"] |= {"num_hidden_layers": 36}
    document["vision_config"] |= {"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31]}
    config = parse_config(document)
    assert len(tensor_shapes(config)) == 826
    assert len(adapter_tensor_shapes(config.decoder, config.adapters, rank=32)) == 1518


def test_weights_hashed_include_the_adapters(folder: Path) -> None:
    before = open_checkpoint(folder).checkpoint.hash_weights()
    weights = load_file(folder / LORA)
    weights[FACTOR] += 1
    save_file(weights, folder / LORA)
    assert open_checkpoint(folder).checkpoint.hash_weights() != before


def test_a_tokenizer_is_made_of_vocabulary_and_merges(folder: Path) -> None:
    official = Tokenizer.from_str(read_tokenizer(folder))
    (folder / "tokenizer.json").unlink()
    made = Tokenizer.from_str(read_tokenizer(open_checkpoint(folder).checkpoint.folder))
    texts = [*META["text"]["texts"], META["image_prompt"], "a\u0301 I'll <|im_end|>x\r\n\n  12 34\t", ""]
    assert [made.encode(text).ids for text in texts] == [official.encode(text).ids for text in texts]
    assert [made.decode(made.encode(text).ids) for text in texts[:6]] == [
        official.decode(official.encode(text).ids) for text in texts[:6]
    ]


@pytest.mark.parametrize("name", ["merges.txt", "tokenizer_config.json"])
def test_half_a_tokenizer_is_refused(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / name).unlink()
    assert f"no {name}" in refused(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_tokenizer_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert "tokenizer.json: not a tokenizer" in refused(folder)


def test_a_tokenizer_that_gives_special_tokens_other_ids_is_refused(folder: Path) -> None:
    edit(folder / CONFIG, {"vision_start_token_id": 381})
    assert "[381, 382, 380] in it once" in refused(folder)


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("license: other\nlicense_name: qwen-research", "qwen-research"),
        ("license: other", "other"),
        ("tags: [a]", None),
    ],
)
def test_the_licence_is_what_the_card_says(tmp_path: Path, front: str, license: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\nlicense: no\n")
    assert _card_license(tmp_path / "README.md") == license


def test_the_family_is_recognised_by_its_architecture() -> None:
    assert find_family(json.loads((CHECKPOINT / CONFIG).read_text())).name == "jina_embeddings_v4"
    with pytest.raises(BuildError, match="Qwen2_5_VL"):
        find_family({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"})


def plan(folder: Path):
    opened = open_checkpoint(folder)
    return opened.family.open(opened.checkpoint, None)


def refused(folder: Path) -> str:
    with pytest.raises(BuildError) as caught, plan(folder):
        pass
    return str(caught.value)


def edit(path: Path, change: Mapping[str, Any]) -> None:
    """Set values of a JSON file, by names with dots; None takes one away."""
    document = json.loads(path.read_text())
    for name, value in change.items():
        *parents, last = name.split(".")
        inner = document
        for parent in parents:
            inner = inner[parent]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    path.write_text(json.dumps(document))
