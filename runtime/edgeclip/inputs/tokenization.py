"""Texts to token ids, as the reference's tokenizer gives them.

The tokenizer file carries the whole pipeline; what is left to do here is cutting at max_length (the
first max_length - 1 ids and the closing one) and telling which texts were cut.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from edgeclip.errors import BundleError, InputError
from edgeclip.manifest import TokenizerFacts

# What tokenizers gives for a text of 22 tokens takes 4.5 kB, its ids 176 bytes: only so many are held at a time, and
# Ctrl-C is heard between them. They take 43 ms on two cores, a few thousandths of what the tower then takes for them.
# Its threads are as many as the cgroup and affinity allow; RAYON_NUM_THREADS alone, read once, gives it fewer.
_AT_ONCE = 1024
# Nor more letters, but of one long text: ten of 262,144 took 235 MB, one of them 55.
_LETTERS_AT_ONCE = 1 << 18
# So few and short texts are tokenised one by one: several at once would wait until a thread of tokenizers' pool is
# free, 0.3 s beside long texts and 7 s beside odd ones, while one alone is done in the caller's. It takes no longer.
_FEW_TEXTS = 32
_FEW_LETTERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedTexts:
    """The ids of each text, (T,) int64, and the indices of the texts that were cut."""

    rows: tuple[NDArray[np.int64], ...]
    cut: tuple[int, ...]


def slices(letters: Sequence[int]) -> Iterator[range]:
    """Consecutive indices of texts of so many letters, as many as are tokenised at once; a long text alone."""
    start, held = 0, 0
    for index, count in enumerate(letters):
        if index > start and (index - start == _AT_ONCE or held + count > _LETTERS_AT_ONCE):
            yield range(start, index)
            start, held = index, 0
        held += count
    if letters:
        yield range(start, len(letters))


def is_quick(letters: Sequence[int]) -> bool:
    """Whether texts of so many letters are tokenised at once, in a millisecond, whatever other threads tokenise."""
    return len(letters) <= _FEW_TEXTS and sum(letters) <= _FEW_LETTERS


def check_max_length(max_length: int | None, facts: TokenizerFacts) -> int:
    """How many ids a text may have: `max_length`, or for None what the model takes. InputError for what it cannot."""
    limit = facts.max_length if max_length is None else max_length
    if type(limit) is not int or not 2 <= limit <= facts.max_length:
        raise InputError(f"max_length is {limit!r}, wanted an int from 2 to {facts.max_length}")
    return limit


class TextTokenizer:
    """tokenizer.json with the manifest's facts."""

    def __init__(self, path: Path, facts: TokenizerFacts) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # tokenizers raises bare Exception, and its panics are no Exception at all
            raise BundleError(f"{path}: not a tokenizer ({error})") from error
        # The official file cuts and pads at 77; a bundle's does neither, whoever wrote it.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._facts = facts

    def encode(self, texts: Sequence[str], max_length: int | None) -> TokenizedTexts:
        """Each text as at most max_length ids.

        `max_length` counts the opening and the closing token; None is the model's own.
        """
        limit = check_max_length(max_length, self._facts)
        rows, cut = [], []
        letters = [len(text) for text in texts]
        one_by_one = (range(index, index + 1) for index in range(len(texts)))
        for some in one_by_one if is_quick(letters) else slices(letters):
            encodings = self._tokenizer.encode_batch_fast([texts[index] for index in some])
            for index, encoding in zip(some, encodings, strict=True):
                ids = encoding.ids
                if len(ids) > limit:
                    ids = [*ids[: limit - 1], self._facts.eos_id]
                    cut.append(index)
                rows.append(np.array(ids, dtype=np.int64))
        return TokenizedTexts(rows=tuple(rows), cut=tuple(cut))

    def count_ids(self) -> int:
        """One more than the highest id that it gives."""
        added = self._tokenizer.get_added_tokens_decoder()
        if isinstance(self._tokenizer.model, Unigram):  # its ids are the places of a list, so none is missing
            highest = self._tokenizer.get_vocab_size(with_added_tokens=False) - 1
        else:
            highest = max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
        return 1 + max(highest, *added, -1)
