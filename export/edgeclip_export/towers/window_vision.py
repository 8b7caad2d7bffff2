"""The vision tower of Qwen2.5-VL (arXiv:2502.13923): the patches of images of any size to image features.

Pre-norm blocks with RMSNorm, SwiGLU, and rotary positions over rows and columns. In most blocks a patch sees its
window, in a few the whole image. Windows are a batch: their patches are gathered as rows of one length, so that no
mask of patches x patches is made. Four neighbouring patches become one feature at the end.

Patches come as the runtime makes them: in the order of the features, the four of each together; so nothing is put
back into order. Which patch is in which window comes with them. Weights are folded already when they get here
(`edgeclip_export.towers.window_vision_fold`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgeclip_export.operators import attention, rotary_embedding
from edgeclip_export.towers.layers import Linear, RmsNorm, at_least_zero
from edgeclip_export.towers.tower import Tower
from edgeclip_export.towers.window_vision_layout import WindowVisionConfig


class Windows(NamedTuple):
    """The patches of each window as rows of one length, and the way back."""

    gather: Tensor  # (V*L,) patches, 0 where a window is not full
    mask: Tensor  # (V, L), True at the patches of a window
    places: Tensor  # (P,) the place of each patch among the V*L


class VisionState(NamedTuple):
    """What passes from block to block."""

    h: Tensor  # (B, P, W)
    cos: Tensor  # (P, D/2)
    sin: Tensor  # (P, D/2)
    windows: Windows


class WindowVisionTower(Tower[VisionState]):
    """Patches (B, P, 3*p*p) uint8, positions (P, 2), windows (V, L), places (P,) -> image features (B, M, W').

    `windows` names the patches of each of V windows, -1 after the last one; `places` says for each patch where it
    stands in the flattened windows. All images of a batch have the same grid of patches. B batch, P patches, M = P /
    merge^2 features, W width, D head width.
    """

    frequencies: Tensor

    def __init__(self, config: WindowVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = Linear(config.patch_values, config.width)
        self.blocks = nn.ModuleList(
            WindowVisionBlock(config, is_full=layer in config.full_blocks) for layer in range(config.layers)
        )
        self.norm = RmsNorm(config.width, config.norm_eps)
        merged = config.width * config.merge**2
        self.fc1 = Linear(merged, merged)
        self.fc2 = Linear(merged, config.out_width)
        self.register_buffer("frequencies", torch.empty(config.head_width // 4))

    def forward(
        self, pixel_values: Tensor, patch_positions: Tensor, windows: Tensor, window_places: Tensor
    ) -> Tensor:
        """The image features (B, M, W')."""
        return self.end(self.through(pixel_values, patch_positions, windows, window_places))

    def layers(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def begin(self, *inputs: Tensor) -> VisionState:
        """The rows of the patches, the tables of their rotations, and the windows."""
        pixels, positions, windows, places = inputs
        h = self.patch(pixels.to(torch.float32))  # (B, P, W)
        turned = positions.to(torch.float32)  # (P, 2)
        angles = torch.cat([turned[:, axis, None] * self.frequencies for axis in range(2)], dim=1)  # (P, D/2)
        gather = at_least_zero(windows).flatten()
        return VisionState(h, angles.cos(), angles.sin(), Windows(gather, windows >= 0, places))

    def step(self, layer: nn.Module, state: VisionState) -> VisionState:
        """One block."""
        h: Tensor = layer(state.h, state.cos, state.sin, state.windows)
        return state._replace(h=h)

    def end(self, state: VisionState) -> Tensor:
        """The image features: the four patches of each side by side, through two linear layers."""
        x = self.norm(state.h)
        group = self.config.merge**2
        features = x.shape[1] // group
        x = x[:, : features * group].unflatten(1, (features, group)).flatten(2)  # (B, M, merge^2 * W)
        y: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return y


class WindowVisionBlock(nn.Module):
    """x += proj(attention(norm x)); x += down(silu(gate) * up), gate and up from norm x."""

    def __init__(self, config: WindowVisionConfig, *, is_full: bool) -> None:
        super().__init__()
        self.heads, self.is_full = config.heads, is_full
        self.norm1 = RmsNorm(config.width, config.norm_eps)
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.norm2 = RmsNorm(config.width, config.norm_eps)
        self.gate_up = Linear(config.width, 2 * config.mlp_width)
        self.down = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, windows: Windows) -> Tensor:
        """(B, P, W) -> (B, P, W)."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)  # (B, P, W) each
        q = rotary_embedding(q, cos, sin, self.heads)
        k = rotary_embedding(k, cos, sin, self.heads)
        attended = attention(q, k, v, self.heads) if self.is_full else self.in_windows(q, k, v, windows)
        x = x + self.out(attended)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)  # (B, P, F) each
        return x + self.down(nn.functional.silu(gate) * up)

    def in_windows(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
        """Attention inside each window, (B, P, W) each -> (B, P, W)."""
        count, length = windows.mask.shape
        batch = q.shape[0]

        def divide(x: Tensor) -> Tensor:
            return x.index_select(1, windows.gather).unflatten(1, (count, length)).flatten(0, 1)  # (B*V, L, W)

        mask = windows.mask.expand(batch, -1, -1).flatten(0, 1)  # (B*V, L)
        attended = attention(divide(q), divide(k), divide(v), self.heads, mask)
        return attended.unflatten(0, (batch, count)).flatten(1, 2).index_select(1, windows.places)
