"""Say in words what is wrong with a body that is no JSON, and where.

The parser gives a position in the whole body at best. A client knows its inputs by their index, so the body is looked
through once more for the string at that position, or for the first one with half of a character. Nothing is parsed,
so it takes some milliseconds for the largest body.
"""

import codecs
import re
from typing import TYPE_CHECKING

from edgeclip.serve.api.request_fields import printable
from edgeclip.serve.errors import ApiError
from edgeclip.serve.http.json_tokens import StringToken, strings

if TYPE_CHECKING:
    from orjson import JSONDecodeError

_WIDE_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
               codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip
_SURROGATE_BYTES = re.compile(rb"\xed[\xa0-\xbf]")
# A string without lone surrogates: no escaped half, or two that are a whole.
_WHOLE = re.compile(
    rb'"(?:[^"\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(?!u[dD][89a-fA-F]).)*+"?', re.DOTALL
)
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
    try:
        body.decode()
    except UnicodeDecodeError as fault:
        place = _place_of(next((one for one in strings(body) if one.end > fault.start), None))
        if _SURROGATE_BYTES.match(body, fault.start):
            return _half(place)
        where = f" in {place}" if place else ""
        return _encoding(
            f"the body is not UTF-8: found 0x{body[fault.start]:02x} at byte {fault.start}{where}; "
            "encode it as UTF-8, not as Latin-1 or Windows-1252",
            place,
        )
    if "surrogate in" in error.msg:
        broken = (one for one in strings(body) if not _WHOLE.fullmatch(body, one.begin, one.end))
        return _half(_place_of(next(broken, None)))
    return ApiError(400, f"the body is not JSON (at character {error.pos})", code="invalid_json")


def _encoding(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_encoding")


def _half(place: str | None) -> ApiError:
    return ApiError(400, f"{place or 'a text'} holds {_HALF}", param=place, code="invalid_unicode")


def _place_of(string: StringToken | None) -> str | None:
    return None if string is None or string.place is None else printable(string.place)
