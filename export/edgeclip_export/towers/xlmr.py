"""The text tower that jina-clip-v2 and jina-embeddings-v3 share: token ids in, one unit vector out.

A post-norm XLM-RoBERTa encoder whose positions are rotary (Su et al. 2021, arXiv:2104.09864), mean pooled over its
tokens. Its weights are folded already when they get here (`edgeclip_export.towers.xlmr_fold`): the token-type row
added into the token table, the attention scale inside the query weights, and LoRA merged into the weights, or given
with each call as arrays.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgeclip_export.operators import attention, rotary_embedding
from edgeclip_export.towers.layers import Linear, l2_normalize, masked_mean
from edgeclip_export.towers.tower import Tower
from edgeclip_export.towers.xlmr_layout import LINEARS, XlmrConfig


class XlmrState(NamedTuple):
    """What passes from block to block: all tokens of the batch as rows, and what puts them back into texts."""

    h: Tensor  # (B*T, W)
    ids: Tensor  # (B, T)
    mask: Tensor | None  # (B, T), True at tokens that count
    adapter: Sequence[Tensor]  # of each layer that is left, A and B of each of LINEARS


class XlmrTower(Tower[XlmrState]):
    """(B, T) int64 ids -> (B, D) unit rows. B batch, T tokens, W width, D embedding = W.

    Tokens with the id `masked_id` are hidden and do not count; None: every token counts. Inputs
    after the ids are an adapter: the arrays of `edgeclip_export.towers.xlmr_layout.adapter_shapes`, in their order.

    Between the table and the pooling all tokens of a batch are the rows of one matrix, so a GEMM is
    a GEMM whatever the batch is.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: XlmrConfig, *, masked_id: int | None) -> None:
        super().__init__()
        self.config = config
        self.masked_id = masked_id
        self.tokens = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.blocks = nn.ModuleList(XlmrBlock(config) for _ in range(config.layers))
        self.register_buffer("cos", torch.empty(config.max_tokens, config.head_width // 2))
        self.register_buffer("sin", torch.empty(config.max_tokens, config.head_width // 2))

    def forward(self, input_ids: Tensor, *adapter: Tensor) -> Tensor:
        """Normalised embeddings (B, D)."""
        return self.end(self.through(input_ids, *adapter))

    def layers(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def begin(self, *inputs: Tensor) -> XlmrState:
        """The tokens' rows, normalised."""
        ids, *adapter = inputs
        mask = None if self.masked_id is None else ids != self.masked_id  # (B, T)
        rows = nn.functional.embedding(ids.flatten(), self.tokens)  # (B*T, W)
        if not adapter:
            return XlmrState(self.norm(rows), ids, mask, ())
        a, b, *others = adapter
        rows = rows + torch.matmul(nn.functional.embedding(ids.flatten(), a), b)
        return XlmrState(self.norm(rows), ids, mask, others)

    def step(self, layer: nn.Module, state: XlmrState) -> XlmrState:
        """One block."""
        ours, others = state.adapter[: 2 * len(LINEARS)], state.adapter[2 * len(LINEARS) :]
        adapter = dict(zip(LINEARS, zip(ours[::2], ours[1::2], strict=True), strict=True)) if ours else {}
        mask = state.mask
        h = layer(state.h, state.ids if mask is None else mask, mask, self.cos, self.sin, adapter)
        return state._replace(h=h, adapter=others)

    def end(self, state: XlmrState) -> Tensor:
        """Normalised embeddings (B, D)."""
        return l2_normalize(self.pool(state))

    def features(self, *inputs: Tensor) -> Tensor:
        """Mean-pooled, un-normalised features (B, D); a row of nothing but hidden tokens is NaN."""
        return self.pool(self.through(*inputs))

    def pool(self, state: XlmrState) -> Tensor:
        """The mean of the rows of each text that count (B, W)."""
        if state.mask is None:
            return state.h.view(*state.ids.shape, -1).mean(dim=1)
        return masked_mean(state.h, state.mask)


class XlmrBlock(nn.Module):
    """h = LN(h + attention(h)); h = LN(h + mlp(h))."""

    def __init__(self, config: XlmrConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)

    def forward(
        self,
        h: Tensor,
        texts: Tensor,
        mask: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        adapter: Mapping[str, tuple[Tensor, Tensor]],
    ) -> Tensor:
        """(B*T, W) -> (B*T, W): all tokens of the batch as rows, put back into texts in the shape of `texts`."""

        def linear(name: str, x: Tensor) -> Tensor:
            y: Tensor = getattr(self, name)(x)
            if name in adapter:
                a, b = adapter[name]
                y = y + torch.matmul(torch.matmul(x, a), b)  # (in, r) and (r, out)
            return y

        q, k, v = linear("qkv", h).view(*texts.shape, -1).chunk(3, dim=-1)  # (B, T, W) each
        q = rotary_embedding(q, cos, sin, self.heads)
        k = rotary_embedding(k, cos, sin, self.heads)
        attended = attention(q, k, v, self.heads, mask).flatten(0, 1)  # (B*T, W)
        h = self.norm1(h + linear("out", attended))
        last: Tensor = self.norm2(h + linear("fc2", nn.functional.gelu(linear("fc1", h))))
        return last


def rotary_tables(config: XlmrConfig) -> tuple[Tensor, Tensor]:
    """cos and sin (max_tokens, head_width / 2) of position * base^(-2i/D).

    In float32 throughout: the reference rounds the angle too, and at position 8000 its last bit is
    half a thousandth of a radian.
    """
    half = torch.arange(0, config.head_width, 2, dtype=torch.float32)
    frequencies = 1.0 / (config.rotary_base ** (half / config.head_width))
    angles = torch.outer(torch.arange(config.max_tokens, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()
