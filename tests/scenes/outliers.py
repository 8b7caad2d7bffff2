"""Towers with channels far larger than the rest that answer as they did: other weights take back what was added.

Each change is exact in real numbers; in fp32 the answers move by 1e-6 or so. Plain graphs are changed, in place.
"""

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip_graph.linear import LinearLayer, linear_layers

Draw = np.random.Generator
Change = Callable[[ir.Model, float, Draw], None]

_CHANNELS = 3


def enlarge_norms(model: ir.Model, factor: float, draw: Draw) -> None:
    """Channels of every norm that linear layers alone read, times `factor`; the layers' weights over it."""
    for norm, layers in _norms_of_layers(model):
        users = {user.op_type for user, _ in norm.outputs[0].uses()}
        if not users <= {"MatMul", "Slice"}:
            continue  # a residual reads it too
        gain, shift = (_name(norm.inputs[index]) for index in (1, 2))
        chosen = _choose(len(_array(model, gain)), draw)
        for name in (gain, shift):
            _scale(model, name, chosen, factor)
        for layer in layers:
            _scale(model, layer.name, chosen, 1 / factor)


def enlarge_values(model: ir.Model, factor: float, draw: Draw) -> None:
    """Channels of the text tower's values, times `factor`: attention passes them on to the weights that undo it."""
    for layer in linear_layers(model.graph):
        block = layer.name.removesuffix("out.weight")
        if block != layer.name:
            width = len(layer.weight)
            chosen = _choose(width, draw)
            for name in ("qkv.weight", "qkv.bias"):
                _scale(model, block + name, (..., 2 * width + chosen), factor)
            _scale(model, layer.name, chosen, 1 / factor)


def offset_norms(model: ir.Model, size: float, draw: Draw) -> None:
    """Channels of the text tower's post-norms further from zero by `size`, whatever the text (massive activations).

    What such a norm gives is read by a layer and by the residual round it: the bias of the layer, and that of the one
    that the residual is added to, take it back.
    """
    for norm, (reader, *_) in _norms_of_layers(model):
        given = norm.outputs[0]
        (residual,) = (user for user, _ in given.uses() if user.op_type == "Add")
        (added,) = (value for value in residual.inputs if value is not given)
        (writer,) = (layer for layer in linear_layers(model.graph) if layer.output is added)
        shift = _name(norm.inputs[2])
        offset = np.zeros(len(_array(model, shift)))
        offset[_choose(len(offset), draw)] = size * draw.choice([-1, 1], _CHANNELS)
        taken_back = offset @ _array(model, reader.name)
        for name, change in (
            (shift, offset),
            (_name(reader.bias_value), -taken_back),
            (_name(writer.bias_value), -offset),
        ):
            _store(model, name, _array(model, name) + change)


def _norms_of_layers(model: ir.Model) -> Iterator[tuple[ir.Node, list[LinearLayer]]]:
    """Each norm with the linear layers that read it, some of them a part of its rows."""
    readers: dict[ir.Node, list[LinearLayer]] = {}
    for layer in linear_layers(model.graph):
        producer = layer.x.producer()
        if producer is not None and producer.op_type == "Slice" and producer.inputs[0] is not None:
            producer = producer.inputs[0].producer()
        if producer is not None and producer.op_type == "LayerNormalization":
            readers.setdefault(producer, []).append(layer)
    yield from readers.items()


def _choose(width: int, draw: Draw) -> NDArray[np.int64]:
    return draw.choice(width, _CHANNELS, replace=False)


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return str(value.name)


def _array(model: ir.Model, name: str) -> NDArray[np.float64]:
    stored = model.graph.initializers[name].const_value
    assert stored is not None
    return stored.numpy().astype(np.float64)


def _scale(model: ir.Model, name: str, where: object, factor: float) -> None:
    array = _array(model, name)
    array[where] *= factor  # type: ignore[index]
    _store(model, name, array)


def _store(model: ir.Model, name: str, array: NDArray[np.float64]) -> None:
    model.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
