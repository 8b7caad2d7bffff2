"""A jina-embeddings-v4 checkpoint in its official layout, at full size and tiny; for random weights.

Two bf16 shards with their index, one file with the adapters of all tasks, and a tokenizer of Qwen2's kind.
"""

from math import prod
from pathlib import Path

from edgeclip_bench.families.layout import Config, Layout, Shapes, write_json
from edgeclip_bench.families.qwen_tokenizer import SPECIALS, write_tokenizer
from edgeclip_export import tensor_shapes
from edgeclip_export.families.jina_embeddings_v4.adapters import FILE, SETTINGS, adapter_tensor_shapes
from edgeclip_export.families.jina_embeddings_v4.config import parse_config

_INDEX = "model.safetensors.index.json"
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_FIRST_SHARD = 2 / 3  # of the numbers: the official shards have 5.0 and 2.5 GB
RANK = 32


def full_config() -> Config:
    """The official config.json's values."""
    return config_document(text={}, vision={}, first_special=151_643, multi_dim=128, dims=(128, 256, 512, 1024, 2048))


def tiny_config() -> Config:
    """The same towers with small numbers: two layers, 64 wide."""
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "rope_scaling": rope_scaling((2, 3, 3)),
        "vocab_size": 2000,
    }
    vision = {
        "depth": 2,
        "fullatt_block_indexes": [1],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 64,
    }
    return config_document(text=text, vision=vision, first_special=1900, multi_dim=16, dims=(16, 32, 64))


def config_document(
    *,
    text: Config,
    vision: Config,
    first_special: int,
    multi_dim: int,
    dims: tuple[int, ...],
    adapters: tuple[str, ...] = ("retrieval", "text-matching", "code"),
) -> Config:
    """config.json's official values but for these; ids of special tokens follow each other from `first_special`."""
    ids = {token: first_special + index for index, token in enumerate(SPECIALS)}
    text = {**_TEXT, "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], **text}
    return {
        "_name_or_path": "jinaai/jina-embeddings-v4",
        "architectures": ["JinaEmbeddingsV4Model"],
        "auto_map": {
            "AutoConfig": "configuration_jina_embeddings_v4.JinaEmbeddingsV4Config",
            "AutoModel": "modeling_jina_embeddings_v4.JinaEmbeddingsV4Model",
        },
        **text,
        "sliding_window": 32_768,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "multi_vector_projector_dim": multi_dim,
        "single_vector_pool_strategy": "mean",
        "task_names": list(adapters),
        "matryoshka_dims": list(dims),
        "truncate_dim": None,
        "text_config": {"model_type": "qwen2_5_vl_text", **text},
        "vision_config": {**_VISION, **vision},
    }


def rope_scaling(sections: tuple[int, int, int]) -> Config:
    """The setting of M-RoPE: the frequencies that turn with time, height and width."""
    return {"mrope_section": list(sections), "rope_type": "default", "type": "default"}


def file_shapes(config: Config, *, rank: int = RANK) -> dict[str, Shapes]:
    """The tensors of both shards and of the adapters' file, by the files' names."""
    parsed = parse_config(config)
    adapters = adapter_tensor_shapes(parsed.decoder, parsed.adapters, rank)
    return {**dict(zip(_SHARDS, _shards(config), strict=True)), FILE: adapters}


def _shards(config: Config) -> tuple[Shapes, Shapes]:
    """The tensors of the two shards: those that end within the first two thirds of all numbers, and the others."""
    shapes = tensor_shapes(config)
    most, numbers = _FIRST_SHARD * sum(map(prod, shapes.values())), 0
    first: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if (numbers := numbers + prod(shape)) > most:
            break
        first[name] = shape
    return first, {name: shape for name, shape in shapes.items() if name not in first}


def write_index(out: Path, config: Config) -> None:
    """Write the index of the shards."""
    shards = dict(zip(_SHARDS, _shards(config), strict=True))
    total = 2 * sum(prod(shape) for shapes in shards.values() for shape in shapes.values())
    places = {name: shard for shard, shapes in shards.items() for name in shapes}
    write_json(out / _INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})


def _write_others(out: Path, config: Config) -> None:
    write_index(out, config)
    write_json(out / SETTINGS, ADAPTERS)
    write_json(out / "preprocessor_config.json", PREPROCESSOR)
    write_tokenizer(out, config["text_config"]["bos_token_id"])


_TEXT: Config = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128_000,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": rope_scaling((16, 24, 24)),
    "rope_theta": 1_000_000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151_936,
}
_VISION: Config = {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_act": "silu",
    "hidden_size": 1280,
    "in_channels": 3,
    "in_chans": 3,
    "initializer_range": 0.02,
    "intermediate_size": 3420,
    "model_type": "qwen2_5_vl",
    "num_heads": 16,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "torch_dtype": "bfloat16",
    "window_size": 112,
}
ADAPTERS: Config = {
    "base_model_name_or_path": "jinaai/jina-embeddings-v4",
    "bias": "none",
    "exclude_modules": ".*visual.*",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": "gaussian",
    "layer_replication": None,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": RANK,
    "target_modules": (
        "(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$|"
        ".*(single_vector_projector|multi_vector_projector).*$)"
    ),
    "task_type": "FEATURE_EXTRACTION",
    "use_dora": False,
    "use_rslora": False,
}
PREPROCESSOR: Config = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 602_112,
    "merge_size": 2,
    "patch_size": 14,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "temporal_patch_size": 2,
    "processor_class": "JinaEmbeddingsV4Processor",
    "size": {"shortest_edge": 3136, "longest_edge": 602_112},
}

LAYOUT = Layout(
    full_config=full_config, tiny_config=tiny_config, dtype="bfloat16", files=file_shapes, write_others=_write_others
)
