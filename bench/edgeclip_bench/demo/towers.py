"""The small model during training: raw tensors in the official layout, folded into the export's own towers.

Every step folds anew (`edgeclip_export.families.jina_clip.fold`) and gradients flow back through the fold, adapters
included. So the tensors that are trained are those that an export reads, and no second tower is written.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from edgeclip_bench.demo.layout import preprocessor_config
from edgeclip_export.families.jina_clip.config import JinaClipConfig
from edgeclip_export.families.jina_clip.fold import fold_text, fold_vision, text_tower
from edgeclip_export.families.jina_clip.tensors import tensor_shapes
from edgeclip_export.families.jina_clip.vision_tower import VisionTower

LOGIT_SCALE = "logit_scale"
# An adapter that starts large stays large: a third of the weights' length, so leaving it out cannot go unseen.
_ADAPTER = 0.1


class RawTowers:
    """Both towers on trainable tensors of the official layout."""

    def __init__(self, config: JinaClipConfig, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.tensors = {
            name: _initial(name, shape, draw).requires_grad_() for name, shape in tensor_shapes(config).items()
        }
        self._config = config
        facts = preprocessor_config()
        self._mean, self._std = tuple(facts["mean"]), tuple(facts["std"])
        with torch.device("meta"):
            self._text = text_tower(config.text)
            self._vision = VisionTower(config.vision)
        self.has_bfloat16 = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))

    def encode(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of pictures (B, S, S, 3) uint8 and of texts (N, T): (B, D) and (N, D)."""
        lazy_text = fold_text(self._config.text, self._read)
        lazy_vision = fold_vision(self._config.vision, self._mean, self._std, self._read)
        text, vision = ({name: weight.read() for name, weight in lazy.items()} for lazy in (lazy_text, lazy_vision))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.has_bfloat16), _AttentionInFloat32():
            images = functional_call(self._vision, vision, (pixels,))
            texts = functional_call(self._text, text, (ids,))
        return images.float(), texts.float()

    def matrices(self) -> list[Tensor]:
        """The parameters that Muon optimises: the linear layers' weights."""
        return [tensor for name, tensor in self.tensors.items() if _is_matrix(name, tensor)]

    def others(self) -> list[Tensor]:
        """The other parameters: tables, adapters, norms, biases, the patch embedding, the logit scale."""
        return [tensor for name, tensor in self.tensors.items() if not _is_matrix(name, tensor)]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the values of tensors of the same names."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[name])

    def _read(self, name: str) -> Tensor:
        return self.tensors[name].clone()  # the fold writes into what it reads


class _AttentionInFloat32(TorchFunctionMode):
    """Attention in float32, because torch 2.13 computes the gradient of bfloat16 attention four times slower."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            with torch.autocast("cpu", enabled=False):
                return func(*(arg.float() for arg in args), **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and "embeddings" not in name


def _initial(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Activations of about unit variance, residual branches that start small, an adapter that is not zero."""
    noise = torch.randn(shape, generator=draw)
    if name == LOGIT_SCALE:
        return torch.tensor(math.log(1 / 0.07))
    if name.endswith("lora_A"):
        return noise / math.sqrt(shape[-1])
    if name.endswith("lora_B"):
        return noise * _ADAPTER
    if name.endswith(("cls_token", "pos_embed")):
        return noise * 0.02
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith(".weight") else torch.zeros(shape)
    if "embeddings" in name:
        return noise * 0.5
    gain = 0.3 if name.endswith(("attn.proj.weight", "mlp.w3.weight")) else 1.0
    return noise * gain / math.sqrt(math.prod(shape[1:]))
