"""How a jina-embeddings-v3 checkpoint is recognised, and which files it has. Reading it is `plans`' work."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from edgeclip_export.checkpoint import Checkpoint
from edgeclip_export.families.family import ModelPlan, Needs, Repository
from edgeclip_export.families.jina_embeddings_v3.config import CONVERTED, parse_config, parse_names
from edgeclip_export.families.jina_embeddings_v3.layout import TOKENIZER_CONFIG, adapter_files, official_shapes

_OFFICIAL_CLASS = "XLMRobertaLoRA"


class JinaEmbeddingsV3:
    """jina-embeddings-v3: one text tower, and a LoRA adapter for each task."""

    name = "jina_embeddings_v3"
    models = "jina-embeddings-v3"
    # The commit that mteb loads (ModelMeta.revision in mteb/models/model_implementations/jina_models.py). No
    # published result names a commit of the converted repository, so its main branch is fetched.
    repositories: Mapping[str, Repository] = {
        "jinaai/jina-embeddings-v3": Repository(
            revision="215a6e121fa0183376388ac6b1ae230326bfeaed", license="cc-by-nc-4.0"
        ),
        "jinaai/jina-embeddings-v3-hf": Repository(revision="main", license="cc-by-nc-4.0"),
    }

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """The official layout names no model_type, but the class of its code; the converted one has a model_type."""
        kind, code = config.get("model_type"), config.get("auto_map")
        if kind is not None:
            return bool(kind == CONVERTED)
        classes = code.values() if isinstance(code, Mapping) else ()
        is_named = any(str(name).rpartition(".")[2] == _OFFICIAL_CLASS for name in classes)
        return is_named or config.get("architectures") == [_OFFICIAL_CLASS]

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Nothing is refused here: no relative has the same class."""

    def needs(self, config: Mapping[str, Any]) -> Needs:
        """The limit of tokens, and in the converted layout a folder for each adapter."""
        folders = [name for task in parse_names(config) for name in adapter_files(task)]
        return Needs(optional=(TOKENIZER_CONFIG, *folders))

    def tensor_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint in the official layout with this config.json."""
        return official_shapes(parse_config(config))

    def open(self, checkpoint: Checkpoint, task: str | None) -> AbstractContextManager[ModelPlan]:
        """Plan the bundle of a checkpoint, with all adapters, or with that of `task` merged."""
        from edgeclip_export.families.jina_embeddings_v3.plans import open_model

        return open_model(checkpoint, task)
