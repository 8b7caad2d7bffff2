"""How a jina-embeddings-v4 checkpoint is recognised, and which files it has. Reading it is `plans`' work."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from edgeclip_export.checkpoint import CARD, PREPROCESSOR, TOKENIZER, Checkpoint
from edgeclip_export.families.family import ModelPlan, Needs, Repository
from edgeclip_export.families.jina_embeddings_v4.adapters import FILE, SETTINGS
from edgeclip_export.families.jina_embeddings_v4.config import MERGES, TOKENIZER_SETTINGS, VOCABULARY, parse_config
from edgeclip_export.families.jina_embeddings_v4.tensors import tensor_shapes

_ARCHITECTURE = "JinaEmbeddingsV4Model"


class JinaEmbeddingsV4:
    """jina-embeddings-v4: a vision tower and a decoder with adapters, two spaces."""

    name = "jina_embeddings_v4"
    models = "jina-embeddings-v4"
    # The commit that mteb loads (ModelMeta.revision in mteb/models/model_implementations/jina_models.py). Cards of
    # the model name different licences, CC-BY-NC and the Qwen Research licence; that of the fetched card is recorded.
    repositories: Mapping[str, Repository] = {
        "jinaai/jina-embeddings-v4": Repository(revision="4a58ca57710c49f51896e4bc820e202fbf64904b", license=None)
    }

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a parsed config.json is jina-embeddings-v4's; it has no model_type of its own."""
        return _ARCHITECTURE in (config.get("architectures") or ())

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Nothing: no relative of this model is known."""

    def needs(self, config: Mapping[str, Any]) -> Needs:
        """The adapters of all tasks, the image processor's settings, and tokenizer.json or what it is made of."""
        return Needs(
            tokenizer=(TOKENIZER, VOCABULARY),
            needed=((FILE,), (SETTINGS,), (PREPROCESSOR,)),
            optional=(MERGES, TOKENIZER_SETTINGS, CARD),
        )

    def tensor_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint with this config.json, but for its adapters."""
        return tensor_shapes(parse_config(config))

    def open(self, checkpoint: Checkpoint, task: str | None) -> AbstractContextManager[ModelPlan]:
        """Plan the bundle of a checkpoint."""
        from edgeclip_export.families.jina_embeddings_v4.plans import open_model

        return open_model(checkpoint, task)
