"""The tokenizer of XLM-RoBERTa's kind that both jina-clip-v2 and jina-embeddings-v3 have, over any pieces."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
# What made-up words are made of, in all tokenizers here.
LETTERS = [(consonant, vowel) for consonant in "bcdfghklmnprstvwz" for vowel in "aeiou"]
SYLLABLES = ["".join(pair) for pair in LETTERS]
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]
_UNKNOWN = 3
# Characters: from Latin to Arabic, then from Devanagari to Hangul.
_RANGES = (
    *((0x41, 0x5B), (0xE0, 0x180), (0x3B1, 0x3CA), (0x430, 0x450), (0x5D0, 0x5EB), (0x627, 0x64B)),
    *((0x905, 0x93A), (0xE01, 0xE2F), (0x3041, 0x3097), (0x30A1, 0x30FB), (0x4E00, 0x9FA6), (0xAC00, 0xD7A4)),
)


def xlmr_tokenizer(pieces: Iterable[tuple[str, float]]) -> Tokenizer:
    """The tokenizer of these pieces and their scores; like the official file, it truncates and pads at 77."""
    ranked = [*((special, 0.0) for special in SPECIALS), *pieces]
    tokenizer = Tokenizer(models.Unigram(ranked, unk_id=_UNKNOWN, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in SPECIALS])
    tokenizer.add_special_tokens([AddedToken("<mask>", normalized=False, lstrip=True)])
    tokenizer.enable_truncation(77)
    tokenizer.enable_padding(length=77, pad_id=1, pad_token="<pad>")
    return tokenizer


def synthetic_tokenizer(vocab_size: int) -> Tokenizer:
    """The tokenizer over made-up pieces: every character of many scripts, then syllables."""
    pieces = itertools.islice(_pieces(), vocab_size - 1 - len(SPECIALS))
    return xlmr_tokenizer((piece, -4.0 - np.log1p(rank)) for rank, piece in enumerate(pieces))


def _pieces() -> Iterator[str]:
    """Yield pieces without end: word starts and characters first, then longer and longer syllables."""
    latin = "abcdefghijklmnopqrstuvwxyz"
    yield from ["▁", ",", ".", "!", "?", "-", "'", ":", *"0123456789"]
    yield from [f"▁{letter}" for letter in latin]
    yield from latin
    yield from SYLLABLES
    yield from [chr(point) for start, stop in _RANGES for point in range(start, stop)]
    yield from [f"▁{word}" for word in [*SYLLABLES, *WORDS]]
    yield from (f"▁{word}{syllable}" for word in WORDS for syllable in SYLLABLES)
