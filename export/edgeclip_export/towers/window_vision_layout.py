"""The window-attention vision tower in a checkpoint's official layout: the name and shape of every tensor.

Needs no torch. The names are those of Qwen2.5-VL: `visual.blocks.N.attn.qkv.weight`.
"""

import dataclasses

from edgeclip.errors import BuildError

Shapes = dict[str, tuple[int, ...]]

VISUAL = "visual."
CHANNELS = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowVisionConfig:
    """The numbers that the tower is built from.

    `merge` x `merge` patches become one image feature of `out_width`. `full_blocks` are the blocks whose attention
    sees the whole image; the others see windows of `window_px` a side.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch_px: int
    frames: int
    merge: int
    window_px: int
    full_blocks: tuple[int, ...]
    out_width: int
    norm_eps: float
    rotary_base: float

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_width % 4:
            raise BuildError(
                f"config.json: vision_config hidden_size {self.width} does not split into {self.heads} heads that "
                "turn by rows and columns"
            )
        if self.window_px % (self.patch_px * self.merge):
            raise BuildError(
                f"config.json: vision_config window_size {self.window_px} is no multiple of {self.merge} patches of "
                f"{self.patch_px}"
            )
        if not all(0 <= block < self.layers for block in self.full_blocks):
            raise BuildError(
                f"config.json: vision_config fullatt_block_indexes {list(self.full_blocks)} are not all among its "
                f"{self.layers} blocks"
            )

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads

    @property
    def patch_values(self) -> int:
        """The numbers of one patch: its pixels in three channels."""
        return CHANNELS * self.patch_px**2

    @property
    def window_patches(self) -> int:
        """The patches of a whole window."""
        return (self.window_px // self.patch_px) ** 2


def window_vision_shapes(config: WindowVisionConfig) -> Shapes:
    """Name and shape of every tensor of the tower."""
    width, mlp, merged = config.width, config.mlp_width, config.width * config.merge**2
    patch = (width, CHANNELS, config.frames, config.patch_px, config.patch_px)
    shapes: Shapes = {f"{VISUAL}patch_embed.proj.weight": patch}
    for layer in range(config.layers):
        block = f"{VISUAL}blocks.{layer}."
        shapes |= {f"{block}norm1.weight": (width,), f"{block}norm2.weight": (width,)}
        shapes |= _linear(f"{block}attn.qkv", 3 * width, width)
        shapes |= _linear(f"{block}attn.proj", width, width)
        shapes |= _linear(f"{block}mlp.gate_proj", mlp, width)
        shapes |= _linear(f"{block}mlp.up_proj", mlp, width)
        shapes |= _linear(f"{block}mlp.down_proj", width, mlp)
    shapes[f"{VISUAL}merger.ln_q.weight"] = (width,)
    shapes |= _linear(f"{VISUAL}merger.mlp.0", merged, merged)
    return shapes | _linear(f"{VISUAL}merger.mlp.2", config.out_width, merged)


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
