"""What towers are made of: a linear layer stored the way a GEMM reads it, and the norm of a vector."""

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
        y: Tensor = torch.matmul(x, self.weight) + self.bias
        return y


def l2_normalize(x: Tensor) -> Tensor:
    """Each row over its length, which counts as at least 1e-12 (torch.nn.functional.normalize)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(1e-12)
