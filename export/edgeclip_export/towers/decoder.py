"""The decoder: tokens, and image features in the places of some of them, to one vector and a vector per token.

The text model of Qwen2.5-VL (arXiv:2502.13923): pre-norm layers with RMSNorm, causal attention in which several heads
of queries share one of keys and values (Ainslie et al. 2023, arXiv:2305.13245), rotary positions of three rows (time,
height, width; one section of a head's frequencies for each), and SwiGLU. Its weights are folded already when they get
here (`edgeclip_export.towers.decoder_fold`).

Padding on the right changes no token before it, because the attention is causal: no mask is needed, and none of
tokens x tokens is made.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgeclip_export.operators import causal_attention, rotary_embedding
from edgeclip_export.towers.decoder_layout import BIASED, SHARED_INPUTS, DecoderConfig, linear_sizes
from edgeclip_export.towers.layers import Linear, RmsNorm, at_least_zero, l2_normalize
from edgeclip_export.towers.tower import Tower

# Of the linear layers of one layer, or of the projector: A for each group with the same input, B for each of them.
Factors = Mapping[str, Tensor]


class DecoderState(NamedTuple):
    """What passes from layer to layer: all tokens of the batch as rows, and what puts them back into inputs."""

    h: Tensor  # (B*T, W)
    ids: Tensor  # (B, T)
    cos: Tensor  # (B*T, D/2)
    sin: Tensor  # (B*T, D/2)
    pool_mask: Tensor  # (B, T), 1 at tokens that the single vector is the mean of
    layers: Sequence[Factors]
    projector: Factors


class DecoderTower(Tower[DecoderState]):
    """Ids (B, T), positions (B, 3, T), image features (B, M, W), places (B, T), pool mask (B, T) -> two outputs.

    A place is -1 where a token takes the row of its id, else the index of the image feature that it takes. The
    outputs are unit vectors: single (B, W), the mean of the tokens in the pool mask, and multi (B, T, E) of every
    token. Inputs after the five are an adapter: the arrays of `decoder_layout.adapter_shapes`, in their order.
    B batch, T tokens, M image features, W width, D head width, E the dimension of multi vectors.
    """

    frequencies: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.norm = RmsNorm(config.width, config.norm_eps)
        self.projector = Linear(config.width, config.multi_dim)
        self.register_buffer("frequencies", torch.empty(config.head_width // 2))

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        image_features: Tensor,
        image_places: Tensor,
        pool_mask: Tensor,
        *adapter: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The single vectors (B, W) and the multi vectors (B, T, E), all of length 1."""
        return self.end(self.through(input_ids, position_ids, image_features, image_places, pool_mask, *adapter))

    def layers(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def begin(self, *inputs: Tensor) -> DecoderState:
        """The rows of the tokens, and the tables of their rotations."""
        ids, positions, features, places, pool_mask, *adapter = inputs
        rows = nn.functional.embedding(ids.flatten(), self.tokens)  # (B*T, W)
        first = torch.arange(ids.shape[0])[:, None] * features.shape[1]  # (B, 1), of each input's features
        index = (at_least_zero(places) + first).flatten()  # (B*T,)
        is_image = (places >= 0).flatten()[:, None]  # (B*T, 1)
        h = torch.where(is_image, nn.functional.embedding(index, features.flatten(0, 1)), rows)
        turned = positions.transpose(1, 2).flatten(0, 1).to(torch.float32)  # (B*T, 3)
        parts = self.frequencies.split(self.config.sections)
        angles = torch.cat([turned[:, row, None] * part for row, part in enumerate(parts)], dim=1)  # (B*T, D/2)
        layers, projector = self._sort(adapter)
        return DecoderState(h, ids, angles.cos(), angles.sin(), pool_mask, layers, projector)

    def step(self, layer: nn.Module, state: DecoderState) -> DecoderState:
        """One block."""
        factors, *others = state.layers
        h = layer(state.h, state.ids, state.cos, state.sin, factors)
        return state._replace(h=h, layers=others)

    def end(self, state: DecoderState) -> tuple[Tensor, Tensor]:
        """The single vectors (B, W) and the multi vectors (B, T, E), all of length 1."""
        h = self.norm(state.h)
        (multi,) = linears(self, "projector", h, state.projector)
        multi = l2_normalize(multi)
        inputs = h.view(*state.ids.shape, -1)  # (B, T, W)
        pooled = torch.matmul(state.pool_mask[:, None], inputs).squeeze(1)  # (B, W)
        return l2_normalize(pooled / state.pool_mask.sum(dim=1, keepdim=True)), multi.view(*state.ids.shape, -1)

    def hidden(self, *inputs: Tensor) -> Tensor:
        """The normalised hidden states of every token (B, T, W)."""
        state = self.through(*inputs)
        return self.norm(state.h).view(*state.ids.shape, -1)

    def _sort(self, arrays: Sequence[Tensor]) -> tuple[Sequence[Factors], Factors]:
        """An adapter's arrays by layer; nothing for each layer where there is no adapter."""
        names = [
            name for group, parts in SHARED_INPUTS.items() for name in (f"{group}_a", *(f"{one}_b" for one in parts))
        ]
        if not arrays:
            return [{}] * self.config.layers, {}
        *ours, a, b = arrays
        starts = range(0, len(ours), len(names))
        layers = [dict(zip(names, ours[start : start + len(names)], strict=True)) for start in starts]
        return layers, {"projector_a": a, "projector_b": b}


class DecoderBlock(nn.Module):
    """h += o(attention(norm h)); h += down(silu(gate(norm h)) * up(norm h))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.norm1 = RmsNorm(config.width, config.norm_eps)
        self.norm2 = RmsNorm(config.width, config.norm_eps)
        for name, (inputs, outputs) in linear_sizes(config).items():
            setattr(self, name, Linear(inputs, outputs, bias=name in BIASED))

    def forward(self, h: Tensor, ids: Tensor, cos: Tensor, sin: Tensor, factors: Factors) -> Tensor:
        """(B*T, W) -> (B*T, W): all tokens of the batch as rows, put back into inputs in the shape of `ids`."""

        q, k, v = linears(self, "qkv", self.norm1(h), factors)
        q = rotary_embedding(q[None], cos, sin, self.heads).view(*ids.shape, -1)  # (B, T, H*D)
        k = rotary_embedding(k[None], cos, sin, self.kv_heads).view(*ids.shape, -1)
        attended = causal_attention(q, k, v.view(*ids.shape, -1), self.heads, self.kv_heads)
        (out,) = linears(self, "o", attended.flatten(0, 1), factors)
        h = h + out
        gate, up = linears(self, "gate_up", self.norm2(h), factors)
        (out,) = linears(self, "down", nn.functional.silu(gate) * up, factors)
        return h + out


def linears(module: nn.Module, group: str, x: Tensor, factors: Factors) -> list[Tensor]:
    """x W + b + x A B of each layer of a group, (..., in) -> (..., out); x W + b where there are no factors."""
    names = SHARED_INPUTS.get(group, (group,))
    outputs: list[Tensor] = [getattr(module, name)(x) for name in names]
    if not factors:
        return outputs
    narrow = torch.matmul(x, factors[f"{group}_a"]).chunk(len(names), dim=-1)  # (..., rank) each
    return [
        y + torch.matmul(part, factors[f"{name}_b"]) for name, y, part in zip(names, outputs, narrow, strict=True)
    ]
