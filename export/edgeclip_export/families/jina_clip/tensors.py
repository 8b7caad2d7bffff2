"""The official layout of a jina-clip-v2 checkpoint: every tensor's name and shape.

999 tensors at full size. Reading is strict against this table, so a checkpoint that lacks one, has
one more or one of another shape is refused by that name. Without adapters, as when they were merged, a weight that
has some in the official layout is called by its plain name.
"""

from edgeclip_export.families.jina_clip.config import JinaClipConfig, TextConfig, VisionConfig

Shapes = dict[str, tuple[int, ...]]

TEXT = "text_model.transformer.roberta."
VISION = "vision_model."
# In the names of a weight that has adapters, and of the adapters.
PARAMETRIZED = ".parametrizations.weight."
# How the names of buffers end that some versions of the reference and of transformers save along.
BUFFERS = (".rope.freqs_cos", ".rope.freqs_sin", ".inv_freq", ".position_ids", ".embeddings.token_type_ids")


def tensor_shapes(config: JinaClipConfig) -> Shapes:
    """Name and shape of every tensor of a checkpoint with this configuration."""
    return {"logit_scale": (), **text_shapes(config.text), **vision_shapes(config.vision)}


def text_shapes(config: TextConfig) -> Shapes:
    """The tensors of the text tower; adapters are among them if there are any."""
    width, mlp = config.width, config.mlp_width
    shapes = _table(config, TEXT + "embeddings.word_embeddings", config.vocab_size)
    shapes |= _table(config, TEXT + "embeddings.token_type_embeddings", 1)
    shapes |= _norm(TEXT + "emb_ln", width)
    for layer in range(config.layers):
        block = f"{TEXT}encoder.layers.{layer}."
        shapes |= _adapted_linear(config, block + "mixer.Wqkv", 3 * width, width)
        shapes |= _adapted_linear(config, block + "mixer.out_proj", width, width)
        shapes |= _norm(block + "norm1", width)
        shapes |= _adapted_linear(config, block + "mlp.fc1", mlp, width)
        shapes |= _adapted_linear(config, block + "mlp.fc2", width, mlp)
        shapes |= _norm(block + "norm2", width)
    return shapes


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


def _adapted_linear(config: TextConfig, name: str, rows: int, columns: int) -> Shapes:
    weight, lora = f"{name}{PARAMETRIZED}", config.lora
    if not lora.adapters:
        return _linear(name, rows, columns)
    return {
        f"{name}.bias": (rows,),
        f"{weight}original": (rows, columns),
        f"{weight}0.lora_A": (lora.adapters, lora.rank, columns),
        f"{weight}0.lora_B": (lora.adapters, rows, lora.rank),
    }


def _table(config: TextConfig, name: str, rows: int) -> Shapes:
    """An embedding table: its adapter's A has the rows and B the columns, unlike a linear's."""
    weight, lora = f"{name}{PARAMETRIZED}", config.lora
    if not lora.adapters:
        return {f"{name}.weight": (rows, config.width)}
    return {
        f"{weight}original": (rows, config.width),
        f"{weight}0.lora_A": (lora.adapters, rows, lora.rank),
        f"{weight}0.lora_B": (lora.adapters, lora.rank, config.width),
    }
