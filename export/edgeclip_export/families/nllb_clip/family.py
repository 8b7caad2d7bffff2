"""How an nllb-clip-siglip checkpoint is recognised, and which files it has. Reading it is `plans`' work."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from edgeclip_export.checkpoint import WEIGHTS, Checkpoint
from edgeclip_export.families.family import ModelPlan, Needs, Repository
from edgeclip_export.families.nllb_clip.config import check_model, is_open_clip, parse_config
from edgeclip_export.families.nllb_clip.tensors import tensor_shapes

# Neither commit was verified, so the branch is fetched; the licence is that of the model cards.
_UNPINNED = Repository(revision="main", license="cc-by-nc-4.0")
_NAMES = ("nllb-clip-base-siglip", "nllb-clip-large-siglip", "nllb-siglip-mrl-base", "nllb-siglip-mrl-large")


class NllbClip:
    """nllb-clip-siglip, base and large: NLLB's encoder and SigLIP's vision tower, one space."""

    name = "nllb_clip"
    models = "nllb-clip-siglip"
    repositories: Mapping[str, Repository] = {f"visheratin/{name}": _UNPINNED for name in _NAMES}

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a parsed configuration is open_clip's, other models of it included."""
        return is_open_clip(config)

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """BuildError for open_clip's other models."""
        check_model(config, where)

    def needs(self, config: Mapping[str, Any]) -> Needs:
        """Weights under open_clip's name, or under that of transformers."""
        return Needs(weights=("open_clip_model.safetensors", WEIGHTS))

    def tensor_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint with this configuration."""
        return tensor_shapes(parse_config(config))

    def open(self, checkpoint: Checkpoint, task: str | None) -> AbstractContextManager[ModelPlan]:
        """Plan the bundle of a checkpoint; BuildError for any task."""
        from edgeclip_export.families.nllb_clip.plans import open_model

        return open_model(checkpoint, task)
