"""Remove the test for padding from a CUDA text graph, before onnxruntime opens it.

A text graph for CUDA tests at run time whether any token is padding, with an If around every attention. On a GPU the
result must return to the processor before the layers can go on, and onnxruntime refuses CUDA graphs for a graph with
an If. The caller that forms the batch knows whether it has padding. So this module makes the condition a constant,
and onnxruntime then replaces the If by its branch without a mask.
"""

from dataclasses import dataclass

from edgeclip.engine.protobuf import (
    Field,
    all_values,
    encode_bytes,
    encode_number,
    read_fields,
    read_text,
    read_varint,
)
from edgeclip.errors import BundleError

# onnx.proto's fields (`edgeclip.engine.protobuf`).
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER = 1, 2, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_GRAPH = 1, 6
_TENSOR_DATA_TYPE, _TENSOR_INT64_DATA, _TENSOR_NAME, _TENSOR_RAW_DATA = 2, 7, 8, 9
_BOOL = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmasked:
    """A graph that must not get padding, and the id of the padding token."""

    model: bytes
    pad_id: int


def without_mask(model: bytes) -> Unmasked | None:
    """The text graph with every test for padding replaced by "no padding"; None for a graph that has no such test.

    `model` is a serialized ModelProto whose weights lie in a file beside it. Raises BundleError for bytes that are no
    graph, and for a graph whose test has an unknown form.
    """
    try:
        return _without_mask(model)
    except (IndexError, ValueError) as error:
        raise BundleError(f"the text graph cannot be read ({error}); export the bundle again") from error


def _without_mask(model: bytes) -> Unmasked | None:
    fields = list(read_fields(model))
    graph = [field for part in all_values(fields, _MODEL_GRAPH) for field in read_fields(part)]
    nodes = [list(read_fields(node)) for node in all_values(graph, _GRAPH_NODE)]
    choices = [node for node in nodes if read_text(node, _NODE_OP_TYPE) == "If"]
    conditions = {read_text(node, _NODE_INPUT) for node in choices}
    if not choices or {_then_branch(node) for node in choices} != {"unmasked"}:
        return None
    if len(conditions) != 1:
        raise ValueError(f"its attentions ask {len(conditions)} questions")
    (condition,) = conditions
    kept = [field for field in graph if not _makes(field, condition)]
    if len(kept) != len(graph) - 1:
        raise ValueError(f"{condition} is not made by one node")
    answer = (
        encode_number(_TENSOR_DATA_TYPE, _BOOL)
        + encode_bytes(_TENSOR_NAME, condition.encode())
        + encode_bytes(_TENSOR_RAW_DATA, b"\x01")
    )
    rewritten = b"".join(field.whole for field in kept) + encode_bytes(_GRAPH_INITIALIZER, answer)
    rest = b"".join(field.whole for field in fields if field.number != _MODEL_GRAPH)
    return Unmasked(model=rest + encode_bytes(_MODEL_GRAPH, rewritten), pad_id=_pad_id(graph, nodes))


def _then_branch(node: list[Field]) -> str:
    """The name of the graph that an If runs when its condition holds."""
    for attribute in (list(read_fields(value)) for value in all_values(node, _NODE_ATTRIBUTE)):
        if read_text(attribute, _ATTRIBUTE_NAME) == "then_branch":
            return read_text(list(read_fields(all_values(attribute, _ATTRIBUTE_GRAPH)[0])), _GRAPH_NAME)
    return ""


def _makes(field: Field, name: str) -> bool:
    return field.number == _GRAPH_NODE and name.encode() in all_values(list(read_fields(field.value)), _NODE_OUTPUT)


def _pad_id(graph: list[Field], nodes: list[list[Field]]) -> int:
    """The constant that the test compares the ids with."""
    equals = [all_values(node, _NODE_INPUT) for node in nodes if read_text(node, _NODE_OP_TYPE) == "Equal"]
    if len(equals) != 1:
        raise ValueError(f"{len(equals)} comparisons where the ids are compared with the padding's")
    for tensor in (list(read_fields(value)) for value in all_values(graph, _GRAPH_INITIALIZER)):
        if read_text(tensor, _TENSOR_NAME).encode() in equals[0]:
            if raw := all_values(tensor, _TENSOR_RAW_DATA):
                return int.from_bytes(raw[0], "little", signed=True)
            return read_varint(all_values(tensor, _TENSOR_INT64_DATA)[0], 0)[0]
    raise ValueError("the padding's id is not in it")
