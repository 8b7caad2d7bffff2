"""The configuration of the page model's checkpoint: jina-embeddings-v4's layout with small numbers.

It has all that is special about the official model: a decoder with grouped heads, M-RoPE and an adapter for each
task, a vision tower of windows and of whole images, Matryoshka dimensions, multi vectors. Only the numbers differ,
and the scale of the adapters, which is 1 officially: a mistake in it would not show.
"""

from edgeclip_bench.families.jina_embeddings_v4 import ADAPTERS, PREPROCESSOR, config_document, rope_scaling
from edgeclip_bench.families.layout import Config

WIDTH, VISION_WIDTH = 128, 96
HEAD_WIDTH = 32
TEXT_LAYERS = 3
VISION_LAYERS = 4
MULTI_DIM = 64
MATRYOSHKA_DIMS = (32, 64, 128)
ADAPTER_NAMES = ("retrieval", "text-matching")
RANK, ALPHA = 8, 16
TOKEN_PX = 28
# 31.8 image tokens: a larger image is resized to them, and its sides are rounded down to whole ones. So a page of
# 5 x 5, 4 x 6, 5 x 6 or 6 x 5 cells of any size gets a token for each cell.
MAX_PIXELS = 24_900


def checkpoint_config(pieces: int) -> Config:
    """The contents of config.json for a tokenizer of so many pieces, special tokens not counted."""
    text: Config = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": WIDTH // HEAD_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_key_value_heads": 2,
        "rope_scaling": rope_scaling((4, 6, 6)),
        "rope_theta": 20.0,  # an image is a few tokens wide: with the official million its columns would all be one
        "vocab_size": pieces + 14,
        "max_position_embeddings": 512,
    }
    vision: Config = {
        "depth": VISION_LAYERS,
        "fullatt_block_indexes": [1, 3],
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 2 * VISION_WIDTH,
        "num_heads": VISION_WIDTH // HEAD_WIDTH,
        "out_hidden_size": WIDTH,
    }
    return config_document(
        text=text,
        vision=vision,
        first_special=pieces,
        multi_dim=MULTI_DIM,
        dims=MATRYOSHKA_DIMS,
        adapters=ADAPTER_NAMES,
    )


def adapter_config() -> Config:
    """The contents of adapter_config.json."""
    return {**ADAPTERS, "r": RANK, "lora_alpha": ALPHA}


def preprocessor_config() -> Config:
    """The contents of preprocessor_config.json."""
    size = {**PREPROCESSOR["size"], "longest_edge": MAX_PIXELS}
    return {**PREPROCESSOR, "max_pixels": MAX_PIXELS, "size": size}
