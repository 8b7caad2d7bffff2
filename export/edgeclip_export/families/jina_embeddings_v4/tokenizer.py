"""The tokenizer of a jina-embeddings-v4 checkpoint: tokenizer.json, or made of Qwen2's vocab.json and merges.txt."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgeclip.errors import BuildError
from edgeclip.manifest import TextFacts
from edgeclip_export.checkpoint import TOKENIZER, read_json
from edgeclip_export.families.jina_embeddings_v4.config import (
    MERGES,
    TOKENIZER_SETTINGS,
    VOCABULARY,
    SpecialTokens,
)

# The prompt around an image, with one token for it; the official code writes it so, line break and all.
IMAGE_PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>\n"
# How Qwen2 divides a text before it looks for pieces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_tokenizer(folder: Path) -> str:
    """The text of a tokenizer.json without truncation and padding; BuildError where the files are no tokenizer."""
    try:
        if (folder / TOKENIZER).is_file():
            document = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
            document["truncation"] = document["padding"] = None
            text = json.dumps(document, ensure_ascii=False)
            Tokenizer.from_str(text)
            return text
        return _make(folder).to_str()
    except (KeyboardInterrupt, MemoryError, BuildError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and its panics are no Exception at all
        file = TOKENIZER if (folder / TOKENIZER).is_file() else VOCABULARY
        raise BuildError(f"{folder / file}: not a tokenizer ({error})") from error


def check_tokenizer(tokenizer: Tokenizer, tokens: SpecialTokens, vocab_size: int) -> tuple[int, ...]:
    """The ids of the image's prompt, with one token for the image.

    BuildError for a tokenizer with more pieces than the text tower has rows, one that adds tokens of its own to a
    text, and one that gives special tokens other ids than config.json.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= vocab_size:
        raise BuildError(f"{TOKENIZER}: its largest id is {largest}, the text tower's table has {vocab_size} rows")
    if added := tokenizer.encode("").ids:
        raise BuildError(f"{TOKENIZER}: an empty text gives {added}, wanted no token; it is another model's")
    ids = tuple(tokenizer.encode(IMAGE_PROMPT).ids)
    wanted = (tokens.vision_start, tokens.image, tokens.vision_end)
    if not any(ids[start : start + 3] == wanted for start in range(len(ids))) or ids.count(tokens.image) != 1:
        raise BuildError(
            f"{TOKENIZER}: the image's prompt gives {list(ids)}, and config.json wants {list(wanted)} in it once"
        )
    return ids


def text_facts(folder: Path, tokenizer: Tokenizer, tokens: SpecialTokens, max_tokens: int) -> TextFacts:
    """The facts of texts; the token of padding stands in tokenizer_config.json, else it is that of the end."""
    settings = read_json(folder / TOKENIZER_SETTINGS) if (folder / TOKENIZER_SETTINGS).is_file() else {}
    name = settings.get("pad_token")
    if isinstance(name, Mapping):
        name = name.get("content")
    pad = tokenizer.token_to_id(name) if isinstance(name, str) else tokens.eos
    if pad is None:
        raise BuildError(f"{TOKENIZER_SETTINGS}: pad_token {name!r} is no token of the tokenizer")
    return TextFacts(file=TOKENIZER, max_length=max_tokens, bos_id=tokens.bos, eos_id=tokens.eos, pad_id=pad)


def _make(folder: Path) -> Tokenizer:
    """Qwen2's byte-level BPE of a vocabulary, merges, and the added tokens in the settings."""
    for name in (MERGES, TOKENIZER_SETTINGS):
        if not (folder / name).is_file():
            raise BuildError(f"{folder}: has {VOCABULARY} and no {name}; fetch it too, or {TOKENIZER}")
    lines = (folder / MERGES).read_text(encoding="utf-8").splitlines()
    pairs = [line.partition(" ")[::2] for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocab=dict(read_json(folder / VOCABULARY)), merges=pairs))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = read_json(folder / TOKENIZER_SETTINGS).get("added_tokens_decoder")
    if not isinstance(added, Mapping) or not added:
        raise BuildError(f"{folder / TOKENIZER_SETTINGS}: has no added_tokens_decoder; fetch tokenizer.json too")
    for number in sorted(added, key=int):
        _add(tokenizer, int(number), added[number])
    return tokenizer


def _add(tokenizer: Tokenizer, number: int, settings: Mapping[str, Any]) -> None:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    token = AddedToken(settings["content"], **{name: bool(settings.get(name, False)) for name in names})
    (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    if (found := tokenizer.token_to_id(token.content)) != number:
        raise BuildError(f"{TOKENIZER_SETTINGS}: {token.content} is said to be {number} and becomes {found}")
