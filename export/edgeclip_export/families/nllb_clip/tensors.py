"""The official layout of an nllb-clip-siglip checkpoint: the name and shape of every tensor that open_clip saves."""

from edgeclip_export.families.nllb_clip.config import NllbClipConfig, TextConfig, VisionConfig
from edgeclip_export.towers.xlmr_layout import Shapes

TEXT, VISION, PROJECTION = "text.transformer.", "visual.trunk.", "text.proj.weight"
# How the names of buffers end that some versions of transformers save along.
BUFFERS = (".embed_positions.weights", ".embed_positions.weight", ".position_ids")


def tensor_shapes(config: NllbClipConfig) -> Shapes:
    """Name and shape of every tensor of a checkpoint with this configuration."""
    return {
        "logit_scale": (),
        "logit_bias": (),
        **_vision_shapes(config.vision),
        **_text_shapes(config.text),
    }


def _text_shapes(config: TextConfig) -> Shapes:
    width, mlp = config.width, config.mlp_width
    shapes: Shapes = {f"{TEXT}embed_tokens.weight": (config.vocab_size, width)}
    for layer in range(config.layers):
        block = f"{TEXT}layers.{layer}."
        for name in ("k", "v", "q", "out"):
            shapes |= _linear(f"{block}self_attn.{name}_proj", width, width)
        shapes |= _norm(f"{block}self_attn_layer_norm", width)
        shapes |= _linear(f"{block}fc1", mlp, width)
        shapes |= _linear(f"{block}fc2", width, mlp)
        shapes |= _norm(f"{block}final_layer_norm", width)
    return shapes | _norm(f"{TEXT}layer_norm", width) | {PROJECTION: (config.dim, width)}


def _vision_shapes(config: VisionConfig) -> Shapes:
    width, mlp, patch = config.width, config.mlp_width, config.patch_size
    shapes: Shapes = {
        f"{VISION}pos_embed": (1, config.patches, width),
        f"{VISION}patch_embed.proj.weight": (width, 3, patch, patch),
        f"{VISION}patch_embed.proj.bias": (width,),
    }
    for layer in range(config.layers):
        block = f"{VISION}blocks.{layer}."
        shapes |= _norm(f"{block}norm1", width)
        shapes |= _linear(f"{block}attn.qkv", 3 * width, width)
        shapes |= _linear(f"{block}attn.proj", width, width)
        shapes |= _norm(f"{block}norm2", width) | _mlp(f"{block}mlp", width, mlp)
    pool = f"{VISION}attn_pool."
    shapes |= _norm(f"{VISION}norm", width)
    shapes |= {f"{pool}latent": (1, 1, width)}
    shapes |= _linear(f"{pool}q", width, width) | _linear(f"{pool}kv", 2 * width, width)
    return (
        shapes | _linear(f"{pool}proj", width, width) | _norm(f"{pool}norm", width) | _mlp(f"{pool}mlp", width, mlp)
    )


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _mlp(name: str, width: int, mlp: int) -> Shapes:
    return _linear(f"{name}.fc1", mlp, width) | _linear(f"{name}.fc2", width, mlp)
