"""The vision tower of nllb-clip: SigLIP's, with attention pooling; uint8 pixels in, one unit vector out.

Pre-norm blocks with exact GELU, learned positions and no class token (Zhai et al. 2023, arXiv:2303.15343); a learned
query attends to all tokens (Lee et al. 2018, arXiv:1810.00825). Its weights are folded already when they get here
(`edgeclip_export.families.nllb_clip.fold`): mean, std and 1/255 inside the patch embedding, its bias inside the
positions, the attention scale inside the query weights, and the learned query through its projection.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeclip_export.families.nllb_clip.config import VisionConfig
from edgeclip_export.operators import attention
from edgeclip_export.towers.layers import Linear, l2_normalize
from edgeclip_export.towers.tower import Tower


class SiglipTower(Tower[Tensor]):
    """(B, S, S, 3) uint8 pixels -> (B, W) unit rows. B batch, S pixels, P patches, W width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Parameter(torch.empty(3 * config.patch_size**2, config.width))
        self.position = nn.Parameter(torch.empty(config.patches, config.width))
        self.blocks = nn.ModuleList(SiglipBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.pool = AttentionPool(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised embeddings (B, W)."""
        return self.end(self.through(pixel_values))

    def layers(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def begin(self, *inputs: Tensor) -> Tensor:
        """Tokens (B, P, W)."""
        (pixel_values,) = inputs
        grid, patch = self.config.grid, self.config.patch_size
        x = pixel_values.to(self.patch.dtype)[:, : grid * patch, : grid * patch]
        x = x.unflatten(2, (grid, patch)).unflatten(1, (grid, patch))  # (B, row, y, column, x, 3)
        x = x.transpose(2, 3).flatten(3).flatten(1, 2)  # (B, P, patch * patch * 3)
        return torch.matmul(x, self.patch) + self.position

    def step(self, layer: nn.Module, state: Tensor) -> Tensor:
        """One block."""
        x: Tensor = layer(state)
        return x

    def end(self, state: Tensor) -> Tensor:
        """Normalised embeddings (B, W)."""
        return l2_normalize(self.pool(self.norm(state)))


class SiglipBlock(nn.Module):
    """x += out(attention(LN x)); x += mlp(LN x)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.mlp = GeluMlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, W) -> (B, P, W)."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)  # (B, P, W) each
        x = x + self.out(attention(q, k, v, self.heads))
        return x + self.mlp(x)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens: o = out(attention), then o + mlp(LN o)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.empty(1, 1, config.width))
        self.kv = Linear(config.width, 2 * config.width)
        self.out = Linear(config.width, config.width)
        self.mlp = GeluMlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, W) -> (B, W)."""
        k, v = self.kv(x).chunk(2, dim=-1)  # (B, P, W) each
        query = self.query + 0.0 * x[:, :1]  # one for each image; an Expand would ask the uint8 input for its shape
        pooled = self.out(attention(query, k, v, self.heads).squeeze(1))  # (B, W)
        return pooled + self.mlp(pooled)


class GeluMlp(nn.Module):
    """fc2(gelu(fc1(LN x))), with the exact GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        y: Tensor = self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return y
