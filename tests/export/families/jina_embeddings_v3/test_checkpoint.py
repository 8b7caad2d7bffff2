"""Reading a jina-embeddings-v3 checkpoint is strict in both layouts, and every number is its config.json's."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip.errors import BuildError
from edgeclip_bench.families.jina_embeddings_v3 import full_config, tiny_config
from edgeclip_export import export_checkpoint, tensor_shapes
from edgeclip_export.checkpoint import read_json
from edgeclip_export.families.jina_embeddings_v3.config import parse_config
from edgeclip_export.families.jina_embeddings_v3.layout import adapter_files, adapter_shapes, base_shapes
from edgeclip_export.opening import open_checkpoint
from tests.scenes.v3_goldens import GOLDEN, OFFICIAL, copy_converted

WEIGHTS = "model.safetensors"
NORM = "roberta.emb_ln.weight"


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return shutil.copytree(OFFICIAL, tmp_path / "model", copy_function=shutil.copyfile)


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    return copy_converted(tmp_path / "model")


def refusal(folder: Path, **options: Any) -> str:
    """The one line that an export gives; nothing is left beside the folder."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(BuildError) as caught:
        export_checkpoint(folder, folder.parent / "out", **options)
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.iterdir()) == before
    return str(caught.value)


def edit(folder: Path, file: str = "config.json", **changes: object) -> None:
    document = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({name: value for name, value in document.items() if value != "absent"}))


def listed(name: str, column: int = 0) -> dict[str, tuple[int, ...]]:
    lines = (line.split("\t") for line in (GOLDEN / name).read_text().splitlines() if not line.startswith("#"))
    return {line[column]: ast.literal_eval(line[column + 1]) for line in lines}


def test_the_official_492_tensors_are_known_by_name_and_shape() -> None:
    """Against the list made by running the official code with the real configuration."""
    official = listed("state_dict_keys.tsv")
    assert len(official) == 492
    assert tensor_shapes(full_config()) == official


def test_the_converted_294_and_294_tensors_are_known_by_name_and_shape() -> None:
    config = parse_config(full_config())
    found = base_shapes(config) | adapter_shapes(config, 4)
    assert found == listed("hf_layout_keys.tsv", column=1)
    assert (len(base_shapes(config)), len(adapter_shapes(config, 4))) == (294, 294)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("emb_pooler", "cls", "has emb_pooler 'cls'; only None is supported"),
        ("truncate_dim", 64, "has truncate_dim 64"),
        ("hidden_act", "gelu_new", "has hidden_act 'gelu_new'"),
        ("position_embedding_type", "absolute", "has position_embedding_type 'absolute'"),
        ("layer_norm_eps", "absent", "needs a positive number as layer_norm_eps"),
        ("num_attention_heads", 7, "does not split into 7 heads"),
        ("rotary_emb_base", -1.0, "needs a positive number as rotary_emb_base"),
        ("lora_adaptations", [], "lora_adaptations is []"),
        ("lora_adaptations", ["../up"], "lora_adaptations ['../up'] are not different names"),
        ("task_instructions", {"query": ""}, "task_instructions are of ['query'], wanted one for each"),
        ("matryoshka_dimensions", [8, 97], "matryoshka_dimensions [8, 97] do not lie between 1 and 96"),
        ("lora_rank", 4, "0.lora_A has shape (5, 523, 3), config.json wants (5, 523, 4)"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(official: Path, name: str, value: object, said: str) -> None:
    edit(official, **{name: value})
    assert said in refusal(official)


@pytest.mark.parametrize(
    ("changes", "base"),
    [
        ({}, 20000.0),
        ({"rotary_emb_base": "absent"}, 10000.0),
        ({"rotary_emb_base": "absent", "model_type": "jina_embeddings_v3"}, 20000.0),
        (
            {
                "rotary_emb_base": "absent",
                "model_type": "jina_embeddings_v3",
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            },
            500.0,
        ),
        ({"rotary_emb_base": 700.0, "rope_parameters": {"rope_theta": 20000.0}}, 700.0),
    ],
)
def test_the_rotary_base_is_the_files_or_its_codes_default(changes: dict[str, Any], base: float) -> None:
    document = {name: value for name, value in (tiny_config() | changes).items() if value != "absent"}
    assert parse_config(document).rotary_base == base


@pytest.mark.parametrize(("limit", "longest"), [(100, 100), (None, 8194), (10**30, 8194), (9000, 9000)])
def test_texts_are_cut_at_the_tokenizers_limit(limit: object, longest: int) -> None:
    assert parse_config(tiny_config(), limit).max_tokens == longest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop(NORM), f"{NORM} missing"),
        (lambda w: w.update({"roberta.head.weight": torch.zeros(2)}), "roberta.head.weight not part of"),
        (lambda w: w.update({NORM: torch.ones(97)}), f"{NORM} has shape (97,), config.json wants (96,)"),
        (lambda w: w.update({NORM: torch.full((96,), float("nan"))}), f"{NORM} holds NaN"),
    ],
)
@pytest.mark.parametrize("layout", ["official", "converted"])
def test_a_tensor_that_does_not_fit_is_named(
    request: pytest.FixtureRequest, layout: str, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    folder: Path = request.getfixturevalue(layout)
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)
    assert said in refusal(folder)


def test_wrappers_in_names_are_undone(official: Path) -> None:
    """As DistributedDataParallel and torch.compile save them."""
    weights = load_file(official / WEIGHTS)
    save_file({f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}, official / WEIGHTS)
    with pytest.warns(match="`module._orig_mod.` in the names"):
        export_checkpoint(official, official.parent / "out")


Q_FACTOR = "roberta.encoder.layers.1.self_attn.q_proj.lora_A.weight"


def edit_adapter(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "separation" / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: shutil.rmtree(f / "text_matching"), "there is no text_matching/adapter_config.json for the task"),
        (lambda f: edit(f, "separation/adapter_config.json", r=5), "config.json wants (5, 523)"),
        (lambda f: edit(f, "separation/adapter_config.json", use_dora=True), "use_dora is True; only False"),
        (lambda f: edit(f, "separation/adapter_config.json", use_rslora=True), "use_rslora is True; only False"),
        (lambda f: edit(f, "separation/adapter_config.json", peft_type="LOHA"), "peft_type is 'LOHA'; only 'LORA'"),
        (lambda f: edit_adapter(f, lambda w: w.pop(Q_FACTOR)), f"{Q_FACTOR} missing"),
        (lambda f: edit_adapter(f, lambda w: w[Q_FACTOR].add_(1)), "have different lora_A; wanted one for all"),
        (lambda f: (f / "separation" / "adapter_model.safetensors").write_bytes(b"cut"), "not a whole safetensors"),
    ],
)
def test_an_adapter_that_does_not_fit_is_named(converted: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(converted)
    assert said in refusal(converted)


def test_the_folders_count_as_weights(converted: Path) -> None:
    """The manifest's hash changes with any of them."""
    checkpoint = open_checkpoint(converted).checkpoint
    assert [path.parent.name for path in checkpoint.adapters] == [
        Path(adapter_files(task)[1]).parent.name for task in read_json(converted / "config.json")["lora_adaptations"]
    ]
    before = checkpoint.hash_weights()
    edit_adapter(converted, lambda w: w[Q_FACTOR].add_(1))
    assert checkpoint.hash_weights() != before


def test_a_task_that_the_model_does_not_have_is_refused(official: Path) -> None:
    assert "task is 'query', wanted one that the model has: 'text-matching'" in refusal(official, task="query")
