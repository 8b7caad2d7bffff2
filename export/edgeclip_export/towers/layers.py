"""What towers are made of: a linear layer as a GEMM reads it, RMSNorm, a mean of rows, the norm of a vector."""

import torch
from torch import Tensor, nn

from edgeclip_export.operators import rms_norm


class Linear(nn.Module):
    """x W + b, or x W, with W stored (in, out), so that no graph holds a transpose."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y: Tensor = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * w over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return rms_norm(x, self.weight, self.eps)


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, W) of each text's rows of `h` (B*T, W) where `mask` (B, T) is True; NaN where it is nowhere."""
    weights = mask.to(h.dtype)  # (B, T)
    total = torch.matmul(weights[:, None], h.view(*mask.shape, -1)).squeeze(1)  # (B, W)
    return total / weights.sum(dim=1, keepdim=True)


def l2_normalize(x: Tensor) -> Tensor:
    """Each row over its length, which counts as at least 1e-12 (torch.nn.functional.normalize)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(1e-12)


def at_least_zero(x: Tensor) -> Tensor:
    """Integers, 0 for negative ones: as Max, because TensorRT's Clip reads no integers."""
    return torch.maximum(x, torch.zeros((), dtype=x.dtype))
