"""How a jina-clip checkpoint is recognised, and which files it has. Reading it is `plans`' work."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from edgeclip_export.checkpoint import PREPROCESSOR, PROCESSOR, Checkpoint
from edgeclip_export.families.family import ModelPlan, Needs, Repository
from edgeclip_export.families.jina_clip.config import parse_config
from edgeclip_export.families.jina_clip.tensors import tensor_shapes


class JinaClip:
    """jina-clip-v2 and v1: a text tower and a vision tower, one space."""

    name = "jina_clip"
    models = "jina-clip-v2, jina-clip-v1"
    # The commits that mteb loads (ModelMeta.revision in mteb/models/model_implementations/jina_clip.py) and whose
    # scores it publishes (embeddings-benchmark/results, results/jinaai__jina-clip-v2/<commit>/). The licence is that
    # of the model card, which is not among the files that are fetched.
    repositories: Mapping[str, Repository] = {
        "jinaai/jina-clip-v2": Repository(
            revision="344d954da76eb8ad47a7aaff42d012e30c15b8fe", license="cc-by-nc-4.0"
        ),
        "jinaai/jina-clip-v1": Repository(revision="06150c7c382d7a4faedc7d5a0d8cdb59308968f4", license="apache-2.0"),
    }

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a parsed config.json is jina-clip's, of either version."""
        return config.get("model_type") == "jina_clip"

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Accept every configuration: versions 1 and 2 can be exported."""

    def needs(self, config: Mapping[str, Any]) -> Needs:
        """The image processor's settings; since transformers 5 they stand in the processor's file."""
        return Needs(needed=((PREPROCESSOR, PROCESSOR),))

    def tensor_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint with this config.json."""
        return tensor_shapes(parse_config(config))

    def open(self, checkpoint: Checkpoint, task: str | None) -> AbstractContextManager[ModelPlan]:
        """Plan the bundle of a checkpoint; BuildError for any task: the one adapter of v2 is always merged."""
        from edgeclip_export.families.jina_clip.plans import open_model

        return open_model(checkpoint, task)
