"""A graph's portable form: its trace as it was before it was lowered for one target, without weights of its own.

A bundle's graph is lowered for one target, and weights may lie in its data in forms that suit that target. The
portable form beside it holds the structure of the trace (about a megabyte) and names the weights in the same data.
Where a weight lies there in another form, nodes say how it is made again: Squeeze and Transpose of what was turned,
Concat of parts. So code that rewrites a bundle's graph starts from the trace and lowers it by the same passes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError, common

from edgeclip_graph.frame import Recorder, array_of, input_of, store
from edgeclip_graph.lazy import Columns, Origin, Rows, Turned, TurnedPart, lazy, origin_of
from edgeclip_graph.shared_data import PointToData
from edgeclip_graph.traits import Traits, stored_traits

_TRAITS = "edgeclip.traits"
# What a weight is made again by.
_REMAKING = ("Squeeze", "Transpose", "Concat")


def portable_path(graph: Path) -> Path:
    """The file of a graph's portable form: text.portable.onnx beside text.onnx."""
    return graph.with_suffix(".portable.onnx")


def save_portable(trace: ir.Model, lowered: ir.Model, graph: Path, traits: Traits) -> Path:
    """Write the portable form of a graph that was saved at `graph`.

    `trace` is the trace before it was lowered, a clone that shares its tensors with `lowered`; it is changed. Raises
    what onnx_ir's passes raise where the data hold no form of a weight.
    """
    for step in (RemakeWeights(lowered), PointToData(lowered, graph), common.ClearMetadataAndDocStringPass()):
        trace = step(trace).model
    trace.metadata_props[_TRAITS] = json.dumps(stored_traits(traits))
    path = portable_path(graph)
    ir.save(trace, path)
    return path


def load_portable(path: Path) -> tuple[ir.Model, Traits]:
    """The trace with constant weights, which are read whenever they are asked for, and its traits.

    Raises PassError or InvariantError of onnx_ir for a file that is no portable form.
    """
    model = ir.load(path)
    if (traits := model.metadata_props.pop(_TRAITS, None)) is None:
        raise PreconditionError(f"{path.name} is no portable graph")
    return FoldWeights()(model).model, Traits(**json.loads(traits))


class RemakeWeights(InPlacePass):
    """Makes every weight of which a lowered graph holds another form a value that is computed from that form.

    Postcondition: each weight of the trace of which the lowered graph holds only other forms is computed from them.
    """

    def __init__(self, lowered: ir.Model) -> None:
        super().__init__()
        self._held = {id(value.const_value) for value in lowered.graph.initializers.values()}
        self._forms: dict[int, list[tuple[ir.TensorProtocol, Origin]]] = {}
        for value in lowered.graph.initializers.values():
            if (origin := origin_of(value)) is not None and value.const_value is not None:
                self._forms.setdefault(id(origin.source), []).append((value.const_value, origin))

    def call(self, model: ir.Model) -> PassResult:
        """Put nodes in place of the weights, before all others."""
        graph = model.graph
        record = Recorder(graph)
        remade = self._weights(graph)
        for value in remade:
            forms = self._forms[id(value.const_value)]
            name = graph.initializers.pop(str(value.name)).name
            result = _remake(record, value, forms)
            result.name, result.type, result.shape = name, value.type, value.shape
            value.replace_all_uses_with(result)
        nodes = record.take()
        if nodes:
            graph.insert_before(graph[0], nodes)
        return PassResult(model, modified=bool(remade))

    def ensures(self, model: ir.Model) -> None:
        """Check that no such weight is left."""
        if left := self._weights(model.graph):
            raise PostconditionError(f"{len(left)} weights lie in another form in the data")

    def _weights(self, graph: ir.Graph) -> list[ir.Value]:
        return [
            value
            for value in graph.initializers.values()
            if id(value.const_value) not in self._held and id(value.const_value) in self._forms
        ]


class FoldWeights(InPlacePass):
    """Makes what is computed from constants alone, by the nodes that make weights again, a constant: computed when it
    is read, and not kept.

    Postcondition: no such node reads constants alone.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Fold nodes in their order, so that what a folded node gives is a constant for the next."""
        folded = []
        for node in list(model.graph):
            if _is_remaking(node):
                _fold(model.graph, node)
                folded.append(node)
        common.RemoveUnusedNodesPass()(model)
        return PassResult(model, modified=bool(folded))

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing is left to fold."""
        if left := [node for node in model.graph if _is_remaking(node)]:
            raise PostconditionError(f"{len(left)} nodes make weights again")


def _remake(record: Recorder, weight: ir.Value, forms: Sequence[tuple[ir.TensorProtocol, Origin]]) -> ir.Value:
    """Record the nodes that make a weight of its forms; PreconditionError where parts of it are missing."""
    parts: dict[int, tuple[Columns | Rows, ir.Value]] = {}
    for tensor, origin in forms:
        if isinstance(origin.form, Turned):
            return _turn_back(record, tensor)
        if isinstance(origin.form, TurnedPart):
            parts.setdefault(origin.form.part.start, (origin.form.part, _turn_back(record, tensor)))
        else:
            parts[origin.form.start] = (origin.form, store(record.graph, tensor))
    axis = 0 if isinstance(next(iter(parts.values()))[0], Rows) else -1
    width = weight.const_value.shape.numpy()[axis] if weight.const_value is not None else 0
    values, end = [], 0
    for start in sorted(parts):
        part, value = parts[start]
        values += [_zeros(record, weight, slice(end, start))] if start > end else []
        values.append(value)
        end = part.stop
    values += [_zeros(record, weight, slice(end, width))] if end < width else []
    return record.op("Concat", *values, axis=axis)


def _turn_back(record: Recorder, tensor: ir.TensorProtocol) -> ir.Value:
    """The weight (in, out) of which a tensor is the turned form."""
    rows = record.op("Squeeze", store(record.graph, tensor), record.integers(0))
    rows.dtype, rows.shape = tensor.dtype, ir.Shape(tensor.shape.numpy()[1:])
    turned = record.op("Transpose", rows, perm=[1, 0])
    turned.dtype, turned.shape = tensor.dtype, ir.Shape(tensor.shape.numpy()[:0:-1])
    return turned


def _zeros(record: Recorder, weight: ir.Value, columns: slice) -> ir.Value:
    """What no part holds, because it is 0."""
    if array_of(weight)[..., columns].any():
        raise PreconditionError(f"{weight.name}: entries {columns.start} to {columns.stop} are not in the data")
    shape = (*array_of(weight).shape[:-1], columns.stop - columns.start)
    return record.constant("zeros_" + "_".join(map(str, shape)), np.zeros(shape, np.float32))


def _is_remaking(node: ir.Node) -> bool:
    return (
        node.op_type in _REMAKING
        and not node.domain
        and input_of(node, 0).dtype == ir.DataType.FLOAT
        and all(value is not None and value.const_value is not None for value in node.inputs)
    )


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    """Put a constant in place of what a node gives."""
    output = node.outputs[0]
    inputs = [input_of(node, index) for index in range(len(node.inputs))]
    tensors = [value.const_value for value in inputs]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    op_type, name = node.op_type, str(output.name)

    def compute() -> NDArray[Any]:
        arrays = [tensor.numpy() for tensor in tensors if tensor is not None]
        return _evaluate(op_type, arrays, attributes)

    if inputs[0].dtype is None or output.shape is None:
        raise PreconditionError(f"{name} has no type or shape")
    tensor = lazy(name, inputs[0].dtype, output.shape.numpy(), compute)
    output.name = None
    output.replace_all_uses_with(store(graph, tensor))
    graph.remove(node, safe=True)


def _evaluate(op_type: str, arrays: Sequence[NDArray[Any]], attributes: Mapping[str, Any]) -> NDArray[Any]:
    """The result of one of the nodes that make weights again."""
    if op_type == "Squeeze":
        return np.squeeze(arrays[0], axis=tuple(arrays[1].tolist()))
    if op_type == "Transpose":
        return np.transpose(arrays[0], attributes["perm"])
    return np.concatenate(arrays, axis=attributes["axis"])
