"""How long a text is for who tokenises it.

Multilingual tokenizers first write a text in NFKC (Unicode Standard Annex 15), where one letter may become many:
U+FDFA, the longest, 18. The tokenizer's time and memory follow what is written: a text of 262,144 such letters took
6 s and nearly a gigabyte. So the limits of a request count letters as they are written.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from edgeclip.serve.errors import ApiError

# Behind it no letter is written longer than it is: test_serve_letters.py asks them all.
_LAST_LONG = 0x1F248


@cache
def _long_letters() -> tuple[re.Pattern[str], dict[str, int]]:
    """What finds the letters that are written as several, and by how much each is longer. Takes 0.1 s, once."""
    more = {}
    for letter in map(chr, range(0x80, _LAST_LONG + 1)):
        if (written := len(unicodedata.normalize("NFKC", letter))) > 1:
            more[letter] = written - 1
    return re.compile(f"[{''.join(more)}]"), more


def count_letters(text: str) -> int:
    """The letters of a text as NFKC writes it, those counted apart that it would join."""
    if text.isascii() or unicodedata.is_normalized("NFKC", text):
        return len(text)
    pattern, more = _long_letters()
    return len(text) + sum(more[letter] for letter in pattern.findall(text))


def check_letters(texts: Sequence[str], places: Sequence[int], *, most_each: int, most_together: int) -> list[int]:
    """The letters of each text; ApiError 400 for too many, which names the text by its place in the input."""
    counts: list[int] = []
    together = 0
    for text, place in zip(texts, places, strict=True):
        count = count_letters(text)
        if count > most_each:
            raise too_long(f"input[{place}]", count, most_each)
        together += count
        if together > most_together:
            raise too_long_together(most_together)
        counts.append(count)
    return counts


def too_long(where: str, found: int, most: int) -> ApiError:
    """400: one text."""
    message = f"{where} has {found} characters, at most {most} are taken"
    return ApiError(400, message, param=where, code="string_above_max_length")


def too_long_together(most: int) -> ApiError:
    """400: the texts of a request."""
    message = f"the texts have more than {most} characters together; send several requests"
    return ApiError(400, message, param="input", code="array_above_max_length")
