"""Length of a text in characters after NFKC normalisation, which the limits of a request count.

Multilingual tokenizers first normalise a text to NFKC (Unicode Standard Annex 15), where one character may become
many: U+FDFA becomes 18. The tokenizer's time and memory follow the normalised text: one of 262,144 such characters
took 6 s and nearly a gigabyte.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from edgeclip.serve.errors import ApiError

# NFKC lengthens no character behind this one: tests/serve/api/test_text_length.py asks them all.
_LAST_LONG = 0x1F248


@cache
def _long_characters() -> tuple[re.Pattern[str], dict[str, int]]:
    """A pattern for the characters that NFKC lengthens, and by how much it lengthens each. Takes 0.1 s, once."""
    more = {}
    for character in map(chr, range(0x80, _LAST_LONG + 1)):
        if (written := len(unicodedata.normalize("NFKC", character))) > 1:
            more[character] = written - 1
    return re.compile(f"[{''.join(more)}]"), more


def count_characters(text: str) -> int:
    """The characters of a text after NFKC, those that it would compose counted apart."""
    if text.isascii() or unicodedata.is_normalized("NFKC", text):
        return len(text)
    pattern, more = _long_characters()
    return len(text) + sum(more[character] for character in pattern.findall(text))


def check_characters(texts: Sequence[str], places: Sequence[int], *, most_each: int, most_together: int) -> list[int]:
    """The characters of each text; ApiError 400 for too many, which names the text by its place in the input."""
    counts: list[int] = []
    together = 0
    for text, place in zip(texts, places, strict=True):
        count = count_characters(text)
        if count > most_each:
            raise too_long(f"input[{place}]", count, most_each)
        together += count
        if together > most_together:
            raise too_long_together(most_together)
        counts.append(count)
    return counts


def too_long(where: str, found: int, most: int) -> ApiError:
    """400 for a text that is too long."""
    message = f"{where} has {found} characters, at most {most} are taken"
    return ApiError(400, message, param=where, code="string_above_max_length")


def too_long_together(most: int) -> ApiError:
    """400 for a request whose texts are too long together."""
    message = f"the texts have more than {most} characters together; send several requests"
    return ApiError(400, message, param="input", code="array_above_max_length")
