"""The official layout of a jina-embeddings-v4 checkpoint: every tensor's name and shape. Needs no torch.

826 tensors of the model at full size, and 1,518 of its adapters (`adapters`). There is no lm_head: embeddings need
no logits.
"""

from edgeclip_export.families.jina_embeddings_v4.config import JinaEmbeddingsV4Config
from edgeclip_export.towers.decoder_layout import Shapes, decoder_shapes
from edgeclip_export.towers.window_vision_layout import window_vision_shapes


def tensor_shapes(config: JinaEmbeddingsV4Config) -> Shapes:
    """Name and shape of every tensor of a checkpoint with this configuration, but for its adapters."""
    return {**decoder_shapes(config.decoder), **window_vision_shapes(config.vision)}
