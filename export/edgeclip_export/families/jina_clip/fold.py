"""Official tensors in, tower weights out: everything that can be computed once is computed here.

Each fold leaves the tower's answer what it was, in exact arithmetic. The text tower's are those of
`edgeclip_export.towers.xlmr_fold`, with the adapter that is always on merged, in jina-clip-v1 those of
`edgeclip_export.towers.alibi_bert_fold`. The vision tower's:

- mean, std and 1/255 go into the patch embedding, in fp64.
- Heads that rotate neighbouring pairs (0,1)(2,3)... have their q and k rows reordered so that they
  rotate halves: scores do not change when q and k are reordered alike.
- 1/sqrt(D) goes into the query weights (for heads of 64 it is a power of two, so not a bit changes).
- q, k, v become one matrix, and so do SwiGLU's gate and up.

`read` gives one official tensor by name as fp32, whenever a weight is computed.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from edgeclip_export.families.jina_clip import vision_tower
from edgeclip_export.families.jina_clip.bert_text import BertTextConfig
from edgeclip_export.families.jina_clip.config import TextConfig, VisionConfig
from edgeclip_export.families.jina_clip.tensors import BERT_TEXT, TEXT, VISION
from edgeclip_export.towers.alibi_bert import AlibiBertTower
from edgeclip_export.towers.alibi_bert_fold import fold_alibi_bert
from edgeclip_export.towers.lora import official_adapter
from edgeclip_export.towers.weights import LazyWeight, Read, Weights, lazy_linear, lazy_norm
from edgeclip_export.towers.xlmr import XlmrTower
from edgeclip_export.towers.xlmr_fold import fold_xlmr
from edgeclip_export.towers.xlmr_layout import base_weight


def text_tower(config: TextConfig | BertTextConfig) -> XlmrTower | AlibiBertTower:
    """The text tower, without weights."""
    if isinstance(config, BertTextConfig):
        return AlibiBertTower(config, masked_id=config.pad_id)
    return XlmrTower(config, masked_id=config.pad_id)


def fold_text(config: TextConfig | BertTextConfig, read: Read) -> Weights:
    """The weights of the text tower, LoRA merged."""
    if isinstance(config, BertTextConfig):
        return fold_alibi_bert(config, BERT_TEXT, read)
    lora = config.lora
    adapter = official_adapter(read, lora, lora.adapter) if lora.adapters else None
    return fold_xlmr(config, TEXT, read, lambda name: read(base_weight(lora, name)), adapter)


def fold_vision(config: VisionConfig, mean: tuple[float, ...], std: tuple[float, ...], read: Read) -> Weights:
    """The weights of a `VisionTower` that takes raw pixels."""
    width, tokens = config.width, 1 + config.patches

    def patch() -> tuple[Tensor, Tensor]:
        weight, bias = _read_linear(f"{VISION}patch_embed.proj", read)
        return fold_normalisation(weight, bias, mean, std)

    def position() -> Tensor:
        found = read(f"{VISION}pos_embed")[0]
        found[0] += read(f"{VISION}cls_token")[0, 0]
        found[1:] += patch()[1]
        return found

    tables = cache(lambda: vision_tower.rotary_tables(config))  # once, as in `xlmr_fold`
    table_shape = (tokens, config.head_width // 2)
    weights: dict[str, LazyWeight] = {
        "patch": LazyWeight((3 * config.patch_size**2, width), lambda: patch()[0]),
        "position": LazyWeight((tokens, width), position),
        "cos": LazyWeight(table_shape, lambda: tables()[0].clone()),
        "sin": LazyWeight(table_shape, lambda: tables()[1].clone()),
        **lazy_norm("norm", width, f"{VISION}norm", read),
    }
    for layer in range(config.layers):
        is_last = layer == config.layers - 1
        block = "last_block." if is_last else f"blocks.{layer}."
        weights |= _fold_block(config, f"{VISION}blocks.{layer}.", block, read, is_last=is_last)
    return weights


def _fold_block(config: VisionConfig, source: str, block: str, read: Read, *, is_last: bool) -> Weights:
    width, mlp = config.width, config.mlp_width
    halves, scale = halves_order(config.heads, config.head_width), 1.0 / math.sqrt(config.head_width)

    def q() -> Tensor:
        return read(f"{source}attn.q_proj.weight")[halves] * scale

    def q_bias() -> Tensor:
        return read(f"{source}attn.q_bias")[halves] * scale

    def kv() -> Tensor:
        return torch.cat((read(f"{source}attn.k_proj.weight")[halves], read(f"{source}attn.v_proj.weight")))

    def kv_bias() -> Tensor:
        v_bias = read(f"{source}attn.v_bias")
        return torch.cat((torch.zeros_like(v_bias), v_bias))

    def qkv() -> Tensor:
        return torch.cat((q(), kv()))

    def qkv_bias() -> Tensor:
        return torch.cat((q_bias(), kv_bias()))

    def both(part: str) -> Callable[[], Tensor]:
        return lambda: torch.cat((read(f"{source}mlp.w1.{part}"), read(f"{source}mlp.w2.{part}")))

    def linear(name: str, inputs: int, outputs: int, origin: str) -> Weights:
        weight, bias = (lambda: read(f"{origin}.weight")), (lambda: read(f"{origin}.bias"))
        return lazy_linear(f"{block}{name}", inputs, outputs, weight, bias)

    weights: dict[str, LazyWeight] = {**lazy_norm(f"{block}norm1", width, f"{source}norm1", read)}
    if is_last:
        weights |= lazy_linear(f"{block}q", width, width, q, q_bias)
        weights |= lazy_linear(f"{block}kv", width, 2 * width, kv, kv_bias)
    else:
        weights |= lazy_linear(f"{block}qkv", width, 3 * width, qkv, qkv_bias)
    weights |= lazy_norm(f"{block}attention_out.norm", width, f"{source}attn.inner_attn_ln", read)
    weights |= linear("attention_out.out", width, width, f"{source}attn.proj")
    weights |= lazy_norm(f"{block}mlp.norm2", width, f"{source}norm2", read)
    weights |= lazy_linear(f"{block}mlp.gate_up", width, 2 * mlp, both("weight"), both("bias"))
    weights |= lazy_norm(f"{block}mlp.norm", mlp, f"{source}mlp.ffn_ln", read)
    weights |= linear("mlp.down", mlp, width, f"{source}mlp.w3")
    return weights


def fold_normalisation(
    weight: Tensor, bias: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """A patch convolution on (x / 255 - mean) / std as a matrix on x itself.

    (W, 3, p, p) and (W,) -> (p * p * 3, W) and (W,): rows in the order of a patch of an image that
    is stored height, width, channel.
    """
    wide, center, spread = weight.double(), torch.tensor(mean).double(), torch.tensor(std).double()
    shift = (wide.sum(dim=(2, 3)) * (center / spread)).sum(dim=1)  # (W,)
    scaled = wide / (255.0 * spread)[:, None, None]
    return scaled.permute(2, 3, 1, 0).flatten(0, 2).float().contiguous(), (bias.double() - shift).float()


def halves_order(heads: int, head_width: int) -> Tensor:
    """The order of rows that turns rotation by neighbouring pairs into rotation by halves."""
    pairs = torch.arange(heads * head_width).view(heads, head_width // 2, 2)
    return pairs.transpose(1, 2).flatten()


def _read_linear(name: str, read: Read) -> tuple[Tensor, Tensor]:
    return read(f"{name}.weight"), read(f"{name}.bias")
