"""The official layout of a jina-clip checkpoint: every tensor's name and shape.

999 tensors at full size, 395 in jina-clip-v1. Reading is strict against this table, so a checkpoint that lacks one,
has one more or one of another shape is refused by that name. Without adapters, as when they were merged, a weight
that has some in the official layout is called by its plain name.
"""

from edgeclip_export.families.jina_clip.bert_text import BertTextConfig
from edgeclip_export.families.jina_clip.config import JinaClipConfig, TextConfig, VisionConfig
from edgeclip_export.towers.alibi_bert_layout import alibi_bert_shapes
from edgeclip_export.towers.xlmr_layout import Shapes, xlmr_shapes

TEXT = "text_model.transformer.roberta."
BERT_TEXT = "text_model.transformer."  # in jina-clip-v1
VISION = "vision_model."
# How the names of buffers end that some versions of the reference and of transformers save along.
BUFFERS = (".rope.freqs_cos", ".rope.freqs_sin", ".inv_freq", ".position_ids", ".embeddings.token_type_ids")


def tensor_shapes(config: JinaClipConfig) -> Shapes:
    """Name and shape of every tensor of a checkpoint with this configuration."""
    return {"logit_scale": (), **_text_shapes(config.text), **vision_shapes(config.vision)}


def text_prefix(config: TextConfig | BertTextConfig) -> str:
    """What stands before the names of the text tower's tensors."""
    return BERT_TEXT if isinstance(config, BertTextConfig) else TEXT


def _text_shapes(config: TextConfig | BertTextConfig) -> Shapes:
    if isinstance(config, BertTextConfig):
        return alibi_bert_shapes(config, BERT_TEXT)
    return xlmr_shapes(config, config.lora, TEXT)


def vision_shapes(config: VisionConfig) -> Shapes:
    """The tensors of the vision tower."""
    width, mlp, patch = config.width, config.mlp_width, config.patch_size
    shapes: Shapes = {
        VISION + "cls_token": (1, 1, width),
        VISION + "pos_embed": (1, 1 + config.patches, width),
        VISION + "patch_embed.proj.weight": (width, 3, patch, patch),
        VISION + "patch_embed.proj.bias": (width,),
    }
    for layer in range(config.layers):
        block = f"{VISION}blocks.{layer}."
        shapes |= _norm(block + "norm1", width)
        shapes |= {f"{block}attn.{name}_proj.weight": (width, width) for name in "qkv"}
        shapes |= {f"{block}attn.{name}_bias": (width,) for name in "qv"}
        shapes |= _norm(block + "attn.inner_attn_ln", width)
        shapes |= _linear(block + "attn.proj", width, width)
        shapes |= _norm(block + "norm2", width)
        shapes |= _linear(block + "mlp.w1", mlp, width)
        shapes |= _linear(block + "mlp.w2", mlp, width)
        shapes |= _norm(block + "mlp.ffn_ln", mlp)
        shapes |= _linear(block + "mlp.w3", width, mlp)
    return shapes | _norm(VISION + "norm", width)


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
