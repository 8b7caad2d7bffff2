"""Find the channels that a graph's linear layers share, so that they can be mixed or scaled without another answer.

Some layers write channels (their weights' columns), others read them (their weights' rows). Where nothing stands
between but what treats all channels alike, the channels can be changed in the weights of both, exactly:

| channels | writers                                   | between                   | readers            |
| -------- | ----------------------------------------- | ------------------------- | ------------------ |
| residual | token table, o, down, patches             | sums, RMSNorm             | q, k, v, gate, up  |
| value    | v                                         | attention, head by head   | o                  |
| product  | up                                        | times silu(gate)          | down               |

An adapter's factors read and write beside each layer; they are inputs of the graph, so what must become of them is
named by the input.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PreconditionError

from edgeclip_graph.frame import array_of, input_of, store
from edgeclip_graph.lazy import InPieces, lazy
from edgeclip_graph.linear import width_of
from edgeclip_graph.operators import ATTENTION, CAUSAL_ATTENTION, RMS_NORM

Array = NDArray[Any]
Edit = Callable[[Array], Array]
# As a trace has them, and as a graph for the CPU does.
RMS_NORMS = (RMS_NORM, "RMSNormalization")
ATTENTIONS = (ATTENTION, CAUSAL_ATTENTION, "MultiHeadAttention", "GroupQueryAttention")
# What moves or chooses rows, and leaves the channels of each as they are: where the last axis stays the last.
_MOVING = ("Reshape", "Gather", "Slice", "Squeeze", "Unsqueeze")
_ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Use:
    """An input of a node: a constant, or an input of the graph, perhaps cut. `rows` and `columns` of it count."""

    node: ir.Node
    index: int
    columns: slice = field(default_factory=lambda: _ALL)
    rows: slice = field(default_factory=lambda: _ALL)

    @property
    def value(self) -> ir.Value:
        """The constant or the graph's input."""
        value = input_of(self.node, self.index)
        return value if (cut := _cut_of(value)) is None else input_of(cut, 0)

    @property
    def is_constant(self) -> bool:
        """Whether it is no input of the graph."""
        return self.value.is_initializer()


@dataclass(slots=True)
class Edits:
    """What becomes of constants, and of the arrays that are fed: functions that are applied one after the other."""

    constants: dict[tuple[ir.Node, int], list[Edit]] = field(default_factory=dict)
    fed: dict[str, list[Edit]] = field(default_factory=dict)
    _added: set[tuple[str, str, str, Edit]] = field(default_factory=set)

    def add(self, use: Use, edit: Edit) -> None:
        """Apply `edit` to what is used, after what was added before; once to an array that several nodes take."""
        if not use.is_constant:
            key = (str(use.value.name), str(use.rows), str(use.columns), edit)
            if key in self._added:
                return
            self._added.add(key)
        if (use.rows, use.columns) != (_ALL, _ALL):
            edit = _within(use.rows, use.columns, edit)
        if use.is_constant:
            self.constants.setdefault((use.node, use.index), []).append(edit)
        else:
            self.fed.setdefault(str(use.value.name), []).append(edit)

    def edited(self, use: Use) -> Array:
        """The used columns of a constant, as they are edited so far."""
        array = array_of(use.value)
        for edit in self.constants.get((use.node, use.index), ()):
            array = edit(array)
        return array[..., use.columns]

    def apply(self, graph: ir.Graph) -> None:
        """Put constants that are computed when they are read in place of the edited ones."""
        for number, ((node, index), edits) in enumerate(self.constants.items()):
            value = input_of(node, index)
            if value.const_value is None or value.dtype is None or value.shape is None:
                raise PreconditionError(f"{value.name} holds no constant")
            is_shared = len(list(value.uses())) > 1
            name = f"{value.name}_{number}" if is_shared else str(value.name)
            tensor = _edited(value.const_value, edits, name)
            if is_shared:
                node.replace_input_with(index, store(graph, tensor))
            else:
                value.const_value = tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """The residual stream: what writes it, and where it is entered by what is no layer.

    `norms` read it, and nothing else does.
    """

    width: int
    writers: Sequence[Use]
    entries: Sequence[ir.Value]
    norms: Sequence[ir.Node]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What reads a value: weights with `times` rows for each channel, and other uses, which need it as it was."""

    weights: Sequence[Use]
    others: Sequence[ir.Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """Channels between two layers: columns of what writes them, rows of what reads them.

    A reader may have several rows for a channel: `spread` makes (channels,) into (rows,). `x` is what is read.
    """

    writers: Sequence[Use]
    readers: Sequence[Use]
    x: ir.Value
    spread: Edit


def edit_fed(arrays: Mapping[str, Array], fed: Mapping[str, Sequence[Edit]]) -> dict[str, Array]:
    """Arrays of a feed as a turned graph takes them: an adapter's are others, the rest is the same."""
    changed = dict(arrays)
    for name in fed.keys() & arrays.keys():
        for edit in fed[name]:
            changed[name] = edit(changed[name])
        changed[name] = np.ascontiguousarray(changed[name], dtype=np.float32)
    return changed


def find_residual(graph: ir.Graph) -> Residual:
    """The residual stream; PreconditionError where there is none, or something else reads it."""
    norms = [node for node in graph if node.op_type in RMS_NORMS and input_of(node, 1).is_initializer()]
    widths = {width_of(input_of(norm, 1)) for norm in norms}
    if len(widths) != 1:
        raise PreconditionError(f"RMSNorms of {sorted(widths)} channels in the graph, wanted one width")
    writers: list[Use] = []
    entries: list[ir.Value] = []
    members: dict[ir.Value, None] = {}
    waiting = [input_of(norm, 0) for norm in norms]
    while waiting:
        value = waiting.pop()
        if value in members:
            continue
        members[value] = None
        node = value.producer()
        if node is None or value.is_initializer():
            entries.append(value)
        elif node.op_type == "Add":
            for index, one in enumerate(node.inputs):
                assert one is not None
                if one.is_initializer() and len(one.shape or ()) == 1:
                    writers.append(Use(node, index))
                else:
                    waiting.append(one)
        elif node.op_type == "Where":
            waiting += [input_of(node, 1), input_of(node, 2)]
        elif node.op_type == "MatMul" and (use := _weight_of(node)) is not None:
            writers.append(use)
        elif _adds_product(node):
            writers.append(Use(node, 1))
            waiting.append(input_of(node, 2))
        elif node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
            if input_of(node, 0).is_initializer():
                writers.append(Use(node, 0))
            else:
                waiting.append(input_of(node, 0))
        else:
            entries.append(value)
    for value in members:
        for user, index in value.uses():
            is_inside = any(output in members for output in user.outputs)
            if not is_inside and not (user in norms and index == 0):
                raise PreconditionError(f"{value.name} of the residual stream goes to {user.op_type}")
        if value.is_graph_output():
            raise PreconditionError(f"{value.name} of the residual stream is an output of the graph")
    return Residual(width=widths.pop(), writers=writers, entries=entries, norms=norms)


def read_by(value: ir.Value, width: int) -> Reading:
    """What reads a value of `width` channels, also after rows were moved, chosen or summed."""
    weights: list[Use] = []
    others: list[ir.Value] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        taken: list[Use] = []
        passed: list[ir.Value] = []
        is_other = one.is_graph_output()
        for node, index in one.uses():
            if node.op_type == "MatMul" and index == 0 and (use := _weight_of(node)) is not None:
                taken.append(use)
            elif _passes(node, index, width):
                passed.append(node.outputs[0])
            else:
                is_other = True
        if is_other and width_of(one) != width:
            raise PreconditionError(f"{one.name} has {width_of(one)} channels, and not only layers read it")
        others += [one] if is_other else []
        weights += taken
        waiting += passed
    return Reading(weights=weights, others=others)


def find_values(graph: ir.Graph) -> Iterator[Between]:
    """The channels between v and o of each attention."""
    for node in graph:
        if node.op_type not in ATTENTIONS:
            continue
        heads = node.attributes["num_heads"].as_int()
        kv_heads = node.attributes.get_int("kv_num_heads", heads)
        writers = list(_written_by(input_of(node, 2)))
        if not writers:
            continue
        channels = _count(writers[0])
        reading = read_by(node.outputs[0], channels // kv_heads * heads)
        if not reading.others:
            yield Between(
                writers=writers,
                readers=reading.weights,
                x=node.outputs[0],
                spread=_repeating(heads, kv_heads),
            )


def find_products(graph: ir.Graph) -> Iterator[Between]:
    """The channels between up and down of each MLP whose activation is multiplied with up."""
    for node in graph:
        if node.op_type != "Mul" or None in node.inputs:
            continue
        sides = [input_of(node, index) for index in range(2)]
        up = [one for one in sides if not _is_activation(one)]
        if len(up) != 1:
            continue
        writers = list(_written_by(up[0]))
        if not writers:
            continue
        reading = read_by(node.outputs[0], _count(writers[0]))
        if reading.weights and not reading.others:
            yield Between(writers=writers, readers=reading.weights, x=node.outputs[0], spread=lambda array: array)


def _written_by(value: ir.Value) -> Iterator[Use]:
    """What writes a value's channels: weights, biases, adapters; nothing where something else reads it too."""
    columns = slice(None)
    waiting = [value]
    found: list[Use] = []
    while waiting:
        one = waiting.pop()
        node = one.producer()
        if node is None or len(list(one.uses())) != 1:
            return
        if node.op_type in _MOVING and not _is_lengthwise(node):
            waiting.append(input_of(node, 0))
        elif node.op_type == "Split" and columns == slice(None) and width_of(one):
            start = sum(width_of(output) for output in node.outputs[: list(node.outputs).index(one)])
            columns = slice(start, start + width_of(one))
            waiting.append(input_of(node, 0))
        elif node.op_type == "Add":
            for index, other in enumerate(node.inputs):
                assert other is not None
                if other.is_initializer():
                    found.append(Use(node, index, columns))
                else:
                    waiting.append(other)
        elif node.op_type == "MatMul" and (use := _weight_of(node, columns)) is not None:
            found.append(use)
        elif _adds_product(node):
            found.append(Use(node, 1, columns))
            waiting.append(input_of(node, 2))
        else:
            return
    # Weights first: they say how many channels there are.
    yield from sorted(found, key=lambda use: (use.node.op_type != "MatMul", not use.is_constant))


def _count(use: Use) -> int:
    start, stop, _ = use.columns.indices(width_of(use.value))
    return stop - start


def _is_weight(value: ir.Value) -> bool:
    return len(value.shape or ()) == 2 and (value.is_initializer() or value.is_graph_input())


def _weight_of(node: ir.Node, columns: slice = _ALL) -> Use | None:
    """The weight that a product multiplies with, a constant or an adapter's, whole or cut; None for anything else."""
    value = input_of(node, 1)
    if _is_weight(value):
        return Use(node, 1, columns)
    if (cut := _cut_of(value)) is None or columns != _ALL:
        return None
    start, stop, axis = (int(array_of(input_of(cut, index))[0]) for index in (1, 2, 3))
    some = slice(start, stop)
    return Use(node, 1, rows=some) if axis == 0 else Use(node, 1, columns=some)


def _cut_of(value: ir.Value) -> ir.Node | None:
    """The Slice along one axis that gives a part of an adapter's array."""
    node = value.producer()
    if node is None or node.op_type != "Slice" or len(node.inputs) != 4 or not input_of(node, 0).is_graph_input():
        return None
    is_constant = all(input_of(node, index).is_initializer() for index in (1, 2, 3))
    return node if is_constant and len(input_of(node, 0).shape or ()) == 2 else None


def _adds_product(node: ir.Node) -> bool:
    """Whether a node is a product with weights that is added to a sum: an adapter's second one."""
    plain = not any(node.attributes.get_int(name, 0) for name in ("transA", "transB"))
    scales = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    is_sum = node.op_type == "Gemm" and len(node.inputs) == 3 and node.inputs[2] is not None
    return is_sum and plain and scales == [1.0, 1.0] and _is_weight(input_of(node, 1))


def _is_activation(value: ir.Value) -> bool:
    """Whether a value is silu(x), sigmoid(x) or gelu(x); silu as one node, or as x * sigmoid(x)."""
    node = value.producer()
    if node is None or node.op_type != "Mul":
        return node is not None and node.op_type in ("QuickGelu", "Sigmoid", "Gelu")
    sides = [input_of(node, index) for index in range(2)]
    gates = [gate for one in sides if (gate := one.producer()) is not None and gate.op_type == "Sigmoid"]
    return any(input_of(gate, 0) in sides for gate in gates)


def _passes(node: ir.Node, index: int, width: int) -> bool:
    """Whether a node leaves the channels of each row as they are: it moves or chooses rows, or sums them."""
    if not node.outputs[0].shape or width_of(node.outputs[0]) % width or not width_of(node.outputs[0]):
        return False
    if node.op_type == "MatMul":
        return index == 1 and not input_of(node, 0).is_initializer()
    return node.op_type in _MOVING and index == 0 and not _is_lengthwise(node)


def _is_lengthwise(node: ir.Node) -> bool:
    """Whether what moves rows may cut or move channels too."""
    x = input_of(node, 0)
    rank, given = len(x.shape or ()), len(node.outputs[0].shape or ())
    if node.op_type == "Reshape":
        return not rank or not given or width_of(node.outputs[0]) % max(1, width_of(x)) != 0
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) in (-1, rank - 1)
    axes = node.inputs[3 if node.op_type == "Slice" else 1]
    if axes is None or axes.const_value is None:
        return True
    last = given - 1 if node.op_type == "Unsqueeze" else rank - 1
    return any(int(axis) in (-1, last) for axis in axes.const_value.numpy())


def _repeating(heads: int, kv_heads: int) -> Edit:
    def repeat(array: Array) -> Array:
        return np.repeat(array.reshape(kv_heads, -1), heads // kv_heads, axis=0).reshape(-1)

    return repeat


def _within(rows: slice, columns: slice, edit: Edit) -> Edit:
    def apply(array: Array) -> Array:
        changed = array.copy(order="K")
        some = (rows, columns) if array.ndim == 2 else columns
        changed[some] = edit(array[some])
        return changed

    return apply


def _edited(source: ir.TensorProtocol, edits: Sequence[Edit], name: str) -> ir.TensorProtocol:
    """A constant that is edited when it is read. What comes in pieces is a table: each row is edited alone."""

    def edit_all(array: Array) -> Array:
        for edit in edits:
            array = edit(array)
        return array

    if isinstance(source, InPieces):
        return InPieces(name, source.dtype, source.shape.numpy(), lambda: map(edit_all, source.pieces()))
    return lazy(name, source.dtype, source.shape.numpy(), lambda: edit_all(source.numpy()))
