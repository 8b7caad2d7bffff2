"""A text graph for texts without padding: the attention's choice, made before onnxruntime opens the graph.

A text graph for CUDA asks at run time whether anything is padding, by an If round every attention
(`edgeclip_export.passes.attention`). On a GPU that answer must come back to the processor before the layers can go
on, and onnxruntime refuses CUDA graphs for a graph with an If. But who forms the batch knows the answer. So the
condition is made a constant here, and onnxruntime then puts the branch without a mask in the If's place.

Protobuf's wire format is read here, as far as this needs it, because the runtime does without the onnx package:
https://protobuf.dev/programming-guides/encoding and onnx.proto's field numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from edgeclip.errors import BundleError

# onnx.proto's fields.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER = 1, 2, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_GRAPH = 1, 6
_TENSOR_DATA_TYPE, _TENSOR_INT64_DATA, _TENSOR_NAME, _TENSOR_RAW_DATA = 2, 7, 8, 9
_BOOL = 9
# Wire types.
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmasked:
    """A graph that must not be given padding, and the id that is padding."""

    model: bytes
    pad_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    number: int
    value: bytes  # of a length-delimited field its content, of a number the number's bytes
    whole: bytes  # with its tag, to be written again


def without_mask(model: bytes) -> Unmasked | None:
    """The text graph with every "is nothing hidden?" answered yes; None for a graph that does not ask.

    `model` is a serialized ModelProto whose weights lie in a file beside it. Raises BundleError for what is no graph,
    and for one that asks in a way that is not known here.
    """
    try:
        return _without_mask(model)
    except (IndexError, ValueError) as error:
        raise BundleError(f"the text graph cannot be read ({error}); export the bundle again") from error


def _without_mask(model: bytes) -> Unmasked | None:
    fields = list(_fields(model))
    graph = [field for part in _all(fields, _MODEL_GRAPH) for field in _fields(part)]
    nodes = [list(_fields(node)) for node in _all(graph, _GRAPH_NODE)]
    choices = [node for node in nodes if _text(node, _NODE_OP_TYPE) == "If"]
    conditions = {_text(node, _NODE_INPUT) for node in choices}
    if not choices or {_then_branch(node) for node in choices} != {"unmasked"}:
        return None
    if len(conditions) != 1:
        raise ValueError(f"its attentions ask {len(conditions)} questions")
    (condition,) = conditions
    kept = [field for field in graph if not _makes(field, condition)]
    if len(kept) != len(graph) - 1:
        raise ValueError(f"{condition} is not made by one node")
    answer = (
        _number(_TENSOR_DATA_TYPE, _BOOL)
        + _bytes(_TENSOR_NAME, condition.encode())
        + _bytes(_TENSOR_RAW_DATA, b"\x01")
    )
    rewritten = b"".join(field.whole for field in kept) + _bytes(_GRAPH_INITIALIZER, answer)
    rest = b"".join(field.whole for field in fields if field.number != _MODEL_GRAPH)
    return Unmasked(model=rest + _bytes(_MODEL_GRAPH, rewritten), pad_id=_pad_id(graph, nodes))


def _then_branch(node: list[_Field]) -> str:
    """The name of the graph that an If runs when its condition holds."""
    for attribute in (list(_fields(value)) for value in _all(node, _NODE_ATTRIBUTE)):
        if _text(attribute, _ATTRIBUTE_NAME) == "then_branch":
            return _text(list(_fields(_all(attribute, _ATTRIBUTE_GRAPH)[0])), _GRAPH_NAME)
    return ""


def _makes(field: _Field, name: str) -> bool:
    return field.number == _GRAPH_NODE and name.encode() in _all(list(_fields(field.value)), _NODE_OUTPUT)


def _pad_id(graph: list[_Field], nodes: list[list[_Field]]) -> int:
    """The constant that the ids are compared with."""
    equals = [_all(node, _NODE_INPUT) for node in nodes if _text(node, _NODE_OP_TYPE) == "Equal"]
    if len(equals) != 1:
        raise ValueError(f"{len(equals)} comparisons where the ids are compared with the padding's")
    for tensor in (list(_fields(value)) for value in _all(graph, _GRAPH_INITIALIZER)):
        if _text(tensor, _TENSOR_NAME).encode() in equals[0]:
            if raw := _all(tensor, _TENSOR_RAW_DATA):
                return int.from_bytes(raw[0], "little", signed=True)
            return _varint(_all(tensor, _TENSOR_INT64_DATA)[0], 0)[0]
    raise ValueError("the padding's id is not in it")


def _fields(message: bytes) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        begin = at
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _LENGTH:
            size, begin = _varint(message, at)
            at = begin + size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {kind} at byte {start}")
        if at > len(message):
            raise ValueError(f"cut short at byte {start}")
        yield _Field(number=number, value=message[begin:at], whole=message[start:at])


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _all(fields: list[_Field], number: int) -> list[bytes]:
    return [field.value for field in fields if field.number == number]


def _text(fields: list[_Field], number: int) -> str:
    """The first field of that number; "" without one."""
    return next(iter(_all(fields, number)), b"").decode()


def _number(number: int, value: int) -> bytes:
    return _encode(number << 3 | _VARINT) + _encode(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _encode(number << 3 | _LENGTH) + _encode(len(value)) + value


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
