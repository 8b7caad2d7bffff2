"""The configuration of the small model's checkpoint: jina-clip-v2's layout with small numbers.

It has all that is special about the official model: interpolated rotary positions, SwiGLU with sub-LayerNorms, an
adapter that is always on, Matryoshka dimensions, an image size that its patches do not fill. Only the numbers differ.
"""

from typing import Any

from edgeclip_export.families.jina_clip.documents import config_document, preprocessor_document

IMAGE_SIZE_PX = 116  # 8 patches of 14 pixels; the last 4 rows and columns are ignored, as the official 8 are
WIDTH = 128
HEAD_WIDTH = 32
TEXT_LAYERS = 3
VISION_LAYERS = 4
VOCAB_SIZE = 1600
MATRYOSHKA_DIMS = (16, 32, 64, 128)


def checkpoint_config(vocab_size: int = VOCAB_SIZE) -> dict[str, Any]:
    """The contents of config.json."""
    return config_document(
        width=WIDTH,
        text_layers=TEXT_LAYERS,
        vision_layers=VISION_LAYERS,
        head_width=HEAD_WIDTH,
        text_mlp=4 * WIDTH,
        vocab_size=vocab_size,
        image_size=IMAGE_SIZE_PX,
        matryoshka_dims=MATRYOSHKA_DIMS,
    )


def preprocessor_config() -> dict[str, Any]:
    """The contents of preprocessor_config.json."""
    return preprocessor_document(IMAGE_SIZE_PX)
