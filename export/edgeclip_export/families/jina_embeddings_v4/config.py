"""config.json of a jina-embeddings-v4 checkpoint, read into the numbers that its two towers are built from.

It is Qwen2.5-VL's, with the tasks and the dimensions of the vectors. A setting that would need other arithmetic is
refused by name rather than ignored. Needs no torch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgeclip.errors import BuildError
from edgeclip_export.settings import count, number, require, section, token_id
from edgeclip_export.towers.decoder_layout import DecoderConfig
from edgeclip_export.towers.window_vision_layout import CHANNELS, WindowVisionConfig

# The files of a tokenizer of Qwen2's, beside or instead of tokenizer.json.
VOCABULARY, MERGES, TOKENIZER_SETTINGS = "vocab.json", "merges.txt", "tokenizer_config.json"
# The official code cuts texts at this many tokens, though the model has more positions.
MAX_TOKENS = 32_768
# These stand in the reference's code, not in its configuration.
_VISION_NORM_EPS, _VISION_ROTARY_BASE = 1e-6, 10_000.0
# The tasks of the hosted API (https://jina.ai/embeddings): the word that is put before a text, and the adapter.
PROMPTS = {"query": "Query: ", "passage": "Passage: "}
TASKS = {
    "retrieval.query": ("query", "retrieval"),
    "retrieval.passage": ("passage", "retrieval"),
    "text-matching": ("query", "text-matching"),
    "code.query": ("query", "code"),
    "code.passage": ("passage", "code"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """The ids of the tokens that mean something to the model."""

    bos: int
    eos: int
    image: int
    vision_start: int
    vision_end: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JinaEmbeddingsV4Config:
    """The two towers, the special tokens, the adapters' names, and the dimensions that a vector may be cut to."""

    decoder: DecoderConfig
    vision: WindowVisionConfig
    tokens: SpecialTokens
    max_tokens: int
    adapters: tuple[str, ...]
    matryoshka_dims: tuple[int, ...]


def parse_config(document: Mapping[str, Any]) -> JinaEmbeddingsV4Config:
    """The configuration in a parsed config.json; BuildError names what is missing or unsupported."""
    top = "the top level"
    require(top, document, single_vector_pool_strategy="mean", truncate_dim=None)
    text = section(document, "text_config") if "text_config" in document else document
    decoder = _parse_decoder(text, count(top, document, "multi_vector_projector_dim"))
    vision = _parse_vision(section(document, "vision_config"))
    if vision.out_width != decoder.width:
        raise BuildError(
            f"config.json: image features are {vision.out_width} wide, the text tower takes {decoder.width}"
        )
    names = document.get("task_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise BuildError(f"config.json: task_names is {names!r}, wanted a list of names")
    if unknown := sorted(set(names) - {adapter for _, adapter in TASKS.values()}):
        raise BuildError(f"config.json: task_names has {', '.join(unknown)}, which edgeclip does not know")
    dims = document.get("matryoshka_dims")
    if not isinstance(dims, list) or not all(type(dim) is int and 0 < dim <= decoder.width for dim in dims):
        raise BuildError(f"config.json: matryoshka_dims {dims} do not lie between 1 and {decoder.width}")
    return JinaEmbeddingsV4Config(
        decoder=decoder,
        vision=vision,
        tokens=SpecialTokens(
            bos=token_id(top, document, "bos_token_id"),
            eos=token_id(top, document, "eos_token_id"),
            image=token_id(top, document, "image_token_id"),
            vision_start=token_id(top, document, "vision_start_token_id"),
            vision_end=token_id(top, document, "vision_end_token_id"),
        ),
        max_tokens=min(MAX_TOKENS, count("text_config", text, "max_position_embeddings")),
        adapters=tuple(names),
        matryoshka_dims=tuple(dims),
    )


def _parse_decoder(settings: Mapping[str, Any], multi_dim: int) -> DecoderConfig:
    where = "text_config"
    require(where, settings, hidden_act="silu", use_sliding_window=False)
    rope = section(settings, "rope_scaling")
    require(f"{where} rope_scaling", rope, type="default", rope_type="default")
    sections = rope.get("mrope_section")
    if (
        not isinstance(sections, list)
        or len(sections) != 3
        or not all(type(one) is int and one > 0 for one in sections)
    ):
        raise BuildError(f"config.json: {where} rope_scaling has mrope_section {sections!r}, wanted three numbers")
    width, heads = count(where, settings, "hidden_size"), count(where, settings, "num_attention_heads")
    if "head_dim" not in settings and width % heads:
        raise BuildError(f"config.json: {where} hidden_size {width} does not split into {heads} heads")
    return DecoderConfig(
        width=width,
        layers=count(where, settings, "num_hidden_layers"),
        heads=heads,
        kv_heads=count(where, settings, "num_key_value_heads"),
        head_width=count(where, settings, "head_dim") if settings.get("head_dim") is not None else width // heads,
        mlp_width=count(where, settings, "intermediate_size"),
        vocab_size=count(where, settings, "vocab_size"),
        norm_eps=number(where, settings, "rms_norm_eps"),
        rotary_base=number(where, settings, "rope_theta"),
        sections=tuple(sections),
        multi_dim=multi_dim,
    )


def _parse_vision(settings: Mapping[str, Any]) -> WindowVisionConfig:
    where = "vision_config"
    require(where, settings, hidden_act="silu", in_channels=CHANNELS, in_chans=CHANNELS)
    blocks = settings.get("fullatt_block_indexes")
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise BuildError(f"config.json: {where} has fullatt_block_indexes {blocks!r}, wanted a list of numbers")
    return WindowVisionConfig(
        width=count(where, settings, "hidden_size"),
        layers=count(where, settings, "depth"),
        heads=count(where, settings, "num_heads"),
        mlp_width=count(where, settings, "intermediate_size"),
        patch_px=count(where, settings, "patch_size"),
        frames=count(where, settings, "temporal_patch_size"),
        merge=count(where, settings, "spatial_merge_size"),
        window_px=count(where, settings, "window_size"),
        full_blocks=tuple(blocks),
        out_width=count(where, settings, "out_hidden_size"),
        norm_eps=_VISION_NORM_EPS,
        rotary_base=_VISION_ROTARY_BASE,
    )
