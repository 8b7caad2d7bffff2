"""The text tower of nllb-clip: the encoder of M2M100 and NLLB, token ids in, one unit vector out.

A pre-norm transformer with ReLU and sinusoidal positions (Fan et al. 2020, arXiv:2010.11125; NLLB team 2022,
arXiv:2207.04672). Its vector is the projection of its first token, the language code. Its weights are folded already
when they get here (`edgeclip_export.families.nllb_clip.fold`): the embedding's scale inside the token table, the
attention scale inside the query weights.

Only the first token leaves the tower, so its last block computes queries, projection and MLP for that one and keys
and values for all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgeclip_export.families.nllb_clip.config import TextConfig
from edgeclip_export.operators import attention
from edgeclip_export.towers.layers import Linear, l2_normalize
from edgeclip_export.towers.tower import Tower


class M2mState(NamedTuple):
    """What passes from block to block: all tokens of the batch as rows, and what puts them back into texts."""

    h: Tensor  # (B*T, W); after the last block (B, W)
    mask: Tensor  # (B, T), True at tokens that count


class M2mTower(Tower[M2mState]):
    """(B, T) int64 ids -> (B, D) unit rows. B batch, T tokens, W width, D embedding.

    Padding tokens are hidden, wherever they stand, and positions count the others.
    """

    positions: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.blocks = nn.ModuleList(M2mBlock(config) for _ in range(config.layers - 1))
        self.last_block = FirstTokenBlock(config)
        self.norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.project = Linear(config.width, config.dim)
        # The last axis tells this table from the tokens', which alone is narrowed when the graph is.
        self.register_buffer("positions", torch.empty(config.max_tokens, config.width, 1))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Normalised embeddings (B, D)."""
        return self.end(self.through(input_ids))

    def layers(self) -> Sequence[nn.Module]:
        """The blocks; the last one gives the first token alone."""
        return [*self.blocks, self.last_block]

    def begin(self, *inputs: Tensor) -> M2mState:
        """The tokens' rows and those of their positions."""
        (ids,) = inputs
        mask = ids != self.config.pad_id  # (B, T)
        # Counted as floats, which are exact here: TensorRT has no cumulative sum of integers.
        places = (mask.to(torch.float32).cumsum(dim=1) - 1).clamp_min(0).to(torch.int64)  # (B, T)
        tokens = nn.functional.embedding(ids.flatten(), self.tokens)  # (B*T, W)
        positions = torch.index_select(self.positions, 0, places.flatten()).squeeze(-1)  # (B*T, W)
        return M2mState(tokens + positions, mask)

    def step(self, layer: nn.Module, state: M2mState) -> M2mState:
        """One block."""
        return state._replace(h=layer(state.h, state.mask))

    def end(self, state: M2mState) -> Tensor:
        """Normalised embeddings (B, D)."""
        return l2_normalize(self.project(self.norm(state.h)))


class M2mBlock(nn.Module):
    """h += out(attention(LN h)); h += fc2(relu(fc1(LN h)))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.mlp = ReluMlp(config)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """(B*T, W) -> (B*T, W)."""
        q, k, v = self.qkv(self.norm1(h)).view(*mask.shape, -1).chunk(3, dim=-1)  # (B, T, W) each
        h = h + self.out(attention(q, k, v, self.heads, mask).flatten(0, 1))
        return h + self.mlp(h)


class FirstTokenBlock(nn.Module):
    """The same block for the first token of each text alone."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.q = Linear(config.width, config.width)
        self.kv = Linear(config.width, 2 * config.width)
        self.out = Linear(config.width, config.width)
        self.mlp = ReluMlp(config)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """(B*T, W) -> (B, W)."""
        normed = self.norm1(h)
        k, v = self.kv(normed).view(*mask.shape, -1).chunk(2, dim=-1)  # (B, T, W) each
        q = self.q(normed.view(*mask.shape, -1)[:, 0])[:, None]  # (B, 1, W)
        first = h.view(*mask.shape, -1)[:, 0]  # (B, W)
        first = first + self.out(attention(q, k, v, self.heads, mask).flatten(0, 1))
        return first + self.mlp(first)


class ReluMlp(nn.Module):
    """fc2(relu(fc1(LN x)))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(R, W) -> (R, W)."""
        y: Tensor = self.fc2(torch.relu(self.fc1(self.norm2(x))))
        return y


def sinusoids(config: TextConfig) -> Tensor:
    """The vectors (max_tokens, W) of the positions from the first token on: sines, then cosines.

    The first token has position pad_id + 1, as in fairseq. The frequencies are 10000^(-i / (W/2 - 1)). In float32
    throughout, because the reference rounds frequencies and angles too.
    """
    half = config.width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / max(half - 1, 1)))
    first = config.pad_id + 1
    places = torch.arange(first, first + config.max_tokens, dtype=torch.float32)
    angles = torch.outer(places, frequencies)
    return torch.cat((angles.sin(), angles.cos()), dim=1)
