"""The tokenizer of XLM-RoBERTa's kind that both jina-clip-v2 and jina-embeddings-v3 have, over any pieces."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_UNKNOWN = 3


def xlmr_tokenizer(pieces: Iterable[tuple[str, float]]) -> Tokenizer:
    """The tokenizer of these pieces and their scores, after the special tokens.

    Like the official file, it truncates and pads at 77 unless that is reset.
    """
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
