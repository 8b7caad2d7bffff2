"""Write small ONNX graphs without the onnx package, so that tests of the runtime run where it is not installed.

The numbers of fields are in onnx.proto; tests/graph/test_graph_writer.py holds the bytes against the package's own.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.protobuf import encode_bytes
from edgeclip.manifest import ArrayFacts

# TensorProto.DataType, by numpy's names.
_TYPES = {"float32": 1, "uint8": 2, "int64": 7}
FLOAT = _TYPES["float32"]
_IR_VERSION, _OPSET = 10, 18


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | Sequence[int]) -> bytes:
    """A node, whose attributes are integers or lists of them."""
    return b"".join(
        (
            *(_text(1, name) for name in inputs),
            *(_text(2, name) for name in outputs),
            _text(4, operator),
            *(encode_bytes(5, _attribute(name, value)) for name, value in sorted(attributes.items())),
        )
    )


def save_graph(
    path: Path,
    name: str,
    nodes: Iterable[bytes],
    inputs: Iterable[ArrayFacts],
    outputs: Iterable[ArrayFacts],
    constants: Mapping[str, NDArray[Any]],
) -> None:
    """Write a graph of these nodes, with its constants inside, for opset 18."""
    graph = b"".join(
        (
            *(encode_bytes(1, one) for one in nodes),
            _text(2, name),
            *(encode_bytes(5, _tensor(key, value)) for key, value in constants.items()),
            *(encode_bytes(11, _array(facts)) for facts in inputs),
            *(encode_bytes(12, _array(facts)) for facts in outputs),
        )
    )
    opset = _text(1, "") + _number(2, _OPSET)
    path.write_bytes(_number(1, _IR_VERSION) + encode_bytes(7, graph) + encode_bytes(8, opset))


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, 2)
    return _text(1, name) + b"".join(_number(8, one) for one in value) + _number(20, 7)


def _tensor(name: str, value: NDArray[Any]) -> bytes:
    dims = b"".join(_number(1, size) for size in value.shape)
    return dims + _number(2, _TYPES[value.dtype.name]) + _text(8, name) + encode_bytes(9, value.tobytes())


def _array(facts: ArrayFacts) -> bytes:
    axes = (_number(1, axis) if isinstance(axis, int) else _text(2, axis) for axis in facts.axes)
    shape = b"".join(encode_bytes(1, axis) for axis in axes)
    tensor = _number(1, _TYPES[np.dtype(facts.dtype).name]) + encode_bytes(2, shape)
    return _text(1, facts.name) + encode_bytes(2, encode_bytes(1, tensor))


def _text(number: int, value: str) -> bytes:
    return encode_bytes(number, value.encode())


def _number(number: int, value: int) -> bytes:
    """A field that holds an integer of 64 bits: seven of them in a byte, the lowest first."""
    encoded = bytearray([number << 3]) if number < 16 else bytearray([number << 3 & 0x7F | 0x80, number >> 4])
    value &= 2**64 - 1
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
