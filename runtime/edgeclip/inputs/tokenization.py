"""Turn texts into token ids, equal to those of the reference's tokenizer.

The tokenizer file describes the whole pipeline. This module cuts at max_length (the first max_length - 1 ids and the
closing one, where texts have one), and says which texts were cut.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from edgeclip.errors import BundleError, InputError
from edgeclip.host.malloc_bounds import trim
from edgeclip.host.out_of_memory import is_out_of_memory, naming_out_of_memory
from edgeclip.manifest import TextFacts

# What tokenizers gives for a text of 22 tokens takes 4.5 kB, its ids 176 bytes: only so many are held at a time, and
# Ctrl-C is heard between them. They take 43 ms on two cores, a few thousandths of what the tower then takes for them.
# Its threads are as many as the cgroup and affinity allow; RAYON_NUM_THREADS alone, read once, gives it fewer.
_AT_ONCE = 1024
# The same for characters, but of one long text: ten of 262,144 characters took 235 MB, one of them 55 MB.
_CHARACTERS_AT_ONCE = 1 << 18
# Texts no more and no longer than these are tokenised one by one: several at once would wait until a thread of
# tokenizers' pool is free, 0.3 s beside long texts and 7 s beside unusual ones, while a single text is tokenised in
# the caller's thread. It takes no longer.
_FEW_TEXTS = 32
_FEW_CHARACTERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedTexts:
    """The ids of each text, (T,) int64, and the indices of the texts that were cut."""

    rows: tuple[NDArray[np.int64], ...]
    cut: tuple[int, ...]


def slices(characters: Sequence[int]) -> Iterator[range]:
    """Divide texts with these numbers of characters into ranges of consecutive indices that are tokenised at once.

    A long text is a range alone.
    """
    start, held = 0, 0
    for index, count in enumerate(characters):
        if index > start and (index - start == _AT_ONCE or held + count > _CHARACTERS_AT_ONCE):
            yield range(start, index)
            start, held = index, 0
        held += count
    if characters:
        yield range(start, len(characters))


def is_quick(characters: Sequence[int]) -> bool:
    """Whether texts with these numbers of characters are few and short: then they are tokenised one by one."""
    return len(characters) <= _FEW_TEXTS and sum(characters) <= _FEW_CHARACTERS


def check_max_length(max_length: int | None, facts: TextFacts) -> int:
    """The most ids a text may have: `max_length`, or the model's limit for None. InputError for other values."""
    limit = facts.max_length if max_length is None else max_length
    if type(limit) is not int or not 2 <= limit <= facts.max_length:
        raise InputError(f"max_length is {limit!r}, wanted an int from 2 to {facts.max_length}")
    return limit


class TextTokenizer:
    """A tokenizer made from tokenizer.json and the manifest's facts."""

    def __init__(self, path: Path, facts: TextFacts) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # tokenizers raises bare Exception, and its panics are no Exception at all
            if is_out_of_memory(error):
                raise
            raise BundleError(f"{path}: not a tokenizer ({error})") from error
        # The official file cuts and pads at 77; here both are switched off, whatever the bundle's file says.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._facts = facts
        trim()  # 40 MB of what was parsed; once the weights lie above them, malloc keeps them

    def encode(self, texts: Sequence[str], max_length: int | None, *, keeps_closing: bool = True) -> TokenizedTexts:
        """The ids of each text, at most `max_length` of them.

        `max_length` counts the opening and the closing token; None is the model's own. With `keeps_closing` a text
        that is cut ends with the closing token, else with one of its own.
        """
        limit = check_max_length(max_length, self._facts)
        rows, cut = [], []
        characters = [len(text) for text in texts]
        one_by_one = (range(index, index + 1) for index in range(len(texts)))
        for some in one_by_one if is_quick(characters) else slices(characters):
            with naming_out_of_memory("texts were tokenised"):
                encodings = self._tokenizer.encode_batch_fast([texts[index] for index in some])
            for index, encoding in zip(some, encodings, strict=True):
                ids = encoding.ids
                if len(ids) > limit:
                    ids = [*ids[: limit - 1], self._facts.eos_id] if keeps_closing else ids[:limit]
                    cut.append(index)
                rows.append(np.array(ids, dtype=np.int64))
        return TokenizedTexts(rows=tuple(rows), cut=tuple(cut))

    def count_ids(self) -> int:
        """One more than the highest id that the tokenizer gives."""
        added = self._tokenizer.get_added_tokens_decoder()
        if isinstance(self._tokenizer.model, Unigram):  # its ids are the places of a list, so none is missing
            highest = self._tokenizer.get_vocab_size(with_added_tokens=False) - 1
        else:
            highest = max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
        return 1 + max(highest, *added, -1)
