"""Reading an nllb-clip-siglip checkpoint: open_clip's names, configuration and tokenizer; all else is refused."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

from edgeclip.errors import BuildError
from edgeclip.manifest import Manifest
from edgeclip_bench.families.nllb_clip import LANGUAGES, full_config, large_config, tiny_config
from edgeclip_bench.families.random_checkpoint import write_checkpoint
from edgeclip_export import export_checkpoint, tensor_shapes
from edgeclip_export.families.nllb_clip.config import parse_config
from edgeclip_export.families.nllb_clip.tokenizer import order_tokens
from tests.scenes.nllb_goldens import CHECKPOINT, GOLDEN

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
Document = dict[str, Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKPOINT, tmp_path / "model", copy_function=shutil.copyfile)


def change(folder: Path, edit: Callable[[Document], object]) -> None:
    document = json.loads((folder / CONFIG).read_text())
    edit(document)
    (folder / CONFIG).write_text(json.dumps(document))


def refusal(folder: Path, **options: Any) -> str:
    """The one line that an export gives; nothing is left beside the folder."""
    with pytest.raises(BuildError) as caught:
        export_checkpoint(folder, folder.parent / "bundle", **options)
    assert list(folder.parent.iterdir()) == [folder]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("size", "config"), [("base", full_config()), ("large", large_config())])
def test_the_tensors_are_the_official_ones(size: str, config: Document) -> None:
    lines = (GOLDEN / f"state_dict_keys_{size}.tsv").read_text().splitlines()
    wanted = {name: ast.literal_eval(shape) for name, shape in (line.split("\t") for line in lines)}
    assert tensor_shapes(config) == wanted


def test_the_sizes_are_those_of_the_known_towers() -> None:
    config = parse_config(large_config())
    assert (config.vision.grid, config.vision.mlp_width, config.vision.head_width) == (27, 4304, 72)
    assert (config.text.layers, config.text.mlp_width, config.text.max_tokens) == (24, 8192, 77)


@pytest.mark.parametrize(
    ("config", "weights"),
    [(CONFIG, "model.safetensors"), ("config.json", WEIGHTS), ("config.json", "model.safetensors")],
)
def test_the_usual_names_are_read_too(model: Path, config: str, weights: str) -> None:
    """config.json may hold the model's part alone, as open_clip's own list of models has it."""
    (model / WEIGHTS).rename(model / weights)
    if config != CONFIG:
        document = json.loads((model / CONFIG).read_text())
        (model / CONFIG).unlink()
        (model / config).write_text(json.dumps(document["model_cfg"]))
    export_checkpoint(model, model.parent / "bundle")
    manifest = Manifest.read(model.parent / "bundle")
    assert manifest.need_image().resize_mode == "squash"
    assert manifest.need_image().mean == (0.5, 0.5, 0.5)


def test_the_config_of_another_library_beside_it_is_passed_over(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "siglip", "architectures": ["SiglipModel"]}))
    export_checkpoint(model, model.parent / "bundle")


def test_what_the_file_says_of_images_is_done(model: Path) -> None:
    change(model, lambda document: document["preprocess_cfg"].update(resize_mode="shortest", mean=[0.4, 0.5, 0.6]))
    export_checkpoint(model, model.parent / "bundle")
    facts = Manifest.read(model.parent / "bundle").need_image()
    assert (facts.resize_mode, facts.mean) == ("shortest", (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("vision_cfg", {"timm_pool": "avg"}, "timm_pool 'avg'"),
        ("vision_cfg", {"timm_proj": "linear"}, "timm_proj 'linear'"),
        ("vision_cfg", {"timm_model_name": "vit_large_patch16_siglip_256"}, "vit_large_patch16_siglip_256"),
        ("vision_cfg", {"timm_model_kwargs": {"num_heads": 7}}, "7 heads"),
        ("text_cfg", {"hf_pooler_type": "mean_pooler"}, "hf_pooler_type 'mean_pooler'"),
        ("text_cfg", {"hf_proj_type": "mlp"}, "hf_proj_type 'mlp'"),
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}, "xlm-roberta-base"),
        ("text_cfg", {"hf_model_config_kwargs": {"activation_function": "gelu"}}, "activation_function 'gelu'"),
    ],
)
def test_what_would_need_other_arithmetic_is_refused(model: Path, part: str, changes: Document, said: str) -> None:
    change(model, lambda document: document["model_cfg"][part].update(changes))
    assert said in refusal(model)


@pytest.mark.parametrize("name", ["visual.trunk.attn_pool.latent", "text.proj.weight", "logit_bias"])
def test_a_missing_tensor_is_refused_by_its_name(model: Path, name: str) -> None:
    weights = load_file(model / WEIGHTS)
    del weights[name]
    save_file(weights, model / WEIGHTS)
    assert f"{name} missing" in refusal(model)


def test_pickled_weights_are_named_with_what_to_do(model: Path) -> None:
    (model / WEIGHTS).rename(model / "open_clip_pytorch_model.bin")
    assert "open_clip_pytorch_model.bin: pickle files can run code" in refusal(model)


def test_a_task_is_refused(model: Path) -> None:
    assert "without a task" in refusal(model, task="deu_Latn")


@pytest.mark.parametrize("single", ["$A </s> eng_Latn", "eng_Latn $A </s>", "$A"])
def test_the_code_comes_first_however_the_file_orders_it(single: str) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    eng = tokenizer.token_to_id("eng_Latn")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair="$A $B", special_tokens=[("eng_Latn", eng), ("</s>", 2)]
    )
    ordered, codes = order_tokens(tokenizer.to_str().encode(), 2)
    inner = tokenizer.encode("a wall", add_special_tokens=False).ids
    assert Tokenizer.from_str(ordered).encode("a wall").ids == [eng, *inner, 2]
    assert codes["eng_Latn"] == eng and next(iter(codes)) == "eng_Latn" and len(codes) == 7


def test_a_tokenizer_without_codes_is_refused(model: Path) -> None:
    document = json.loads((model / "tokenizer.json").read_text())
    document["added_tokens"] = [token for token in document["added_tokens"] if "_" not in token["content"]]
    document["post_processor"] = None
    (model / "tokenizer.json").write_text(json.dumps(document))
    assert "has no language codes" in refusal(model)


def test_a_checkpoint_of_random_weights_has_every_language(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", tiny_config())
    export_checkpoint(tmp_path / "model", tmp_path / "bundle")
    manifest = Manifest.read(tmp_path / "bundle")
    assert set(manifest.tasks) == set(LANGUAGES)
    assert len(LANGUAGES) == 202 and manifest.task_required
