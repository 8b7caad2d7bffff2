"""The operators that every target has a kernel of its own for.

A tower calls them like any other torch function. Run eagerly they are the maths, spelled out; while
torch traces them each leaves a single node of the domain `edgeclip`, and `edgeclip_graph.passes`
replaces every such node by what the target runs fastest. So a tower is written and traced once, and
no pass has to recognise attention among twenty small operators.

Rotation and attention take and give (batch, tokens, heads * head width), the layout the projections write and read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeclip_graph.operators import ATTENTION, CAUSAL_ATTENTION, DOMAIN, RMS_NORM, ROTARY, SLOPES


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate each head of `x` (B, T, H*D) by the angle of its token, its two halves as pairs.

    (a, b) -> (a cos - b sin, b cos + a sin) with a and b the halves of a head. `cos` and `sin` are
    (N, D/2), N >= T; row t belongs to token t. Su et al. 2021, arXiv:2104.09864.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{ROTARY}", (x, cos, sin), {"num_heads": heads}, dtype=x.dtype, shape=x.shape
        )
    tokens = x.shape[1]
    a, b = x.unflatten(-1, (heads, 2, -1)).unbind(-2)  # (B, T, H, D/2)
    c, s = cos[:tokens, None], sin[:tokens, None]  # (T, 1, D/2)
    return torch.cat((a * c - b * s, b * c + a * s), dim=-1).flatten(-2)  # (B, T, H*D)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    key_mask: Tensor | None = None,
    *,
    slopes: Sequence[float] | None = None,
) -> Tensor:
    """softmax(q k^T) v for each head. There is no scale: it is folded into the weights of q.

    `q` is (B, Tq, H*D), `k` and `v` are (B, T, H*D). `key_mask` (B, T) is True at the keys that may
    be seen; None means all. With `slopes`, one for each head, Tq is T and slope * |i - j| is taken from the score of
    the tokens i and j (symmetric ALiBi). Returns (B, Tq, H*D).
    """
    if torch.onnx.is_in_onnx_export():
        attributes: dict[str, Any] = {"num_heads": heads}
        if slopes is not None:
            attributes[SLOPES] = list(slopes)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{ATTENTION}", (q, k, v, key_mask), attributes, dtype=q.dtype, shape=q.shape
        )

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, T, D)

    mask = None if key_mask is None else key_mask[:, None, None, :]  # (B, 1, 1, T)
    if slopes is not None:
        token = torch.arange(q.shape[1], device=q.device)
        bias = -torch.tensor(slopes, dtype=q.dtype, device=q.device)[:, None, None] * (token[:, None] - token).abs()
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)  # (B or 1, H, T, T)
    out = torch.nn.functional.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask, scale=1.0)
    return out.transpose(1, 2).flatten(2)  # (B, Tq, H*D)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int) -> Tensor:
    """softmax(q k^T) v for each head, a token seeing itself and those before it. There is no scale.

    `q` is (B, T, H*D), `k` and `v` are (B, T, G*D): each of the G heads of keys serves H / G neighbouring heads of
    queries. Returns (B, T, H*D).
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{CAUSAL_ATTENTION}",
            (q, k, v),
            {"num_heads": heads, "kv_num_heads": kv_heads},
            dtype=q.dtype,
            shape=q.shape,
        )

    def split(x: Tensor, count: int) -> Tensor:
        return x.unflatten(-1, (count, -1)).transpose(1, 2)  # (B, count, T, D)

    out = torch.nn.functional.scaled_dot_product_attention(
        split(q, heads), split(k, kv_heads), split(v, kv_heads), is_causal=True, scale=1.0, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(2)  # (B, T, H*D)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{RMS_NORM}", (x, weight), {"epsilon": eps}, dtype=x.dtype, shape=x.shape
        )
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
