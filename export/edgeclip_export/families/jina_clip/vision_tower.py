"""The vision tower: uint8 pixels in, one unit vector out.

EVA-02 (Fang et al. 2023, arXiv:2303.11331): pre-norm blocks with a second LayerNorm inside both
halves, SwiGLU, and rotary positions over rows and columns. Its weights are folded already when they
get here (see `fold`): mean, std and 1/255 inside the patch embedding, q, k and v one matrix, both
inputs of SwiGLU one matrix, q and k reordered so that a head rotates by halves instead of by
neighbouring pairs, the attention scale inside the query weights.

Only the CLS token leaves the tower, so its last block computes queries, projection and MLP for that
one token and keys and values for all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeclip_export.families.jina_clip.config import VisionConfig
from edgeclip_export.operators import attention, rotary_embedding
from edgeclip_export.towers.layers import Linear, l2_normalize
from edgeclip_export.towers.tower import Tower


class VisionTower(Tower[Tensor]):
    """(B, S, S, 3) uint8 pixels -> (B, D) unit rows. B batch, S pixels, P patches, W width, D = W."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        tokens = 1 + config.patches
        self.patch = nn.Parameter(torch.empty(3 * config.patch_size**2, config.width))
        self.position = nn.Parameter(torch.empty(tokens, config.width))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers - 1))
        self.last_block = LastVisionBlock(config)
        self.norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.register_buffer("cos", torch.empty(tokens, config.head_width // 2))
        self.register_buffer("sin", torch.empty(tokens, config.head_width // 2))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised embeddings (B, D)."""
        return self.end(self.through(pixel_values))

    def layers(self) -> Sequence[nn.Module]:
        """The blocks; the last one gives the CLS token alone."""
        return [*self.blocks, self.last_block]

    def step(self, layer: nn.Module, state: Tensor) -> Tensor:
        """One block."""
        h: Tensor = layer(state, self.cos, self.sin)
        return h

    def end(self, state: Tensor) -> Tensor:
        """Normalised embeddings (B, D)."""
        return l2_normalize(self.pool(state))

    def features(self, pixel_values: Tensor) -> Tensor:
        """The un-normalised features (B, D) of pixels (B, S, S, 3) between 0 and 255, of any dtype."""
        return self.pool(self.through(pixel_values))

    def pool(self, state: Tensor) -> Tensor:
        """The CLS token (B, D)."""
        pooled: Tensor = self.norm(state).squeeze(1)
        return pooled

    def begin(self, *inputs: Tensor) -> Tensor:
        """Tokens (B, 1+P, W). The CLS token is an empty patch: its vector is the position's own."""
        (pixel_values,) = inputs
        grid, patch = self.config.grid, self.config.patch_size
        x = pixel_values.to(self.patch.dtype)[:, : grid * patch, : grid * patch]
        x = x.unflatten(2, (grid, patch)).unflatten(1, (grid, patch))  # (B, row, y, column, x, 3)
        x = x.transpose(2, 3).flatten(3).flatten(1, 2)  # (B, P, patch * patch * 3)
        x = nn.functional.pad(x, (0, 0, 1, 0))  # (B, 1+P, ...)
        return torch.matmul(x, self.patch) + self.position


class VisionBlock(nn.Module):
    """x += proj(LN(attention(LN x))); x += w3(LN(silu(a) * b)), a and b from LN x."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.qkv = Linear(config.width, 3 * config.width)
        self.attention_out = AttentionOut(config)
        self.mlp = SwiGlu(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)  # (B, T, W) each
        q = rotary_embedding(q, cos, sin, self.heads)
        k = rotary_embedding(k, cos, sin, self.heads)
        x = x + self.attention_out(attention(q, k, v, self.heads))
        return x + self.mlp(x)


class LastVisionBlock(nn.Module):
    """The same block for its CLS row alone. CLS is not rotated, so its query needs no table."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.q = Linear(config.width, config.width)
        self.kv = Linear(config.width, 2 * config.width)
        self.attention_out = AttentionOut(config)
        self.mlp = SwiGlu(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, W) -> (B, 1, W)."""
        h = self.norm1(x)
        k, v = self.kv(h).chunk(2, dim=-1)  # (B, T, W) each
        k = rotary_embedding(k, cos, sin, self.heads)
        x = x[:, :1] + self.attention_out(attention(self.q(h[:, :1]), k, v, self.heads))
        return x + self.mlp(x)


class AttentionOut(nn.Module):
    """The sub-LayerNorm over all heads together, then the output projection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        return self.out(self.norm(x))


class SwiGlu(nn.Module):
    """w3(LN(silu(gate) * up)), gate and up from one GEMM (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.gate_up = Linear(config.width, 2 * config.mlp_width)
        self.norm = nn.LayerNorm(config.mlp_width, config.layer_norm_eps)
        self.down = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)  # (B, T, M) each
        return self.down(self.norm(nn.functional.silu(gate) * up))


def rotary_tables(config: VisionConfig) -> tuple[Tensor, Tensor]:
    """cos and sin (1 + P, head_width / 2): the first row turns nothing, then the patches row by row.

    The first half of a head's angles belongs to the row, the second to the column. With
    interpolation the grid is stretched over the `rope_grid` positions the tower was trained with.
    """
    half = config.head_width // 2
    frequencies = 1.0 / (config.rotary_base ** (torch.arange(0, half, 2, dtype=torch.float32) / half))
    position = torch.arange(config.grid, dtype=torch.float32)
    if config.rope_interpolates:
        position = position / config.grid * config.rope_grid
    angles = torch.outer(position, frequencies)  # (grid, half / 2)
    rows = angles[:, None].expand(-1, config.grid, -1)
    columns = angles[None].expand(config.grid, -1, -1)
    table = torch.cat((rows, columns), dim=-1).flatten(0, 1)  # (P, half)
    table = torch.cat((torch.zeros(1, half), table))
    return table.cos(), table.sin()
