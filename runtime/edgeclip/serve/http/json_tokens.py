"""Find the tokens of a JSON body without parsing it: how many there are, and which field holds each string.

A parser makes an object of each value before anybody can count them, and gives no place in the request for what it
cannot read. A string is one step here however long it is, and commas in a text are no tokens.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

_STRING = rb'"(?:[^"\\]++|\\.)*+"?'
_TOKEN = re.compile(_STRING + rb"|[\[\]{}:,]", re.DOTALL)
_KEPT_CHARACTERS = 200


class StringToken(NamedTuple):
    """A string's beginning and end in bytes, quotes included, and its place, as input[3]; None for a field's name."""

    begin: int
    end: int
    place: str | None


def holds_more(body: bytes | bytearray, most: int, *, counts_commas: bool) -> bool:
    """Whether more than `most` brackets, braces and colons open values there, commas counted too if so asked."""
    counted = b"[{:," if counts_commas else b"[{:"
    return next(islice((1 for token in _TOKEN.finditer(body) if body[token.start()] in counted), most, None), 0) > 0


def strings(body: bytes | bytearray) -> Iterator[StringToken]:
    """Every string with the field, or the item of a field, that holds it, however deep. The body may be no JSON."""
    depth = index = 0
    name, is_name, is_list = "", False, False
    for token in _TOKEN.finditer(body):
        begin, end = token.span()
        kind = chr(body[begin])
        if kind == '"':
            if depth == 1 and is_name:
                name = _read_name(bytes(body[begin : min(end, begin + _KEPT_CHARACTERS)]))
                yield StringToken(begin, end, None)
            else:
                yield StringToken(begin, end, (f"{name}[{index}]" if is_list and depth > 1 else name) or None)
        elif kind in "[{":
            depth += 1
            is_name = is_name or (depth == 1 and kind == "{")
            if depth == 2:
                is_list, index = kind == "[", 0
        elif kind in "]}":
            depth -= 1
        elif kind == ":":
            is_name = is_name and depth > 1
        elif depth == 1:
            is_name = True
        elif depth == 2:
            index += 1


def _read_name(written: bytes) -> str:
    try:
        return str(json.loads(written))
    except ValueError:
        return written.decode(errors="replace").strip('"')
