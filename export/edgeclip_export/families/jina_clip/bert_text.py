"""The text tower of jina-clip-v1 in config.json, whose numbers are not there, and its special tokens.

The text tower's base configuration lies in another repository, jinaai/jina-bert-flash-implementation. Its values are
the defaults here, on which the checkpoint's `hf_model_config_kwargs` are laid.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from edgeclip.errors import BuildError
from edgeclip_export.settings import count, number, require, section, token_id
from edgeclip_export.towers.alibi_bert_layout import AlibiBertConfig

# What the name of the base repository holds: jina-bert-flash-implementation, before that jina-bert-v2-base-en-flash.
_BASE = "jina-bert"
# Of BERT's tokenizer, whose ids another vocabulary has at other places.
_OPENING, _CLOSING = "[CLS]", "[SEP]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BertTextConfig(AlibiBertConfig):
    """The text tower, and the token that it masks."""

    pad_id: int


def is_bert(document: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json of jina-clip is jina-clip-v1's, by the text tower that it names."""
    settings = document.get("text_config")
    return isinstance(settings, Mapping) and _BASE in str(settings.get("hf_model_name_or_path"))


def parse_bert_text(settings: Mapping[str, Any]) -> BertTextConfig:
    """The numbers in `text_config`; BuildError for what would need other arithmetic."""
    where = "text_config"
    require(where, settings, pooler_type="mean_pooler", proj_type=None)
    base = {
        "vocab_size": 30528,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 8192,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    model: dict[str, Any] = base | dict(section(settings, "hf_model_config_kwargs"))
    require(
        where,
        model,
        hidden_act="gelu",
        position_embedding_type="alibi",
        mlp_type="glu",
        use_qk_norm=False,
        emb_pooler=None,
        window_size=[-1, -1],
    )
    width = count(where, model, "hidden_size")
    if settings.get("embed_dim", width) != width:
        raise BuildError(f"config.json: {where} embed_dim {settings['embed_dim']} is not its hidden_size")
    return BertTextConfig(
        width=width,
        layers=count(where, model, "num_hidden_layers"),
        heads=count(where, model, "num_attention_heads"),
        mlp_width=count(where, model, "intermediate_size"),
        vocab_size=count(where, model, "vocab_size"),
        token_types=count(where, model, "type_vocab_size"),
        max_tokens=count(where, model, "max_position_embeddings"),
        layer_norm_eps=number(where, model, "layer_norm_eps"),
        pad_id=token_id(where, model, "pad_token_id"),
    )


def read_frame(tokenizer: bytes) -> tuple[int, int]:
    """The ids of the opening and the closing token in tokenizer.json; BuildError where it has none."""
    try:
        vocabulary = json.loads(tokenizer)["model"]["vocab"]
        return int(vocabulary[_OPENING]), int(vocabulary[_CLOSING])
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f"tokenizer.json: no WordPiece vocabulary with {_OPENING} and {_CLOSING}") from error
