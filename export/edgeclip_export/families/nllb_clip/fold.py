"""Official tensors in, tower weights out: everything that can be computed once is computed here.

Each fold leaves the tower's answer what it was, in exact arithmetic:

- sqrt(W), by which the embedding is scaled, goes into the token table (for 1024 it is a power of two).
- 1/sqrt(D) goes into the query weights, and q, k, v become one matrix.
- mean, std and 1/255 go into the patch embedding, in fp64, and its bias into the positions.
- The attention pool's query is the same for every image, so its projection is computed here.

`read` gives one official tensor by name as fp32, whenever a weight is computed.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgeclip_export.families.jina_clip.fold import fold_normalisation
from edgeclip_export.families.nllb_clip.config import TextConfig, VisionConfig
from edgeclip_export.families.nllb_clip.tensors import PROJECTION, TEXT, VISION
from edgeclip_export.families.nllb_clip.text_tower import sinusoids
from edgeclip_export.towers.weights import LazyWeight, Read, Weights, lazy_linear, lazy_norm


def fold_text(config: TextConfig, read: Read) -> Weights:
    """The weights of an `M2mTower`."""
    width = config.width
    weights: dict[str, LazyWeight] = {
        "tokens": LazyWeight(
            (config.vocab_size, width), lambda: read(f"{TEXT}embed_tokens.weight").mul_(math.sqrt(width))
        ),
        "positions": LazyWeight((config.max_tokens, width, 1), lambda: sinusoids(config)[..., None]),
        **lazy_norm("norm", width, f"{TEXT}layer_norm", read),
        # The checkpoint has no bias here; with zeros it is a layer of rows as all others.
        **lazy_linear("project", width, config.dim, lambda: read(PROJECTION), lambda: torch.zeros(config.dim)),
    }
    for layer in range(config.layers):
        is_last = layer == config.layers - 1
        block = "last_block." if is_last else f"blocks.{layer}."
        weights |= _fold_text_block(config, f"{TEXT}layers.{layer}.", block, read, is_last=is_last)
    return weights


def _fold_text_block(config: TextConfig, source: str, block: str, read: Read, *, is_last: bool) -> Weights:
    width, scale = config.width, 1.0 / math.sqrt(config.head_width)

    def together(names: str, part: str) -> Callable[[], Tensor]:
        """Some of q, k and v as one tensor, the attention scale on q."""

        def join() -> Tensor:
            parts = [read(f"{source}self_attn.{name}_proj.{part}") for name in names]
            return torch.cat([one * scale if name == "q" else one for name, one in zip(names, parts, strict=True)])

        return join

    weights: dict[str, LazyWeight] = {**lazy_norm(f"{block}norm1", width, f"{source}self_attn_layer_norm", read)}
    for names in ("q", "kv") if is_last else ("qkv",):
        outputs = len(names) * width
        weights |= lazy_linear(f"{block}{names}", width, outputs, together(names, "weight"), together(names, "bias"))
    weights |= _linear(f"{block}out", width, width, f"{source}self_attn.out_proj", read)
    weights |= _mlp(f"{block}mlp", (width, config.mlp_width), f"{source}final_layer_norm", source, read)
    return weights


def fold_vision(config: VisionConfig, mean: tuple[float, ...], std: tuple[float, ...], read: Read) -> Weights:
    """The weights of a `SiglipTower` that takes raw pixels."""
    width, sizes = config.width, (config.width, config.mlp_width)
    pool, scale = f"{VISION}attn_pool.", 1.0 / math.sqrt(config.head_width)

    def patch() -> tuple[Tensor, Tensor]:
        convolution = f"{VISION}patch_embed.proj."
        return fold_normalisation(read(f"{convolution}weight"), read(f"{convolution}bias"), mean, std)

    def query() -> Tensor:
        projected = read(f"{pool}q.weight").double() @ read(f"{pool}latent").flatten().double()
        return ((projected + read(f"{pool}q.bias").double()) * scale).float().view(1, 1, width)

    weights: dict[str, LazyWeight] = {
        "patch": LazyWeight((3 * config.patch_size**2, width), lambda: patch()[0]),
        "position": LazyWeight((config.patches, width), lambda: read(f"{VISION}pos_embed")[0] + patch()[1]),
        **lazy_norm("norm", width, f"{VISION}norm", read),
        "pool.query": LazyWeight((1, 1, width), query),
        **_linear("pool.kv", width, 2 * width, f"{pool}kv", read),
        **_linear("pool.out", width, width, f"{pool}proj", read),
        **_mlp("pool.mlp", sizes, f"{pool}norm", f"{pool}mlp.", read),
    }
    for layer in range(config.layers):
        source, block = f"{VISION}blocks.{layer}.", f"blocks.{layer}."
        weights |= lazy_norm(f"{block}norm1", width, f"{source}norm1", read)
        weights |= lazy_linear(
            f"{block}qkv",
            width,
            3 * width,
            _scaled(f"{source}attn.qkv.weight", width, scale, read),
            _scaled(f"{source}attn.qkv.bias", width, scale, read),
        )
        weights |= _linear(f"{block}out", width, width, f"{source}attn.proj", read)
        weights |= _mlp(f"{block}mlp", sizes, f"{source}norm2", f"{source}mlp.", read)
    return weights


def _scaled(name: str, rows: int, scale: float, read: Read) -> Callable[[], Tensor]:
    """A tensor whose first rows, those of q, are scaled."""

    def scaled() -> Tensor:
        found = read(name)
        found[:rows] *= scale
        return found

    return scaled


def _linear(name: str, inputs: int, outputs: int, source: str, read: Read) -> Weights:
    return lazy_linear(name, inputs, outputs, lambda: read(f"{source}.weight"), lambda: read(f"{source}.bias"))


def _mlp(name: str, sizes: Sequence[int], norm: str, source: str, read: Read) -> Weights:
    """LayerNorm and both layers of an MLP of these widths, outer and inner."""
    width, inner = sizes
    return {
        **lazy_norm(f"{name}.norm2", width, norm, read),
        **_linear(f"{name}.fc1", width, inner, f"{source}fc1", read),
        **_linear(f"{name}.fc2", inner, width, f"{source}fc2", read),
    }
