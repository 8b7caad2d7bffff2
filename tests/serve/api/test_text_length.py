"""Letters count as the tokenizer meets them: written out in NFKC, never less and for plain texts no more."""

import sys
import unicodedata

import pytest

from edgeclip.serve.api.text_length import check_characters, count_characters
from edgeclip.serve.errors import ApiError

LONGEST = "\ufdfa"  # one letter, written as 18


def test_every_letter_counts_as_it_is_written() -> None:
    """All of Unicode: one that is written longer and is not counted so would get round the limits."""
    letters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
    wrong = [
        letter for letter in letters
        if not letter.isascii() and (written := len(unicodedata.normalize("NFKC", letter))) > 1
        and count_characters(letter) != written
    ]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a red bicycle", 13),
        ("海滩上美丽的日落", 8),
        ("海滩，日落", 5),  # the comma is written as another one, no longer
        ("wait…", 7),
        (LONGEST * 3, 54),
        ("½ ﬃ ㌕", 3 + 1 + 3 + 1 + 5),
        ("e\u0301", 2),  # one letter in NFKC: joined letters count apart
        ("ｶﾞ", 2),
    ],
)
def test_how_many_letters(text: str, count: int) -> None:
    assert count_characters(text) == count >= len(unicodedata.normalize("NFKC", text))


def test_a_limit_is_met_and_one_more_is_not() -> None:
    def check(*texts: str) -> list[int]:
        return check_characters(texts, range(3, 3 + len(texts)), most_each=18, most_together=36)

    assert check("a" * 18, LONGEST) == [18, 18]
    with pytest.raises(ApiError, match=r"input\[4\] has 19 characters, at most 18 are taken") as caught:
        check("a", LONGEST + "b")
    assert (caught.value.status, caught.value.code) == (400, "string_above_max_length")
    with pytest.raises(ApiError, match="more than 36 characters together; send several") as caught:
        check("a" * 18, LONGEST, "b")
    assert (caught.value.status, caught.value.code) == (400, "array_above_max_length")
