"""The families of models whose checkpoints are exported: one folder each, and the one list of them."""

from collections.abc import Mapping
from typing import Any

from edgeclip.errors import BuildError
from edgeclip_export.families.family import Family, Repository
from edgeclip_export.families.jina_clip.family import JinaClip
from edgeclip_export.families.jina_embeddings_v3.family import JinaEmbeddingsV3
from edgeclip_export.families.jina_embeddings_v4.family import JinaEmbeddingsV4
from edgeclip_export.families.nllb_clip.family import NllbClip

FAMILIES: tuple[Family, ...] = (JinaClip(), JinaEmbeddingsV3(), JinaEmbeddingsV4(), NllbClip())
# What people call the models that can be exported, for messages.
MODELS = " and ".join((", ".join(family.models for family in FAMILIES[:-1]), FAMILIES[-1].models))


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is of one of the families."""
    return any(family.recognises(config) for family in FAMILIES)


def find_family(config: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family of a parsed config.json; BuildError, which names the place `where`, for that of another model."""
    for family in FAMILIES:
        if family.recognises(config):
            family.check(config, where)
            return family
    raise BuildError(f"{where}: {_describe(config)}; edgeclip exports {MODELS}")


def known_repository(repo_id: str) -> Repository | None:
    """What is known of a repository on the Hub."""
    found = (family.repositories[repo_id] for family in FAMILIES if repo_id in family.repositories)
    return next(found, None)


def _describe(config: Mapping[str, Any]) -> str:
    """What a model that is none of ours calls itself."""
    kind, architectures, code = (config.get(name) for name in ("model_type", "architectures", "auto_map"))
    name = architectures[0] if isinstance(architectures, list) and architectures else kind
    if not isinstance(name, str):
        return "config.json names no model_type and no architecture"
    facts = [f"model_type is {kind!r}"] if isinstance(kind, str) else []
    if isinstance(code, Mapping) and "--" in (source := str(code.get("AutoModel"))):
        facts.append(f"its code is {source.partition('--')[0]}")
    described = f" ({', '.join(facts)})" if facts else ""
    return f"is a {name}{described}"
