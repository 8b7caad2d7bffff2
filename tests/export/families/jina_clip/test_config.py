"""config.json, preprocessor_config.json and tokenizer.json: read as the reference does, or refused by name."""

import copy
import json

import pytest

from edgeclip.errors import BuildError
from edgeclip.manifest import TextFacts
from edgeclip_bench.families.jina_clip import full_config, tiny_config
from edgeclip_export.checkpoint import read_json
from edgeclip_export.families.jina_clip.config import parse_config
from edgeclip_export.families.jina_clip.preprocessor import image_facts
from edgeclip_export.texts import reset_tokenizer
from tests.conftest import CHECKPOINT

PREPROCESSOR = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())
CONFIG = parse_config(read_json(CHECKPOINT / "config.json"))
FACTS = TextFacts(file="tokenizer.json", max_length=8192, bos_id=0, eos_id=2, pad_id=1)


def test_the_official_numbers_come_from_the_base_configuration_too() -> None:
    """The official file names no width, depth or vocabulary for its text tower."""
    document = full_config()
    kwargs = document["text_config"]["hf_model_config_kwargs"]
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
        del kwargs[name]
    config = parse_config(document)
    text, vision = config.text, config.vision
    assert (text.width, text.layers, text.heads, text.mlp_width, text.vocab_size) == (1024, 24, 16, 4096, 250002)
    assert (text.layer_norm_eps, text.rotary_base, text.max_tokens) == (1e-5, 20000.0, 8192)
    assert (text.pad_id, text.bos_id, text.eos_id) == (1, 0, 2)
    assert (text.lora.rank, text.lora.scale, text.lora.adapter) == (4, 1.0, 0)
    assert (vision.heads, vision.mlp_width, vision.patches, vision.layer_norm_eps) == (16, 2730, 1296, 1e-6)
    assert config.matryoshka_dims[-1] == config.embedding_dim == 1024


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("text_config",), None, "text_config is missing"),
        (("add_projections",), True, "add_projections True; only False"),
        (("matryoshka_dimensions",), [64, 65], "matryoshka_dimensions"),
        (("text_config", "pooler_type"), "cls_pooler", "pooler_type 'cls_pooler'"),
        (("text_config", "default_lora_task"), "sts", "default_lora_task 'sts' is not among"),
        (("text_config", "hf_model_config_kwargs", "hidden_size"), 0, "positive whole number as hidden_size"),
        (("text_config", "hf_model_config_kwargs", "hidden_act"), "silu", "hidden_act 'silu'"),
        (("text_config", "hf_model_config_kwargs", "num_attention_heads"), 5, "does not split into 5 heads"),
        (("text_config", "hf_model_config_kwargs", "lora_alpha"), "four", "positive number as lora_alpha"),
        (("vision_config", "proj_type"), "mlp", "proj_type 'mlp'; only None"),
        (("vision_config", "subln"), False, "subln False; only True"),
        (("vision_config", "head_width"), 24, "no multiple of head_width"),
        (("vision_config", "intp_freq"), False, r"pt_hw_seq_len \(16\) must equal the patch grid"),
        (("vision_config", "image_size"), 8, "no patch of 14 px fits"),
        (("vision_config", "width"), 32, "is not its width 32"),
    ],
)
def test_a_setting_that_is_not_this_models_is_refused(path: tuple[str, ...], value: object, message: str) -> None:
    document = copy.deepcopy(tiny_config())
    section = document
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    with pytest.raises(BuildError, match=message) as caught:
        parse_config(document)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("size", 224, "size is 224, the vision tower wants 64"),
        ("size", {"height": 64}, "size is"),
        ("resize_mode", "stretch", "resize_mode is 'stretch', wanted one of shortest"),
        ("interpolation", "lanczos", "interpolation is 'lanczos'"),
        ("fill_color", 256, "fill_color is 256"),
        ("mean", [0.5], "mean is"),
        ("std", [0.1, 0.0, 0.1], "wanted positive numbers"),
    ],
)
def test_a_preprocessing_that_is_not_known_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        image_facts(PREPROCESSOR | {name: value}, CONFIG)


def test_the_built_in_truncation_and_padding_are_reset() -> None:
    text = (CHECKPOINT / "tokenizer.json").read_text()
    assert json.loads(text)["truncation"]["max_length"] == 77
    reset = json.loads(reset_tokenizer(text.encode(), FACTS, CONFIG.text.vocab_size))
    assert reset["truncation"] is reset["padding"] is None
    assert reset["model"] == json.loads(text)["model"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"model": {}}', b"\xff", b"[1]"])
def test_a_file_that_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(BuildError, match=r"tokenizer.json: not a tokenizer"):
        reset_tokenizer(content, FACTS, CONFIG.text.vocab_size)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    text = (CHECKPOINT / "tokenizer.json").read_text()
    document = json.loads(text)
    document["post_processor"] = None
    with pytest.raises(BuildError, match=r"an empty text gives \[\]"):
        reset_tokenizer(json.dumps(document).encode(), FACTS, 2000)


def test_scale_adapter_and_grid_are_what_the_facts_say() -> None:
    """The oracle of `test_variants` takes these from the same configuration, so they are held here."""
    document = copy.deepcopy(tiny_config())
    kwargs = document["text_config"]["hf_model_config_kwargs"]
    kwargs |= {"lora_rank": 7, "lora_alpha": 3, "lora_adaptations": ["retrieval.passage", "retrieval.query"]}
    document["vision_config"] |= {"image_size": 75, "mlp_ratio": 3.1, "head_width": 32}
    config = parse_config(document)
    assert config.text.lora.scale == 3 / 7
    assert (config.text.lora.adapter, config.text.lora.adapters) == (1, 2)
    assert (config.vision.grid, config.vision.patches, config.vision.mlp_width) == (5, 25, 198)
    assert (config.vision.heads, config.vision.head_width) == (2, 32)
