"""A tokenizer of Qwen2's kind over made-up pieces: byte-level BPE, with Qwen2.5-VL's special tokens after it."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import pre_tokenizers

from edgeclip_bench.families.xlmr_tokenizer import LETTERS, SYLLABLES, WORDS
from edgeclip_export.families.jina_embeddings_v4.tokenizer import read_tokenizer

# In the order of their ids, which begin behind the pieces.
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_SPACE = "Ġ"  # how byte-level BPE writes a space


def write_tokenizer(out: Path, pieces: int) -> None:
    """Write a tokenizer of so many made-up pieces (`write_pieces`)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    write_pieces(out, alphabet, list(itertools.islice(_merges(), pieces - len(alphabet))))


def write_pieces(out: Path, alphabet: Sequence[str], merges: Sequence[tuple[str, str]]) -> None:
    """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json.

    Its pieces are the alphabet, what the merges make of it, and the special tokens.
    """
    pieces = len(alphabet) + len(merges)
    vocabulary = [*alphabet, *(first + second for first, second in merges)]
    places = {piece: index for index, piece in enumerate(vocabulary)}
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    added = {str(pieces + index): {"content": token, "special": True} for index, token in enumerate(SPECIALS)}
    settings = {
        "added_tokens_decoder": added,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (out / "vocab.json").write_text(json.dumps(places, ensure_ascii=False), encoding="utf-8")
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (out / "tokenizer.json").unlink(missing_ok=True)  # it would be read instead of the three
    (out / "tokenizer.json").write_text(read_tokenizer(out), encoding="utf-8")


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs of pieces that become one: syllables, words of two and three of them, each with a space before it too."""
    yield from LETTERS
    yield from ((_SPACE, syllable) for syllable in SYLLABLES)
    yield from itertools.product(SYLLABLES, repeat=2)
    yield from ((_SPACE, word) for word in WORDS)
    yield from itertools.product(WORDS, SYLLABLES)
