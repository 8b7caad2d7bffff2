"""Read and change ONNX graphs at the level of protobuf's wire format, because the runtime does not need the onnx
package.

Only what edgeclip uses is here. https://protobuf.dev/programming-guides/encoding; the numbers of fields are in
onnx.proto.
"""

from collections.abc import Iterator
from dataclasses import dataclass

# Wire types.
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of a message, with its bytes as they are."""

    number: int
    value: bytes  # of a length-delimited field its content, of a number the number's bytes
    whole: bytes  # with its tag, to be written again


def read_fields(message: bytes) -> Iterator[Field]:
    """A message's fields in order; ValueError or IndexError for bytes that are no message."""
    at = 0
    while at < len(message):
        start = at
        tag, at = read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        begin = at
        if kind == _VARINT:
            _, at = read_varint(message, at)
        elif kind == _LENGTH:
            size, begin = read_varint(message, at)
            at = begin + size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {kind} at byte {start}")
        if at > len(message):
            raise ValueError(f"cut short at byte {start}")
        yield Field(number=number, value=message[begin:at], whole=message[start:at])


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at this place, and the place where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def all_values(fields: list[Field], number: int) -> list[bytes]:
    """The values of all fields with this number."""
    return [field.value for field in fields if field.number == number]


def read_text(fields: list[Field], number: int) -> str:
    """The text of the first field with this number; "" without one."""
    return next(iter(all_values(fields, number)), b"").decode()


def encode_bytes(number: int, value: bytes) -> bytes:
    """The bytes of a field that holds bytes, a text or a message."""
    return _encode(number << 3 | _LENGTH) + _encode(len(value)) + value


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
