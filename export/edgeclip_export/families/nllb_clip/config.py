"""The configuration of an nllb-clip-siglip checkpoint, read into the numbers that its two towers are built from.

open_clip_config.json holds open_clip's `model_cfg` and `preprocess_cfg`; a file with the model's part alone is read
too. It names both towers and says little of them: their sizes stand in timm and in the text model's own repository,
so those of the two known models stand here. `timm_model_kwargs` and `hf_model_config_kwargs` change them, by the
names that timm and transformers have. A setting that would need other arithmetic is refused by name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgeclip.errors import BuildError
from edgeclip_export.settings import count, require, section, token_id

# timm's arguments, as timm has them.
VISION_SIZES: Mapping[str, Mapping[str, Any]] = {
    "vit_base_patch16_siglip_384": {
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_ratio": 4.0,
        "patch_size": 16,
    },
    "vit_so400m_patch14_siglip_384": {
        "embed_dim": 1152,
        "depth": 27,
        "num_heads": 16,
        "mlp_ratio": 3.7362,
        "patch_size": 14,
    },
}
_TEXT = {
    "d_model": 1024,
    "encoder_attention_heads": 16,
    "vocab_size": 256206,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
# The text models' config.json, as far as the encoder is built from it.
TEXT_SIZES: Mapping[str, Mapping[str, Any]] = {
    "facebook/nllb-200-distilled-600M": {**_TEXT, "encoder_layers": 12, "encoder_ffn_dim": 4096},
    "facebook/nllb-200-distilled-1.3B": {**_TEXT, "encoder_layers": 24, "encoder_ffn_dim": 8192},
}
# open_clip's, where text_cfg does not say it.
_CONTEXT = 77


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The numbers that the tower is built from; `dim` is the width of the vectors that it gives."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    vocab_size: int
    max_tokens: int
    pad_id: int
    dim: int
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 2:
            raise BuildError(
                f"a text width of {self.width} is odd or does not split into {self.heads} heads of one width"
            )

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The numbers that the tower is built from."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise BuildError(f"a vision width of {self.width} does not split into {self.heads} heads")
        if self.grid < 1:
            raise BuildError(f"no patch of {self.patch_size} px fits an image of {self.image_size} px")

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
class NllbClipConfig:
    """The two towers, the token that closes a text, and what the file says of preprocessing images."""

    text: TextConfig
    vision: VisionConfig
    eos_id: int
    preprocessing: Mapping[str, Any]


def is_open_clip(document: Mapping[str, Any]) -> bool:
    """Whether a parsed configuration is one of open_clip's."""
    model = document.get("model_cfg", document)
    return isinstance(model, Mapping) and {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys()


def check_model(document: Mapping[str, Any], where: str) -> None:
    """BuildError for a model of open_clip whose towers are not SigLIP's and NLLB's."""
    model = document.get("model_cfg", document)
    vision, text = section(model, "vision_cfg"), section(model, "text_cfg")
    towers = vision.get("timm_model_name"), text.get("hf_model_name")
    if towers[0] not in VISION_SIZES or towers[1] not in TEXT_SIZES:
        raise BuildError(
            f"{where}: is a model of open_clip with timm_model_name {towers[0]!r} and hf_model_name {towers[1]!r}; "
            "of open_clip's, edgeclip exports nllb-clip-base-siglip and nllb-clip-large-siglip"
        )


def parse_config(document: Mapping[str, Any]) -> NllbClipConfig:
    """The configuration in a parsed file; BuildError names what is missing or unsupported."""
    check_model(document, "the configuration")
    model = document.get("model_cfg", document)
    preprocessing = document.get("preprocess_cfg", {})
    if not isinstance(preprocessing, Mapping):
        raise BuildError(f"config.json: preprocess_cfg is {preprocessing!r}, wanted an object")
    require("the model", model, custom_text=True)
    dim = count("the model", model, "embed_dim")
    text, eos_id = _parse_text(section(model, "text_cfg"), dim)
    vision = _parse_vision(section(model, "vision_cfg"))
    if vision.width != dim:
        raise BuildError(f"config.json: embed_dim is {dim}, and the vision tower is {vision.width} wide")
    return NllbClipConfig(text=text, vision=vision, eos_id=eos_id, preprocessing=preprocessing)


def _parse_text(settings: Mapping[str, Any], dim: int) -> tuple[TextConfig, int]:
    where = "text_cfg"
    require(where, settings, hf_pooler_type="cls_pooler", hf_proj_type="linear")
    model = _with_changes(TEXT_SIZES[settings["hf_model_name"]], settings, "hf_model_config_kwargs")
    require(where, model, activation_function="relu", scale_embedding=True)
    config = TextConfig(
        width=count(where, model, "d_model"),
        layers=count(where, model, "encoder_layers"),
        heads=count(where, model, "encoder_attention_heads"),
        mlp_width=count(where, model, "encoder_ffn_dim"),
        vocab_size=count(where, model, "vocab_size"),
        max_tokens=count(where, {"context_length": _CONTEXT, **settings}, "context_length"),
        pad_id=token_id(where, model, "pad_token_id"),
        dim=dim,
    )
    return config, token_id(where, model, "eos_token_id")


def _parse_vision(settings: Mapping[str, Any]) -> VisionConfig:
    where = "vision_cfg"
    require(where, settings, timm_pool="map")
    if settings.get("timm_proj") not in (None, "", "none"):
        raise BuildError(f"config.json: {where} has timm_proj {settings['timm_proj']!r}; only 'none' is supported")
    model = _with_changes(VISION_SIZES[settings["timm_model_name"]], settings, "timm_model_kwargs")
    width, ratio = count(where, model, "embed_dim"), model["mlp_ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio <= 0:
        raise BuildError(f"config.json: {where} needs a positive number as mlp_ratio, found {ratio!r}")
    return VisionConfig(
        width=width,
        layers=count(where, model, "depth"),
        heads=count(where, model, "num_heads"),
        mlp_width=int(width * ratio),
        image_size=count(where, settings, "image_size"),
        patch_size=count(where, model, "patch_size"),
    )


def _with_changes(sizes: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The sizes of a known tower with the changes that the file makes to them."""
    changes = settings.get(name) or {}
    if not isinstance(changes, Mapping):
        raise BuildError(f"config.json: {name} is {changes!r}, wanted an object")
    return {**sizes, **changes}
