"""What becomes of the vision tower's official tensors: everything that can be computed once is computed here.

Each fold leaves the tower's answer what it was, in exact arithmetic:

- The two frames of an image are the same picture, so the weights of a patch are those of both frames added.
- mean, std and 1/255 go into the patch embedding, in fp64; what is subtracted becomes its bias.
- 1/sqrt(D) goes into the query weights and their bias.
- gate and up become one matrix.
"""

import math
from functools import cache

import torch
from torch import Tensor

from edgeclip_export.towers.weights import LazyWeight, Read, Weights
from edgeclip_export.towers.window_vision_layout import VISUAL, WindowVisionConfig

Triple = tuple[float, float, float]


def fold_window_vision(config: WindowVisionConfig, mean: Triple, std: Triple, read: Read) -> Weights:
    """The weights of a `WindowVisionTower` that takes raw pixels. `read` gives a tensor by its official name."""
    width, merged = config.width, config.width * config.merge**2

    def patch() -> tuple[Tensor, Tensor]:
        return fold_patch(read(f"{VISUAL}patch_embed.proj.weight"), mean, std)

    turns = cache(lambda: frequencies(config))  # once, as in `xlmr_fold`
    weights: dict[str, LazyWeight] = {
        "patch.weight": LazyWeight((config.patch_values, width), lambda: patch()[0]),
        "patch.bias": LazyWeight((width,), lambda: patch()[1]),
        "frequencies": LazyWeight((config.head_width // 4,), lambda: turns().clone()),
        "norm.weight": LazyWeight((width,), lambda: read(f"{VISUAL}merger.ln_q.weight")),
        **_linear("fc1", merged, merged, f"{VISUAL}merger.mlp.0", read),
        **_linear("fc2", merged, config.out_width, f"{VISUAL}merger.mlp.2", read),
    }
    for layer in range(config.layers):
        weights |= _fold_block(config, f"{VISUAL}blocks.{layer}.", f"blocks.{layer}.", read)
    return weights


def _fold_block(config: WindowVisionConfig, source: str, block: str, read: Read) -> Weights:
    width, mlp = config.width, config.mlp_width

    def qkv(part: str) -> Tensor:
        found = read(f"{source}attn.qkv.{part}")
        found[:width] *= 1.0 / math.sqrt(config.head_width)
        return found

    def gate_up(part: str) -> Tensor:
        return torch.cat([read(f"{source}mlp.{name}_proj.{part}") for name in ("gate", "up")])

    return {
        f"{block}norm1.weight": LazyWeight((width,), lambda: read(f"{source}norm1.weight")),
        f"{block}norm2.weight": LazyWeight((width,), lambda: read(f"{source}norm2.weight")),
        f"{block}qkv.weight": LazyWeight((width, 3 * width), lambda: qkv("weight").T),
        f"{block}qkv.bias": LazyWeight((3 * width,), lambda: qkv("bias")),
        f"{block}gate_up.weight": LazyWeight((width, 2 * mlp), lambda: gate_up("weight").T),
        f"{block}gate_up.bias": LazyWeight((2 * mlp,), lambda: gate_up("bias")),
        **_linear(f"{block}out", width, width, f"{source}attn.proj", read),
        **_linear(f"{block}down", mlp, width, f"{source}mlp.down_proj", read),
    }


def fold_patch(weight: Tensor, mean: Triple, std: Triple) -> tuple[Tensor, Tensor]:
    """A patch convolution on several frames of (x / 255 - mean) / std as a matrix and a bias on one frame of x.

    (W, 3, frames, p, p) -> (3 * p * p, W) and (W,): rows in the order channel, y, x.
    """
    wide = weight.double().sum(dim=2)  # (W, 3, p, p)
    center, spread = torch.tensor(mean).double(), torch.tensor(std).double()
    shift = (wide.sum(dim=(2, 3)) * (center / spread)).sum(dim=1)  # (W,)
    scaled = wide / (255.0 * spread)[:, None, None]
    return scaled.flatten(1).T.float().contiguous(), -shift.float()


def frequencies(config: WindowVisionConfig) -> Tensor:
    """base^(-2i/(D/2)) for i in [0, D/4), in fp32: the same for rows and for columns."""
    half = config.head_width // 2
    return 1.0 / (config.rotary_base ** (torch.arange(0, half, 2, dtype=torch.float32) / half))


def _linear(name: str, inputs: int, outputs: int, source: str, read: Read) -> Weights:
    return {
        f"{name}.weight": LazyWeight((inputs, outputs), lambda: read(f"{source}.weight").T),
        f"{name}.bias": LazyWeight((outputs,), lambda: read(f"{source}.bias")),
    }
