"""The adapters of a checkpoint: one file for all tasks, as peft writes it, and the settings beside it.

The names of their tensors say `model.language_model.layers`, where those of the weights say `model.layers`. Needs no
torch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edgeclip.errors import BuildError
from edgeclip_export.towers.decoder_layout import DecoderConfig, Shapes, adapted_layers

FILE, SETTINGS = "adapters/adapter_model.safetensors", "adapters/adapter_config.json"
_PREFIX, _MODEL, _LANGUAGE_MODEL = "base_model.model.", "model.", "model.language_model."
# Settings of peft that would need other arithmetic, and what they must be.
_PLAIN: Mapping[str, object] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "lora_bias": False,
    "use_dora": False,
    "use_rslora": False,
    "layer_replication": None,
    "modules_to_save": None,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """What is the same for all adapters of a checkpoint: the rank, and what B A is multiplied by."""

    rank: int
    scale: float


def parse_settings(document: Mapping[str, Any]) -> AdapterSettings:
    """The settings in a parsed adapter_config.json; BuildError names what is missing or unsupported."""
    for name, wanted in _PLAIN.items():
        if (found := document.get(name, wanted)) != wanted:
            raise BuildError(f"{SETTINGS}: {name} is {found!r}; only {wanted!r} is supported")
    for name in ("rank_pattern", "alpha_pattern"):
        if document.get(name):
            raise BuildError(f"{SETTINGS}: {name} is {document[name]!r}; only one rank and alpha is supported")
    rank, alpha = document.get("r"), document.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise BuildError(f"{SETTINGS}: r is {rank!r}, wanted a positive whole number")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        raise BuildError(f"{SETTINGS}: lora_alpha is {alpha!r}, wanted a positive number")
    return AdapterSettings(rank=rank, scale=alpha / rank)


def adapter_tensor(layer: str, part: str, task: str) -> str:
    """The official name of a factor, `part` A or B, of a linear layer that is called by its official name."""
    name = _LANGUAGE_MODEL + layer.removeprefix(_MODEL) if layer.startswith(_MODEL) else layer
    return f"{_PREFIX}{name}.lora_{part}.{task}.weight"


def adapter_tensor_shapes(config: DecoderConfig, tasks: Sequence[str], rank: int) -> Shapes:
    """Name and shape of every tensor of the adapters' file."""
    shapes: Shapes = {}
    for task in tasks:
        for layer, (inputs, outputs) in adapted_layers(config).items():
            shapes[adapter_tensor(layer, "A", task)] = (rank, inputs)
            shapes[adapter_tensor(layer, "B", task)] = (outputs, rank)
    return shapes
