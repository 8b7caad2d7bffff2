"""A body that is no JSON is refused in words that name what was found, and the text that holds it."""

import json

import pytest

from edgeclip.serve.errors import ApiError
from edgeclip.serve.http.request_body import parse
from tests.serve.api.test_request import LIMITS

BOM = b"\xef\xbb\xbf"
HALF = "half of a character"


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(bytearray(body), LIMITS)
    assert caught.value.status == 400 and caught.value.message.isprintable()
    return caught.value


@pytest.mark.parametrize(
    ("body", "code", "param", "words"),
    [
        (b'{"input": "\\ud83d"}', "invalid_unicode", "input", f"input holds {HALF}"),
        (b'{"input": ["a", "b \\ude00"]}', "invalid_unicode", "input[1]", f"input[1] holds {HALF}"),
        (b'{"input": ["a", {"text": "\\ud83dx"}]}', "invalid_unicode", "input[1]", f"input[1] holds {HALF}"),
        (b'{"input": {"text": "\\ud83d\\u0041"}}', "invalid_unicode", "input", HALF),
        (b'{"texts": ["a", "\\ud83d"]}', "invalid_unicode", "texts[1]", HALF),
        (b'{"input": "a", "user": "\\ud83d"}', "invalid_unicode", "user", f"user holds {HALF}"),
        (b'{"input": ["a", "\xed\xa0\xbd"]}', "invalid_unicode", "input[1]", HALF),
        (b'{"input": ["a", "caf\xe9"]}', "invalid_encoding", "input[1]", "found 0xe9 at byte 20 in input[1]; encode"),
        (b'{"input": "\xf0\x9f\x98"}', "invalid_encoding", "input", "not UTF-8: found 0xf0 at byte 11 in input;"),
        (
            b'{"input": "\xe9',
            "invalid_encoding",
            "input",
            "found 0xe9 at byte 11 in input; encode it as UTF-8, not as",
        ),
        (b'{"a": 1, "caf\xe9": "b"}', "invalid_encoding", None, "found 0xe9 at byte 13; encode it as UTF-8"),
        (b'{"input": "a"} \xe9', "invalid_encoding", None, "found 0xe9 at byte 15; encode it as UTF-8"),
        (b'{"input": ["\\ud83d\\ude00", "\\\\ud83d", "\\ud83d\\ud83d"]}', "invalid_unicode", "input[2]", HALF),
        (b'{"input": [{"text": "a, [b], {c}"}, {"a": "b", "text": "\\ude00"}]}', "invalid_unicode", "input[1]", HALF),
        (b'{"x": [[1, 2], {"y": [3]}], "input": ["\\"a\\"", "\\ude00"]}', "invalid_unicode", "input[1]", HALF),
        (b'["a", "\\ude00"]', "invalid_unicode", None, f"a text holds {HALF}"),
        (BOM + b'{"input": "a"}', "invalid_encoding", None, "begins with a byte order mark (BOM)"),
        ('{"input": "a"}'.encode("utf-16"), "invalid_encoding", None, "the body is UTF-16;"),
        ('{"input": "a"}'.encode("utf-32"), "invalid_encoding", None, "the body is UTF-32;"),
        ('{"input": "a"}'.encode("utf-16-be"), "invalid_encoding", None, "the body is UTF-16 or UTF-32;"),
        ('{"input": "a"}'.encode("utf-16-le"), "invalid_encoding", None, "the body is UTF-16 or UTF-32;"),
        (b'{"input": "a"', "invalid_json", None, "the body is not JSON (at character 13)"),
        (b"[" * 100_000, "invalid_json", None, "the body is not JSON"),
        (b"", "invalid_json", None, "the body is not JSON (at character 0)"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_was_found_and_where(body: bytes, code: str, param: str | None, words: str) -> None:
    error = refusal(body)
    assert (error.code, error.param) == (code, param)
    assert words in error.message


def test_whole_emojis_are_taken_however_they_are_written() -> None:
    assert parse(bytearray(json.dumps({"input": ["😀", "é"]}).encode()), LIMITS).items
    assert parse(bytearray('{"input": ["😀", "é"]}'.encode()), LIMITS).items


def test_the_place_is_told_in_a_body_of_megabytes_too() -> None:
    filler = b'"' + b"a, [b]: " * (200 << 10) + b'", '
    for wrong, code in ((b"\\ud83d", "invalid_unicode"), (b"\xe9", "invalid_encoding")):
        error = refusal(b'{"input": [' + filler * 3 + b'"' + wrong + b'"]}')
        assert (error.code, error.param) == (code, "input[3]")


def test_no_message_repeats_an_input() -> None:
    for body in (b'{"input": ["my-secret \\ud83d"]}', b'{"input": {"my-secret": "\xe9"}}', b'{"input": "my-secret'):
        assert "my-secret" not in refusal(body).message
