"""What is wrong with a body that no JSON parser takes, in words, and where.

The parser gives a position in the whole body at best. A client knows its inputs by their index, so the body is read
once more by a parser that forgives bytes that are not UTF-8 and halves of characters, and the text that holds them is
looked for. That parser is slower, so it reads no more than _LOOKED_INTO_BYTES: strangers may send such bodies.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeclip.serve.api.request_fields import printable
from edgeclip.serve.errors import ApiError

if TYPE_CHECKING:
    from orjson import JSONDecodeError

_LOOKED_INTO_BYTES = 256 << 10
_WIDE_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
               codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip
_SURROGATE_BYTES = re.compile(rb"\xed[\xa0-\xbf]")
_HALF = (
    "half of a character, as of an emoji that was cut in two (a lone surrogate); cut texts between whole characters"
)


def explain(body: bytes | bytearray, error: "JSONDecodeError") -> ApiError:
    """The 400 for a body that orjson refused with `error`."""
    if bytes(body[:3]) == codecs.BOM_UTF8:
        return _encoding("the body begins with a byte order mark (BOM); send UTF-8 without one")
    for mark, name in _WIDE_MARKS.items():  # UTF-32 first: its mark begins with UTF-16's
        if bytes(body[: len(mark)]) == mark:
            return _encoding(f"the body is {name}; send UTF-8, without a byte order mark (BOM)")
    if b"\0" in body[:4]:
        return _encoding("the body is UTF-16 or UTF-32; send UTF-8")
    place = _find_place(body)
    try:
        body.decode()
    except UnicodeDecodeError as fault:
        if _SURROGATE_BYTES.match(body, fault.start):
            return _half(place)
        where = f" in {place}" if place else ""
        return _encoding(
            f"the body is not UTF-8: found 0x{body[fault.start]:02x} at byte {fault.start}{where}; "
            "encode it as UTF-8, not as Latin-1 or Windows-1252",
            place,
        )
    if place is not None or "surrogate in" in error.msg:
        return _half(place)
    return ApiError(400, f"the body is not JSON (at character {error.pos})", code="invalid_json")


def _encoding(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_encoding")


def _half(place: str | None) -> ApiError:
    return ApiError(400, f"{place or 'a text'} holds {_HALF}", param=place, code="invalid_unicode")


def _find_place(body: bytes | bytearray) -> str | None:
    """The place of the first string that is no Unicode text, as input[3] or user; None without one."""
    if len(body) > _LOOKED_INTO_BYTES:
        return None
    try:
        document = json.loads(body.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return next((place for place, text in _strings(document) if _is_broken(text)), None)


def _strings(document: object) -> Iterator[tuple[str, str]]:
    """Every string with the field or the item of a field that holds it; nothing deeper than a request is."""
    for name, value in document.items() if isinstance(document, dict) else ():
        for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            place = printable(name) if index is None else f"{printable(name)}[{index}]"
            for text in item.values() if isinstance(item, dict) else [item]:
                if isinstance(text, str):
                    yield place, text


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
