"""What both towers are made of: a linear layer stored the way a GEMM reads it, and the norm."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """x W + b with W stored (in, out), so that no graph holds a transpose."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return torch.matmul(x, self.weight) + self.bias


def l2_normalize(x: Tensor) -> Tensor:
    """Each row over its length, which counts as at least 1e-12 (torch.nn.functional.normalize)."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
