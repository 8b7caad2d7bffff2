"""The small model during training: raw tensors in the official layout, folded into the export's own towers.

Every step folds anew (`edgeclip_export.families.jina_clip.fold`) and gradients flow back through the fold, adapters
included. So the tensors that are trained are those that an export reads, and no second tower is written.
"""

import math

import torch
from torch import Tensor
from torch.func import functional_call

from edgeclip_bench.demo.layout import preprocessor_config
from edgeclip_bench.demo.raw_tensors import RawTensors, attention_in_float32, initial_scale, initial_weight
from edgeclip_export.families.jina_clip.config import JinaClipConfig
from edgeclip_export.families.jina_clip.fold import fold_text, fold_vision, text_tower
from edgeclip_export.families.jina_clip.tensors import tensor_shapes
from edgeclip_export.families.jina_clip.vision_tower import VisionTower

LOGIT_SCALE = "logit_scale"
# An adapter that starts large stays large: a third of the weights' length, so leaving it out cannot go unseen.
_ADAPTER = 0.1


class RawTowers(RawTensors):
    """The two towers on trainable tensors of the official layout."""

    def __init__(self, config: JinaClipConfig, seed: int) -> None:
        super().__init__(tensor_shapes(config), _initial, seed)
        self._config = config
        facts = preprocessor_config()
        self._mean, self._std = tuple(facts["mean"]), tuple(facts["std"])
        with torch.device("meta"):
            self._text = text_tower(config.text)
            self._vision = VisionTower(config.vision)

    def encode(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of pictures (B, S, S, 3) uint8 and of texts (N, T): (B, D) and (N, D)."""
        lazy_text = fold_text(self._config.text, self.read)
        lazy_vision = fold_vision(self._config.vision, self._mean, self._std, self.read)
        text, vision = ({name: weight.read() for name, weight in lazy.items()} for lazy in (lazy_text, lazy_vision))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.has_bfloat16), attention_in_float32():
            images = functional_call(self._vision, vision, (pixels,))
            texts = functional_call(self._text, text, (ids,))
        return images.float(), texts.float()


def _initial(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Activations of about unit variance, residual branches that start small, an adapter that is not zero."""
    noise = torch.randn(shape, generator=draw)
    if name == LOGIT_SCALE:
        return initial_scale()
    if name.endswith("lora_A"):
        return noise / math.sqrt(shape[-1])
    if name.endswith("lora_B"):
        return noise * _ADAPTER
    if name.endswith(("cls_token", "pos_embed")):
        return noise * 0.02
    gain = 0.3 if name.endswith(("attn.proj.weight", "mlp.w3.weight")) else 1.0
    return initial_weight(name, noise, gain=gain, is_table="embeddings" in name)
