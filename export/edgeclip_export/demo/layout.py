"""The small model's checkpoint: jina-clip-v2's layout with small numbers.

Everything that makes the official model what it is is there: interpolated rotary positions, SwiGLU with
sub-LayerNorms, an adapter that is always on, Matryoshka dimensions, an image size that its patches do
not fill. Only the numbers differ.
"""

from typing import Any

IMAGE_SIZE_PX = 116  # 8 patches of 14 pixels; the last 4 rows and columns are ignored, as the official 8 are
WIDTH = 128
HEAD_WIDTH = 32
TEXT_LAYERS = 3
VISION_LAYERS = 4
VOCAB_SIZE = 1600
MATRYOSHKA_DIMS = (16, 32, 64, 128)


def checkpoint_config(vocab_size: int = VOCAB_SIZE) -> dict[str, Any]:
    """config.json."""
    return {
        "model_type": "jina_clip",
        "architectures": ["JinaCLIPModel"],
        "add_projections": False,
        "projection_dim": WIDTH,
        "logit_scale_init_value": 2.6592,
        "matryoshka_dimensions": list(MATRYOSHKA_DIMS),
        "torch_dtype": "float16",
        "truncate_dim": None,
        "text_config": {
            "default_instruction_task": None,
            "default_lora_task": "retrieval.query",
            "embed_dim": WIDTH,
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
                "task_instructions": {"retrieval.query": "Represent the query for retrieving evidence documents: "},
                "use_flash_attn": True,
                "hidden_size": WIDTH,
                "num_hidden_layers": TEXT_LAYERS,
                "num_attention_heads": WIDTH // HEAD_WIDTH,
                "intermediate_size": 4 * WIDTH,
                "vocab_size": vocab_size,
            },
        },
        "vision_config": {
            "embed_dim": WIDTH,
            "fused_layer_norm": False,
            "head_width": HEAD_WIDTH,
            "image_size": IMAGE_SIZE_PX,
            "intp_freq": True,
            "layers": VISION_LAYERS,
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
            "width": WIDTH,
            "x_attention": True,
        },
    }


def preprocessor_config() -> dict[str, Any]:
    """preprocessor_config.json: the official one but for the size."""
    return {
        "size": IMAGE_SIZE_PX,
        "resize_mode": "shortest",
        "interpolation": "bicubic",
        "fill_color": 0,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    }
