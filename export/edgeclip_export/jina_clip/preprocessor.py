"""preprocessor_config.json and tokenizer.json of a jina-clip-v2 checkpoint, as the manifest's facts."""

import json
from collections.abc import Mapping
from typing import Any, get_args

from tokenizers import Tokenizer

from edgeclip.errors import BuildError
from edgeclip.manifest import ImageFacts, Interpolation, ResizeMode, TokenizerFacts
from edgeclip_export.jina_clip.config import JinaClipConfig, TextConfig


def image_facts(document: Mapping[str, Any], config: JinaClipConfig) -> ImageFacts:
    """The facts in a parsed preprocessor_config.json; BuildError for a kind this model does not have."""

    def choice(name: str, default: str, kinds: tuple[str, ...]) -> Any:
        value = document.get(name, default)
        if value not in kinds:
            raise BuildError(f"preprocessor_config.json: {name} is {value!r}, wanted one of {', '.join(kinds)}")
        return value

    def channels(name: str) -> tuple[float, float, float]:
        value = document.get(name)
        if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
            raise BuildError(f"preprocessor_config.json: {name} is {value!r}, wanted three numbers")
        return float(value[0]), float(value[1]), float(value[2])

    size, fill = document.get("size"), document.get("fill_color", 0)
    if size != config.vision.image_size:
        raise BuildError(
            f"preprocessor_config.json: size is {size!r}, the vision tower wants {config.vision.image_size}"
        )
    if type(fill) is not int or not 0 <= fill <= 255:
        raise BuildError(f"preprocessor_config.json: fill_color is {fill!r}, wanted a number from 0 to 255")
    std = channels("std")
    if min(std) <= 0:
        raise BuildError(f"preprocessor_config.json: std is {list(std)}, wanted positive numbers")
    return ImageFacts(
        size_px=config.vision.image_size,
        resize_mode=choice("resize_mode", "shortest", get_args(ResizeMode)),
        interpolation=choice("interpolation", "bicubic", get_args(Interpolation)),
        fill_color=fill,
        mean=channels("mean"),
        std=std,
    )


def tokenizer_facts(file: str, config: TextConfig) -> TokenizerFacts:
    """The facts that are not in tokenizer.json itself."""
    return TokenizerFacts(
        file=file,
        max_length=config.max_tokens,
        bos_id=config.bos_id,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
        instructions=dict(config.instructions),
    )


def reset_tokenizer(content: bytes, config: TextConfig) -> str:
    """tokenizer.json without the truncation and padding at 77 tokens the official file has built in."""
    try:
        document = json.loads(content)
        document["truncation"] = document["padding"] = None
        text = json.dumps(document, ensure_ascii=False)
        tokenizer = Tokenizer.from_str(text)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and its panics are no Exception at all
        raise BuildError(f"tokenizer.json: not a tokenizer ({error})") from error
    if (size := tokenizer.get_vocab_size()) > config.vocab_size:
        raise BuildError(f"tokenizer.json: has {size} pieces, the text tower's table {config.vocab_size}")
    empty = tokenizer.encode("").ids
    if empty != [config.bos_id, config.eos_id]:
        raise BuildError(
            f"tokenizer.json: an empty text gives {empty}, config.json wants [{config.bos_id}, {config.eos_id}]"
        )
    return text
