"""A small model's trainable tensors, and what any training of one needs of them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_MAX_SCALE = 100.0  # as CLIP's

Initial = Callable[[str, tuple[int, ...], torch.Generator], Tensor]


class RawTensors:
    """Trainable tensors by their official names."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], initial: Initial, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.tensors = {name: initial(name, shape, draw).requires_grad_() for name, shape in shapes.items()}
        self.has_bfloat16 = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))

    def is_matrix(self, name: str, tensor: Tensor) -> bool:
        """Whether Muon optimises a tensor: the linear layers' weights."""
        return tensor.ndim == 2 and "embeddings" not in name

    def matrices(self) -> list[Tensor]:
        """The parameters that Muon optimises."""
        return [tensor for name, tensor in self.tensors.items() if self.is_matrix(name, tensor)]

    def others(self) -> list[Tensor]:
        """The other parameters: tables, adapters, norms, biases, the patch embedding."""
        return [tensor for name, tensor in self.tensors.items() if not self.is_matrix(name, tensor)]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the values of tensors of the same names."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[name])

    def read(self, name: str) -> Tensor:
        """A copy of a tensor that gradients flow through: folds write into what they read."""
        return self.tensors[name].clone()

    def scale(self, name: str) -> Tensor:
        """The scale of a loss's scores, of which the tensor holds the logarithm; 100 at most."""
        return self.tensors[name].exp().clamp(max=_MAX_SCALE)


def initial_scale() -> Tensor:
    """The logarithm of a loss's scale before training, as CLIP's."""
    return torch.tensor(math.log(1 / 0.07))


def initial_weight(name: str, noise: Tensor, *, gain: float, is_table: bool) -> Tensor:
    """A norm that does nothing, a bias of 0, a table of tokens, or a layer that keeps the variance times `gain`^2."""
    if noise.ndim == 1:
        return torch.ones_like(noise) if name.endswith(".weight") else torch.zeros_like(noise)
    return noise * 0.5 if is_table else noise * gain / math.sqrt(math.prod(noise.shape[1:]))


class attention_in_float32(TorchFunctionMode):  # noqa: N801 - used as a function
    """Attention in float32, because torch 2.13 computes the gradient of bfloat16 attention four times slower."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The function itself, or with its arguments in float32."""
        if func is F.scaled_dot_product_attention:
            with torch.autocast("cpu", enabled=False):
                return func(*(arg.float() for arg in args), **(kwargs or {}))
        return func(*args, **(kwargs or {}))
