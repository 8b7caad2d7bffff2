"""The text tower of jina-clip-v1: token ids in, one unit vector out.

A post-norm BERT encoder without position embeddings: each head takes from a score its slope times the distance of the
two tokens, in both directions (ALiBi, Press et al. 2022, arXiv:2108.12409). Its MLP is gated by GELU (Shazeer 2020,
arXiv:2002.05202). Its weights are folded already when they get here (`edgeclip_export.towers.alibi_bert_fold`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgeclip_export.operators import attention
from edgeclip_export.towers.alibi_bert_layout import AlibiBertConfig
from edgeclip_export.towers.layers import Linear, l2_normalize, masked_mean
from edgeclip_export.towers.tower import Tower


class AlibiBertState(NamedTuple):
    """What passes from block to block: all tokens of the batch as rows, and which of them count."""

    h: Tensor  # (B*T, W)
    mask: Tensor  # (B, T)


class AlibiBertTower(Tower[AlibiBertState]):
    """(B, T) int64 ids -> (B, D) unit rows. B batch, T tokens, W width, D embedding = W.

    Tokens with the id `masked_id` are hidden and do not count, though they are counted in distances. Between the
    table and the pooling all tokens of a batch are the rows of one matrix.
    """

    def __init__(self, config: AlibiBertConfig, *, masked_id: int) -> None:
        super().__init__()
        self.masked_id = masked_id
        self.tokens = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.blocks = nn.ModuleList(AlibiBertBlock(config) for _ in range(config.layers))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Normalised embeddings (B, D)."""
        return self.end(self.through(input_ids))

    def layers(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def begin(self, *inputs: Tensor) -> AlibiBertState:
        """The tokens' rows, normalised."""
        (ids,) = inputs
        rows = nn.functional.embedding(ids.flatten(), self.tokens)  # (B*T, W)
        return AlibiBertState(self.norm(rows), ids != self.masked_id)

    def step(self, layer: nn.Module, state: AlibiBertState) -> AlibiBertState:
        """One block."""
        return state._replace(h=layer(state.h, state.mask))

    def end(self, state: AlibiBertState) -> Tensor:
        """Normalised embeddings (B, D)."""
        return l2_normalize(masked_mean(state.h, state.mask))

    def features(self, input_ids: Tensor) -> Tensor:
        """Mean-pooled, un-normalised features (B, D); a row of nothing but hidden tokens is NaN."""
        return masked_mean(*self.through(input_ids))


class AlibiBertBlock(nn.Module):
    """h = LN(h + attention(h)); h = LN(h + down(gelu(gate(h)) * up(h)))."""

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.heads, self.slopes = config.heads, config.slopes
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.gate_up = Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down = Linear(config.mlp_width, config.width)
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """(B*T, W) -> (B*T, W): all tokens of the batch as rows, put back into texts in the shape of the mask."""
        q, k, v = (rows.view(*mask.shape, -1) for rows in self.qkv(h).chunk(3, dim=-1))  # (B, T, W) each
        attended = attention(q, k, v, self.heads, mask, slopes=self.slopes).flatten(0, 1)  # (B*T, W)
        h = self.norm1(h + self.out(attended))
        gate, up = self.gate_up(h).chunk(2, dim=-1)  # (B*T, M) each
        last: Tensor = self.norm2(h + self.down(nn.functional.gelu(gate) * up))
        return last
