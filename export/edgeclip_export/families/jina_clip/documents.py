"""The official config.json and preprocessor_config.json with other numbers: for checkpoints that are made here."""

from collections.abc import Sequence
from typing import Any

_PROMPT = "Represent the query for retrieving evidence documents: "


def config_document(
    *,
    width: int,
    text_layers: int,
    vision_layers: int,
    head_width: int,
    text_mlp: int,
    vocab_size: int,
    image_size: int,
    matryoshka_dims: Sequence[int],
) -> dict[str, Any]:
    """config.json with these numbers; everything else is the official file's."""
    return {
        "model_type": "jina_clip",
        "architectures": ["JinaCLIPModel"],
        "add_projections": False,
        "projection_dim": width,
        "logit_scale_init_value": 2.6592,
        "matryoshka_dimensions": list(matryoshka_dims),
        "torch_dtype": "float16",
        "truncate_dim": None,
        "text_config": {
            "default_instruction_task": None,
            "default_lora_task": "retrieval.query",
            "embed_dim": width,
            "hf_model_name_or_path": "jinaai/jina-embeddings-v3",
            "model_type": "jina_clip_text",
            "pooler_type": "mean_pooler",
            "proj_bias": False,
            "proj_type": None,
            "hf_model_config_kwargs": {
                "load_trained_adapters": False,
                "lora_adaptations": ["retrieval.query"],
                "lora_alpha": 4,
                "lora_dropout_p": 0.0,
                "lora_main_params_trainable": False,
                "lora_rank": 4,
                "task_instructions": {"retrieval.query": _PROMPT},
                "use_flash_attn": True,
                "hidden_size": width,
                "num_hidden_layers": text_layers,
                "num_attention_heads": width // head_width,
                "intermediate_size": text_mlp,
                "vocab_size": vocab_size,
            },
        },
        "vision_config": vision_document(
            width=width, layers=vision_layers, head_width=head_width, image_size=image_size
        ),
    }


def vision_document(*, width: int, layers: int, head_width: int, image_size: int) -> dict[str, Any]:
    """The part of config.json that is about the vision tower, with these numbers."""
    return {
        "embed_dim": width,
        "fused_layer_norm": False,
        "head_width": head_width,
        "image_size": image_size,
        "intp_freq": True,
        "layers": layers,
        "ls_init_value": None,
        "mlp_ratio": 2.6667,
        "model_type": "jina_clip_vision",
        "naive_swiglu": True,
        "patch_dropout": 0.1,
        "patch_size": 14,
        "post_norm": False,
        "proj_type": None,
        "pt_hw_seq_len": 16,
        "qkv_bias": True,
        "rope_embeddings": True,
        "subln": True,
        "width": width,
        "x_attention": True,
    }


def preprocessor_document(image_size: int) -> dict[str, Any]:
    """preprocessor_config.json: the official one but for the size."""
    return {
        "size": image_size,
        "resize_mode": "shortest",
        "interpolation": "bicubic",
        "fill_color": 0,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    }
