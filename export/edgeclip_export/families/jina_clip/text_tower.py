"""The text tower: token ids in, one unit vector out.

A post-norm XLM-RoBERTa encoder whose positions are rotary (Su et al. 2021, arXiv:2104.09864), mean
pooled over the tokens that are not padding. Its weights are folded already when they get here (see
`fold`): LoRA merged, the token-type row added into the token table, the attention scale inside the
query weights.
"""

import torch
from torch import Tensor, nn

from edgeclip_export.families.jina_clip.config import TextConfig
from edgeclip_export.families.jina_clip.layers import Linear, l2_normalize
from edgeclip_export.operators import attention, rotary_embedding


class TextTower(nn.Module):
    """(B, T) int64 ids -> (B, D) unit rows. B batch, T tokens, W width, D embedding = W.

    Between the table and the pooling all tokens of a batch are the rows of one matrix, so a GEMM is
    a GEMM whatever the batch is.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.layers))
        self.register_buffer("cos", torch.empty(config.max_tokens, config.head_width // 2))
        self.register_buffer("sin", torch.empty(config.max_tokens, config.head_width // 2))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Normalised embeddings (B, D)."""
        return l2_normalize(self.features(input_ids))

    def features(self, input_ids: Tensor) -> Tensor:
        """Mean-pooled, un-normalised features (B, D); a row of nothing but padding is NaN."""
        mask = input_ids != self.config.pad_id  # (B, T)
        h = self.norm(nn.functional.embedding(input_ids.flatten(), self.tokens))  # (B*T, W)
        for block in self.blocks:
            h = block(h, mask, self.cos, self.sin)
        weights = mask.to(h.dtype)  # (B, T)
        pooled = torch.matmul(weights[:, None], h.view(*mask.shape, -1)).squeeze(1)  # (B, W)
        return pooled / weights.sum(dim=1, keepdim=True)


class TextBlock(nn.Module):
    """h = LN(h + attention(h)); h = LN(h + mlp(h))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, h: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B*T, W) -> (B*T, W): all tokens of the batch as rows, put back into texts by `mask`."""
        q, k, v = self.qkv(h).view(*mask.shape, -1).chunk(3, dim=-1)  # (B, T, W) each
        q = rotary_embedding(q, cos, sin, self.heads)
        k = rotary_embedding(k, cos, sin, self.heads)
        attended = attention(q, k, v, self.heads, mask).flatten(0, 1)  # (B*T, W)
        h = self.norm1(h + self.out(attended))
        return self.norm2(h + self.fc2(nn.functional.gelu(self.fc1(h))))


def rotary_tables(config: TextConfig) -> tuple[Tensor, Tensor]:
    """cos and sin (max_tokens, head_width / 2) of position * base^(-2i/D).

    In float32 throughout: the reference rounds the angle too, and at position 8000 its last bit is
    half a thousandth of a radian.
    """
    half = torch.arange(0, config.head_width, 2, dtype=torch.float32)
    frequencies = 1.0 / (config.rotary_base ** (half / config.head_width))
    angles = torch.outer(torch.arange(config.max_tokens, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()
