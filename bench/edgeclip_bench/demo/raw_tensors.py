"""A small model's trainable tensors, and what any training of one needs of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

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
