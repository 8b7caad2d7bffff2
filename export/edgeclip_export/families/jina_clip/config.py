"""config.json of a jina-clip checkpoint, read into the numbers its two towers are built from.

The official file leaves two things out. The text tower's base numbers stand in the configuration of
jinaai/jina-embeddings-v3, on which `hf_model_config_kwargs` is laid: they are the defaults here. And
some constants of the vision tower stand only in the reference's code. A setting that would need
other arithmetic than jina-clip's is refused by name rather than ignored. jina-clip-v1 has the same
vision tower with other numbers, and another text tower (`bert_text`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgeclip.errors import BuildError
from edgeclip_export.families.jina_clip.bert_text import BertTextConfig, is_bert, parse_bert_text
from edgeclip_export.settings import count, dimensions, number, prompts, require, section, token_id
from edgeclip_export.towers.xlmr_layout import LoraSizes, XlmrConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig(LoraSizes):
    """The adapters stored in the checkpoint, and the one that is always on, by index and task.

    No `adapters` are stored where they were merged into the weights, or were never there.
    """

    adapter: int
    task: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig(XlmrConfig):
    """The text tower of jina-clip-v2, its special tokens, its adapters, and what is put before a text by task."""

    pad_id: int
    bos_id: int
    eos_id: int
    lora: LoraConfig
    instructions: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The vision tower: pre-norm EVA-02 with sub-LayerNorms, SwiGLU and 2-D rotary positions."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    image_size: int
    patch_size: int
    rope_grid: int
    rope_interpolates: bool
    layer_norm_eps: float = 1e-6
    rotary_base: float = 10000.0

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_width % 2:
            raise BuildError(
                f"config.json: vision_config width {self.width} does not split into {self.heads} heads of even width"
            )
        if self.head_width % 4:
            raise BuildError(f"config.json: head_width {self.head_width} does not split into rows and columns")
        if self.grid < 1:
            raise BuildError(f"config.json: no patch of {self.patch_size} px fits an image of {self.image_size} px")
        if not self.rope_interpolates and self.grid != self.rope_grid:
            raise BuildError(
                f"config.json: intp_freq is off, so pt_hw_seq_len ({self.rope_grid}) must equal the patch grid "
                f"({self.grid})"
            )

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads

    @property
    def grid(self) -> int:
        """Patches along one side; pixels beyond grid * patch_size are not looked at."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """P, the patches of one image."""
        return self.grid**2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JinaClipConfig:
    """The two towers, and the lengths that their embeddings were trained to be cut to."""

    text: TextConfig | BertTextConfig
    vision: VisionConfig
    matryoshka_dims: tuple[int, ...]

    @property
    def embedding_dim(self) -> int:
        """The width of an uncut embedding, the same for both towers."""
        return self.text.width


def parse_config(document: Mapping[str, Any]) -> JinaClipConfig:
    """The configuration in a parsed config.json; BuildError names what is missing or unsupported."""
    require("the top level", document, add_projections=False, truncate_dim=None)
    settings = section(document, "text_config")
    text = parse_bert_text(settings) if is_bert(document) else _parse_text(settings)
    vision = _parse_vision(section(document, "vision_config"))
    if text.width != vision.width:
        raise BuildError(f"config.json: the text tower is {text.width} wide, the vision tower {vision.width}")
    return JinaClipConfig(text=text, vision=vision, matryoshka_dims=dimensions(document, text.width))


def _parse_text(settings: Mapping[str, Any]) -> TextConfig:
    where = "text_config"
    require(where, settings, pooler_type="mean_pooler", proj_type=None, default_instruction_task=None)
    # jinaai/jina-embeddings-v3's config.json, then the checkpoint's own words on top.
    base = {
        "vocab_size": 250002,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 8194,
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 20000.0,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "lora_rank": 4,
        "lora_alpha": 1,
        "task_instructions": {},
    }
    model: dict[str, Any] = base | dict(section(settings, "hf_model_config_kwargs"))
    require(where, model, hidden_act="gelu", position_embedding_type="rotary", type_vocab_size=1)
    # Neither is named where the adapters were merged and the configuration says so.
    names, task = model.get("lora_adaptations") or [], settings.get("default_lora_task")
    if not isinstance(names, list) or (task not in names and (names or task is not None)):
        raise BuildError(f"config.json: default_lora_task {task!r} is not among lora_adaptations {names}")
    width = count(where, model, "hidden_size")
    if settings.get("embed_dim", width) != width:
        raise BuildError(f"config.json: {where} embed_dim {settings['embed_dim']} is not its hidden_size")
    return TextConfig(
        width=width,
        layers=count(where, model, "num_hidden_layers"),
        heads=count(where, model, "num_attention_heads"),
        mlp_width=count(where, model, "intermediate_size"),
        vocab_size=count(where, model, "vocab_size"),
        # RoBERTa's two positions below the first token are counted in, though rotary never uses them.
        max_tokens=count(where, model, "max_position_embeddings") - 2,
        layer_norm_eps=number(where, model, "layer_norm_eps"),
        rotary_base=number(where, model, "rotary_emb_base"),
        pad_id=token_id(where, model, "pad_token_id"),
        bos_id=token_id(where, model, "bos_token_id"),
        eos_id=token_id(where, model, "eos_token_id"),
        lora=LoraConfig(
            rank=count(where, model, "lora_rank"),
            alpha=number(where, model, "lora_alpha"),
            adapters=len(names),
            adapter=names.index(task) if names else 0,
            task=task,
        ),
        instructions=prompts(model),
    )


def _parse_vision(settings: Mapping[str, Any]) -> VisionConfig:
    where = "vision_config"
    for name in ("rope_embeddings", "subln", "naive_swiglu"):  # off when a configuration does not say
        if settings.get(name) is not True:
            raise BuildError(f"config.json: {where} has {name} {settings.get(name)!r}; only True is supported")
    require(
        where,
        settings,
        qkv_bias=True,
        post_norm=False,
        ls_init_value=None,
        proj_type=None,
    )
    width, head_width = count(where, settings, "width"), count(where, settings, "head_width")
    if settings.get("embed_dim", width) != width:
        raise BuildError(f"config.json: {where} embed_dim {settings['embed_dim']} is not its width {width}")
    if width % head_width:
        raise BuildError(f"config.json: {where} width {width} is no multiple of head_width {head_width}")
    image_size, patch_size = count(where, settings, "image_size"), count(where, settings, "patch_size")
    interpolates = bool(settings.get("intp_freq", False))
    # Positions that are not stretched have one for each row of patches, so a configuration need not say how many.
    grid = {} if interpolates else {"pt_hw_seq_len": max(1, image_size // patch_size)}
    return VisionConfig(
        width=width,
        layers=count(where, settings, "layers"),
        heads=width // head_width,
        mlp_width=int(width * number(where, settings, "mlp_ratio")),
        image_size=image_size,
        patch_size=patch_size,
        rope_grid=count(where, {**grid, **settings}, "pt_hw_seq_len"),
        rope_interpolates=interpolates,
    )
