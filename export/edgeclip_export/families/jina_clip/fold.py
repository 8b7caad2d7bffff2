"""Official tensors in, tower weights out: everything that can be computed once is computed here.

Each fold leaves the tower's answer what it was, in exact arithmetic:

- LoRA: W + alpha/rank * B A, in fp32 (merging in half precision costs 5e-3 and more).
- The one token-type row is added into the token table; the reference adds the same two numbers.
- 1/sqrt(D) goes into the query weights (for heads of 64 it is a power of two, so not a bit changes).
- mean, std and 1/255 go into the patch embedding, in fp64.
- Heads that rotate neighbouring pairs (0,1)(2,3)... have their q and k rows reordered so that they
  rotate halves: scores do not change when q and k are reordered alike.
- q, k, v become one matrix, and so do SwiGLU's gate and up.

`read` gives one official tensor by name as fp32, so no more than one is in memory twice.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edgeclip_export.families.jina_clip import text_tower, vision_tower
from edgeclip_export.families.jina_clip.config import LoraConfig, TextConfig, VisionConfig
from edgeclip_export.families.jina_clip.tensors import PARAMETRIZED, TEXT, VISION

Read = Callable[[str], Tensor]
Weights = dict[str, Tensor]

_ROWS_AT_ONCE = 16384  # of the token table: A B of the whole would be another gigabyte


def fold_text(config: TextConfig, read: Read) -> Weights:
    """The state dict of a `TextTower`, LoRA merged."""

    def linear(name: str) -> tuple[Tensor, Tensor]:
        return merge_linear(config.lora, name, read), read(f"{name}.bias")

    table = merge_table(config.lora, TEXT + "embeddings.word_embeddings", read)
    table += merge_table(config.lora, TEXT + "embeddings.token_type_embeddings", read)
    cos, sin = text_tower.rotary_tables(config)
    weights: Weights = {"tokens": table, "cos": cos, "sin": sin, **_norm("norm", TEXT + "emb_ln", read)}
    for layer in range(config.layers):
        source, block = f"{TEXT}encoder.layers.{layer}.", f"blocks.{layer}."
        weight, bias = linear(source + "mixer.Wqkv")
        for part in (weight, bias):
            part[: config.width] *= 1.0 / math.sqrt(config.head_width)
        weights |= _linear(block + "qkv", weight, bias)
        weights |= _linear(block + "out", *linear(source + "mixer.out_proj"))
        weights |= _norm(block + "norm1", source + "norm1", read)
        weights |= _linear(block + "fc1", *linear(source + "mlp.fc1"))
        weights |= _linear(block + "fc2", *linear(source + "mlp.fc2"))
        weights |= _norm(block + "norm2", source + "norm2", read)
    return weights


def fold_vision(config: VisionConfig, mean: tuple[float, ...], std: tuple[float, ...], read: Read) -> Weights:
    """The state dict of a `VisionTower` that takes raw pixels."""
    patch, bias = fold_normalisation(
        read(VISION + "patch_embed.proj.weight"), read(VISION + "patch_embed.proj.bias"), mean, std
    )
    position = read(VISION + "pos_embed")[0]
    position[0] += read(VISION + "cls_token")[0, 0]
    position[1:] += bias
    cos, sin = vision_tower.rotary_tables(config)
    weights: Weights = {
        "patch": patch,
        "position": position,
        "cos": cos,
        "sin": sin,
        **_norm("norm", VISION + "norm", read),
    }
    halves = halves_order(config.heads, config.head_width)
    scale = 1.0 / math.sqrt(config.head_width)
    for layer in range(config.layers):
        is_last = layer == config.layers - 1
        source, block = f"{VISION}blocks.{layer}.", "last_block." if is_last else f"blocks.{layer}."
        q, k, v = (read(f"{source}attn.{name}_proj.weight") for name in "qkv")
        q_bias, v_bias = (read(f"{source}attn.{name}_bias") for name in "qv")
        q, q_bias, k = q[halves] * scale, q_bias[halves] * scale, k[halves]
        k_bias = torch.zeros_like(v_bias)
        weights |= _norm(block + "norm1", source + "norm1", read)
        if is_last:
            weights |= _linear(block + "q", q, q_bias)
            weights |= _linear(block + "kv", torch.cat((k, v)), torch.cat((k_bias, v_bias)))
        else:
            weights |= _linear(block + "qkv", torch.cat((q, k, v)), torch.cat((q_bias, k_bias, v_bias)))
        weights |= _norm(block + "attention_out.norm", source + "attn.inner_attn_ln", read)
        weights |= _linear(block + "attention_out.out", *_read_linear(source + "attn.proj", read))
        weights |= _norm(block + "mlp.norm2", source + "norm2", read)
        gate, up = (_read_linear(f"{source}mlp.{name}", read) for name in ("w1", "w2"))
        weights |= _linear(block + "mlp.gate_up", *(torch.cat(pair) for pair in zip(gate, up, strict=True)))
        weights |= _norm(block + "mlp.norm", source + "mlp.ffn_ln", read)
        weights |= _linear(block + "mlp.down", *_read_linear(source + "mlp.w3", read))
    return weights


def merge_linear(lora: LoraConfig, name: str, read: Read) -> Tensor:
    """A linear's weight (out, in) with the adapter that is always on, if there is one: W + scale * (B A)."""
    if not lora.adapters:
        return read(f"{name}.weight")
    weight, adapter = f"{name}{PARAMETRIZED}", lora.adapter
    a, b = read(f"{weight}0.lora_A")[adapter], read(f"{weight}0.lora_B")[adapter]
    return read(f"{weight}original").add_(lora.scale * (b @ a))


def merge_table(lora: LoraConfig, name: str, read: Read) -> Tensor:
    """An embedding table (rows, width) with the adapter that is always on, if there is one: W + scale * (A B)."""
    if not lora.adapters:
        return read(f"{name}.weight")
    weight, adapter = f"{name}{PARAMETRIZED}", lora.adapter
    a, b = read(f"{weight}0.lora_A")[adapter], read(f"{weight}0.lora_B")[adapter]
    table = read(f"{weight}original")
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        table[rows] += lora.scale * (a[rows] @ b)
    return table


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


def _linear(name: str, weight: Tensor, bias: Tensor) -> Mapping[str, Tensor]:
    return {f"{name}.weight": weight.T.contiguous(), f"{name}.bias": bias}


def _read_linear(name: str, read: Read) -> tuple[Tensor, Tensor]:
    return read(f"{name}.weight"), read(f"{name}.bias")


def _norm(name: str, source: str, read: Read) -> Mapping[str, Tensor]:
    return {f"{name}.weight": read(f"{source}.weight"), f"{name}.bias": read(f"{source}.bias")}
