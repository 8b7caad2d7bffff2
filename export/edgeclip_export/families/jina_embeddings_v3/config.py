"""config.json of a jina-embeddings-v3 checkpoint, read into the numbers its tower and its adapters are built from.

Nothing is taken from the real model: dimensions, theta, rank, alpha and the order of the adapters are the file's. A
setting that would need other arithmetic is refused by name rather than ignored.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from edgeclip.errors import BuildError
from edgeclip_export.settings import count, dimensions, number, prompts, require, section, token_id
from edgeclip_export.towers.xlmr_layout import LoraSizes, XlmrConfig

# Adapters name files and folders.
_TASK_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
# The default of the code that the official layout names, and that of the code of the converted one.
_OFFICIAL_BASE, _CONVERTED_BASE = 10000.0, 20000.0
# transformers writes 1e30 as model_max_length where there is no limit.
_UNLIMITED = 1_000_000
CONVERTED = "jina_embeddings_v3"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig(XlmrConfig):
    """The text tower, its special tokens, the sizes of its adapters, and the prompts of its tasks.

    `tasks` are in the order of the adapters in the file; the prompt of each may be empty.
    """

    pad_id: int
    bos_id: int
    eos_id: int
    lora: LoraSizes
    tasks: Mapping[str, str]
    matryoshka_dims: tuple[int, ...]


def parse_config(document: Mapping[str, Any], model_max_length: object = None) -> TextConfig:
    """The configuration in a parsed config.json; BuildError names what is missing or unsupported.

    `model_max_length` is tokenizer_config.json's: texts are cut there, or, where it gives no limit, at
    max_position_embeddings. Both count the special tokens.
    """
    where = "the top level"
    require(
        where,
        document,
        hidden_act="gelu",
        position_embedding_type="rotary",
        type_vocab_size=1,
        emb_pooler=None,
        truncate_dim=None,
    )
    width = count(where, document, "hidden_size")
    longest = count(where, document, "max_position_embeddings")
    if type(model_max_length) is int and 2 <= model_max_length < _UNLIMITED:
        longest = model_max_length
    tasks = _parse_tasks(document)
    return TextConfig(
        width=width,
        layers=count(where, document, "num_hidden_layers"),
        heads=count(where, document, "num_attention_heads"),
        mlp_width=count(where, document, "intermediate_size"),
        vocab_size=count(where, document, "vocab_size"),
        max_tokens=longest,
        layer_norm_eps=number(where, document, "layer_norm_eps"),
        rotary_base=_parse_base(document),
        pad_id=token_id(where, document, "pad_token_id"),
        bos_id=token_id(where, document, "bos_token_id"),
        eos_id=token_id(where, document, "eos_token_id"),
        lora=LoraSizes(
            rank=count(where, document, "lora_rank"),
            alpha=number(where, document, "lora_alpha"),
            adapters=len(tasks),
        ),
        tasks=tasks,
        matryoshka_dims=dimensions(document, width),
    )


def parse_names(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The adapters in the order in which the file has them."""
    names = document.get("lora_adaptations")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise BuildError(f"config.json: lora_adaptations is {names!r}, wanted the names of the adapters")
    if len(set(names)) < len(names) or not all(_TASK_NAME.fullmatch(name) for name in names):
        raise BuildError(f"config.json: lora_adaptations {names} are not different names that a file can have")
    return tuple(names)


def _parse_tasks(document: Mapping[str, Any]) -> dict[str, str]:
    names, found = parse_names(document), prompts(document)
    if found.keys() != set(names):
        raise BuildError(
            f"config.json: task_instructions are of {sorted(found)}, wanted one for each of lora_adaptations, "
            f"{sorted(names)}"
        )
    return {name: found[name] for name in names}


def _parse_base(document: Mapping[str, Any]) -> float:
    """The rotary base. The converted layout keeps the official key, and may have transformers' own beside it."""
    if document.get("rotary_emb_base") is not None:
        return number("the top level", document, "rotary_emb_base")
    if document.get("model_type") != CONVERTED:
        return _OFFICIAL_BASE
    if document.get("rope_parameters") is None:
        return _CONVERTED_BASE
    rope = section(document, "rope_parameters")
    require("rope_parameters", rope, rope_type="default")
    return number("rope_parameters", rope, "rope_theta")
