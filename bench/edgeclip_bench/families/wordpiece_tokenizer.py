"""A tokenizer of BERT's kind over made-up pieces; jina-clip-v1's special tokens are at their official places."""

import itertools

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from edgeclip_bench.families.xlmr_tokenizer import SYLLABLES, WORDS

# The ids of the official vocabulary, where a small one has room for them.
_SPECIALS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
_SMALLEST = 1000
_LATIN = "abcdefghijklmnopqrstuvwxyz"


def wordpiece_tokenizer(vocab_size: int) -> Tokenizer:
    """A lower-casing WordPiece tokenizer of so many pieces, at least 1000: characters, then words and their ends."""
    if vocab_size < _SMALLEST:
        raise ValueError(f"a vocabulary of {vocab_size} pieces, wanted {_SMALLEST} or more")
    vocabulary = dict(_SPECIALS)
    pieces = _pieces()
    taken = set(_SPECIALS.values())
    for index in range(vocab_size):
        if index not in taken:
            vocabulary[f"[unused{index}]" if index < max(taken) else next(pieces)] = index
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, _SPECIALS[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIALS])
    return tokenizer


def _pieces() -> "itertools.chain[str]":
    """Pieces without an end: characters that begin a word and that go on, then syllables of both kinds."""
    signs = [chr(point) for point in range(0x21, 0x7F) if not chr(point).isupper() and chr(point) not in _LATIN]
    both = ((piece, f"##{piece}") for piece in [*_LATIN, *"0123456789", *SYLLABLES, *WORDS])
    others = [sign for sign in signs if not sign.isdigit()]
    more = (f"{word}{syllable}" for word in WORDS for syllable in SYLLABLES)
    return itertools.chain(others, itertools.chain.from_iterable(both), more)
