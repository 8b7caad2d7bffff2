"""config.json of a jina-clip-v2 checkpoint, read into the numbers its two towers are built from.

The official file leaves two things out. The text tower's base numbers stand in the configuration of
jinaai/jina-embeddings-v3, on which `hf_model_config_kwargs` is laid: they are the defaults here. And
some constants of the vision tower stand only in the reference's code. A setting that would need
other arithmetic than jina-clip-v2's is refused by name rather than ignored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgeclip.errors import BuildError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The adapters stored in the checkpoint, and the one that is always on, by index and task.

    No `adapters` are stored where they were merged into the weights, or were never there.
    """

    rank: int
    alpha: float
    adapters: int
    adapter: int
    task: str | None

    @property
    def scale(self) -> float:
        """What B A is multiplied by before it is added (Hu et al. 2021, arXiv:2106.09685)."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text tower: post-norm XLM-RoBERTa with rotary positions."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    vocab_size: int
    max_tokens: int
    layer_norm_eps: float
    rotary_base: float
    pad_id: int
    bos_id: int
    eos_id: int
    lora: LoraConfig
    instructions: Mapping[str, str]

    def __post_init__(self) -> None:
        _check_heads("text_config", self.width, self.heads)

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads


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
        _check_heads("vision_config", self.width, self.heads)
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
    """Both towers, and the lengths their embeddings may be cut to."""

    text: TextConfig
    vision: VisionConfig
    matryoshka_dims: tuple[int, ...]

    @property
    def embedding_dim(self) -> int:
        """The width of an uncut embedding, the same for both towers."""
        return self.text.width


def parse_config(document: Mapping[str, Any]) -> JinaClipConfig:
    """The configuration in a parsed config.json; BuildError names what is missing or unsupported."""
    check_model(document)
    _require("the top level", document, add_projections=False, truncate_dim=None)
    text = _parse_text(_section(document, "text_config"))
    vision = _parse_vision(_section(document, "vision_config"))
    if text.width != vision.width:
        raise BuildError(f"config.json: the text tower is {text.width} wide, the vision tower {vision.width}")
    dims = document.get("matryoshka_dimensions") or [text.width]
    if not all(type(dim) is int and 0 < dim <= text.width for dim in dims):
        raise BuildError(f"config.json: matryoshka_dimensions {dims} do not lie between 1 and {text.width}")
    return JinaClipConfig(text=text, vision=vision, matryoshka_dims=tuple(dims))


def check_model(document: Mapping[str, Any], where: str = "config.json") -> None:
    """BuildError, by its architecture, for a parsed config.json of another model."""
    section = document.get("text_config")
    text = section.get("hf_model_name_or_path") if isinstance(section, Mapping) else None
    if (kind := document.get("model_type")) == "jina_clip":
        if "jina-bert" in str(text):
            raise BuildError(f"{where}: is jina-clip-v1 (its text tower is {text}); edgeclip exports jina-clip-v2")
        return
    architectures = document.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else kind
    if not isinstance(name, str):
        raise BuildError(
            f"{where}: config.json names no model_type, wanted 'jina_clip'; edgeclip exports jina-clip-v2"
        )
    facts = [f"model_type is {kind!r}"] if isinstance(kind, str) else []
    code = document.get("auto_map")
    if isinstance(code, Mapping) and "--" in (source := str(code.get("AutoModel"))):
        facts.append(f"its code is {source.partition('--')[0]}")
    told = f" ({', '.join(facts)})" if facts else ""
    raise BuildError(f"{where}: is a {name}{told}; edgeclip exports jina-clip-v2, a JinaCLIPModel")


def _parse_text(section: Mapping[str, Any]) -> TextConfig:
    where = "text_config"
    _require(where, section, pooler_type="mean_pooler", proj_type=None, default_instruction_task=None)
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
    model: dict[str, Any] = base | dict(_section(section, "hf_model_config_kwargs"))
    _require(where, model, hidden_act="gelu", position_embedding_type="rotary", type_vocab_size=1)
    # Neither is named where the adapters were merged and the configuration says so.
    names, task = model.get("lora_adaptations") or [], section.get("default_lora_task")
    if not isinstance(names, list) or (task not in names and (names or task is not None)):
        raise BuildError(f"config.json: default_lora_task {task!r} is not among lora_adaptations {names}")
    width = _count(where, model, "hidden_size")
    if section.get("embed_dim", width) != width:
        raise BuildError(f"config.json: {where} embed_dim {section['embed_dim']} is not its hidden_size")
    instructions = model["task_instructions"] or {}
    if not isinstance(instructions, dict) or not all(isinstance(text, str) for text in instructions.values()):
        raise BuildError("config.json: task_instructions must map task names to strings")
    return TextConfig(
        width=width,
        layers=_count(where, model, "num_hidden_layers"),
        heads=_count(where, model, "num_attention_heads"),
        mlp_width=_count(where, model, "intermediate_size"),
        vocab_size=_count(where, model, "vocab_size"),
        # RoBERTa's two positions below the first token are counted in, though rotary never uses them.
        max_tokens=_count(where, model, "max_position_embeddings") - 2,
        layer_norm_eps=_number(where, model, "layer_norm_eps"),
        rotary_base=_number(where, model, "rotary_emb_base"),
        pad_id=_token_id(where, model, "pad_token_id"),
        bos_id=_token_id(where, model, "bos_token_id"),
        eos_id=_token_id(where, model, "eos_token_id"),
        lora=LoraConfig(
            rank=_count(where, model, "lora_rank"),
            alpha=_number(where, model, "lora_alpha"),
            adapters=len(names),
            adapter=names.index(task) if names else 0,
            task=task,
        ),
        instructions=instructions,
    )


def _parse_vision(section: Mapping[str, Any]) -> VisionConfig:
    where = "vision_config"
    for name in ("rope_embeddings", "subln", "naive_swiglu"):  # off when a configuration does not say
        if section.get(name) is not True:
            raise BuildError(f"config.json: {where} has {name} {section.get(name)!r}; only True is supported")
    _require(
        where,
        section,
        qkv_bias=True,
        post_norm=False,
        ls_init_value=None,
        proj_type=None,
    )
    width, head_width = _count(where, section, "width"), _count(where, section, "head_width")
    if section.get("embed_dim", width) != width:
        raise BuildError(f"config.json: {where} embed_dim {section['embed_dim']} is not its width {width}")
    if width % head_width:
        raise BuildError(f"config.json: {where} width {width} is no multiple of head_width {head_width}")
    return VisionConfig(
        width=width,
        layers=_count(where, section, "layers"),
        heads=width // head_width,
        mlp_width=int(width * _number(where, section, "mlp_ratio")),
        image_size=_count(where, section, "image_size"),
        patch_size=_count(where, section, "patch_size"),
        rope_grid=_count(where, section, "pt_hw_seq_len"),
        rope_interpolates=bool(section.get("intp_freq", False)),
    )


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    if not isinstance(section, Mapping):
        raise BuildError(f"config.json: {name} is missing")
    return section


def _require(where: str, section: Mapping[str, Any], **wanted: object) -> None:
    """A setting may be absent (the reference's default is what is wanted), but not different."""
    for name, value in wanted.items():
        if section.get(name, value) != value:
            raise BuildError(f"config.json: {where} has {name} {section[name]!r}; only {value!r} is supported")


def _count(where: str, section: Mapping[str, Any], name: str) -> int:
    value = section.get(name)
    if type(value) is not int or value < 1:
        raise BuildError(f"config.json: {where} needs a positive whole number as {name}, found {value!r}")
    return value


def _token_id(where: str, section: Mapping[str, Any], name: str) -> int:
    value = section.get(name)
    if type(value) is not int or value < 0:
        raise BuildError(f"config.json: {where} needs a token id as {name}, found {value!r}")
    return value


def _number(where: str, section: Mapping[str, Any], name: str) -> float:
    value = section.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise BuildError(f"config.json: {where} needs a positive number as {name}, found {value!r}")
    return float(value)


def _check_heads(where: str, width: int, heads: int) -> None:
    if width % heads or (width // heads) % 2:
        raise BuildError(f"config.json: {where} width {width} does not split into {heads} heads of even width")
