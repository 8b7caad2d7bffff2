"""Linear layers for the CPU: two ways to multiply by the same weights, as they lie in the file.

`WeightsInPlace` stores a weight as (1, out, in), the layout of a checkpoint, and multiplies x by its
transpose. `WeightsFirst` turns the product round, so that the weight is the left operand:

    y = x W^T + b      ->      y = (W x^T)^T + b

A short text is bandwidth bound: 16 tokens use every weight 16 times, so the time is that of reading
1.2 GB. onnxruntime's CPU GEMM packs its right operand, and with a handful of rows it reads packed weights
at about half of the memory's bandwidth; a left operand it reads row by row, as it lies. From some two
hundred rows on the usual way is the faster one (figures: bench/results). x^T costs nothing (transB), y^T is
turned back by one Transpose, and between the two layers of an MLP not even that, for an elementwise
function does not care, nor does a gate that multiplies the outputs of two layers. An adapter's two
small products are turned round with the layer that they are added to.

The leading 1 is there because onnxruntime (1.31) packs a constant right operand of two dimensions when a
session is opened: four seconds, and a private copy of all weights. Of three dimensions it does not, so a
session opens in no time, its weights stay memory-mapped, and a second process shares them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import Recorder, array_of, input_of, only_user
from edgeclip_graph.lazy import Turned, derive
from edgeclip_graph.linear import linear_layers
from edgeclip_graph.operators import CONTRIB, FUSED_PRODUCT

ELEMENTWISE = ("Gelu",)


class WeightsInPlace(InPlacePass):
    """MatMul(x, W) + b with a constant W (in, out) and x of two or three dimensions -> x times (1, out, in)^T, + b.

    Precondition: there is such a MatMul. Postcondition: no MatMul has constant weights.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace every linear layer."""
        record = Recorder(model.graph)
        for layer in linear_layers(model.graph):
            dimensions = len(layer.x.shape or ())
            if dimensions not in (2, 3):
                raise PreconditionError(f"MatMul {layer.matmul.name} is no linear layer of rows")
            stored = derive(model.graph, f"{layer.name}_in_place", layer.weight_value, Turned())
            product = record.op(FUSED_PRODUCT, layer.x, stored, domain=CONTRIB, transB=1)  # (1, R, N) or (B, R, N)
            if dimensions == 2:
                product = record.op("Squeeze", product, record.integers(0))  # (R, N)
            if layer.bias_value is not None:
                product = record.op("Add", product, layer.bias_value)
            _replace(record, layer.nodes, product)
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is a linear layer."""
        if not linear_layers(model.graph):
            raise PreconditionError("no linear layer in the graph")

    def ensures(self, model: ir.Model) -> None:
        """No linear layer is left."""
        if left := _products(model, "MatMul", weights_at=1):
            raise PostconditionError(f"{len(left)} MatMul with constant weights left in the graph")


class WeightsFirst(InPlacePass):
    """What `WeightsInPlace` left -> W times x^T, + b^T, turned back; + (x A) B -> + B^T (A^T x^T) before it is.

    Precondition: there is a product with its weights on the right. Postcondition: there is none.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Turn every linear layer round, then drop the transposes around elementwise functions."""
        record = Recorder(model.graph)
        for product in _products(model, FUSED_PRODUCT, weights_at=1):
            _turn_round(record, product)
        for node in [node for node in model.graph if node.op_type in ELEMENTWISE]:
            _drop_transposes(record, node)
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is a product with its weights on the right."""
        if not _products(model, FUSED_PRODUCT, weights_at=1):
            raise PreconditionError(f"no {FUSED_PRODUCT} with constant weights in the graph")

    def ensures(self, model: ir.Model) -> None:
        """No product has its weights on the right."""
        if left := _products(model, FUSED_PRODUCT, weights_at=1):
            raise PostconditionError(f"{len(left)} {FUSED_PRODUCT} left with constant weights on the right")


def _products(model: ir.Model, op_type: str, weights_at: int) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type and input_of(node, weights_at).is_initializer()]


def _replace(record: Recorder, layer: Sequence[ir.Node], output: ir.Value) -> None:
    """The nodes of a layer, the last first, by what was recorded."""
    last = layer[0]
    ir.convenience.replace_nodes_and_values(record.graph, last, layer, record.take(), [last.outputs[0]], [output])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapter:
    """(x A) B, which is added to a layer's output: A (in, rank), B (rank, out), and the nodes, the sum last."""

    a: ir.Value
    b: ir.Value
    nodes: tuple[ir.Node, ir.Node, ir.Node]


def _adapter_of(add: ir.Node, x: ir.Value) -> _Adapter | None:
    """The adapter of the layer whose bias `add` adds, which takes the same x; None without one."""
    users = [user for user, _ in add.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    (total,) = users
    (other,) = (value for value in total.inputs if value is not add.outputs[0])
    wide = other and other.producer()
    narrow = wide and wide.op_type == "MatMul" and input_of(wide, 0).producer()
    if not wide or not narrow or narrow.op_type != "MatMul" or narrow.inputs[0] is not x:
        return None
    return _Adapter(a=input_of(narrow, 1), b=input_of(wide, 1), nodes=(narrow, wide, total))


def _turn_round(record: Recorder, product: ir.Node) -> None:
    """x W^T + b -> (W x^T)^T + b; where an elementwise function follows, or an adapter, -> (W x^T + b^T)^T.

    A bias costs less as a row: onnxruntime's Add walks along the last axis, which has few entries before the turn.
    """
    squeeze = only_user(product.outputs[0], "Squeeze")
    x, weight = input_of(product, 0), input_of(product, 1)
    turned = record.op(FUSED_PRODUCT, weight, x, domain=CONTRIB, transB=1)  # (1, N, R)
    nodes, row = [product, squeeze], None
    if (add := _bias_of(squeeze)) is not None:
        bias, adapter = input_of(add, 1), _adapter_of(add, x)
        nodes += [add, *(adapter.nodes if adapter else ())]
        if adapter is None and not any(user.op_type in (*ELEMENTWISE, "Mul") for user, _ in add.outputs[0].uses()):
            row = bias
        else:
            column = record.constant(f"{bias.name}_column", array_of(bias)[:, None])
            if adapter is not None:
                narrow = record.op(FUSED_PRODUCT, adapter.a, x, domain=CONTRIB, transA=1, transB=1)  # (rank, R)
                column = record.op("Gemm", adapter.b, narrow, column, transA=1)  # (N, R)
            turned = record.op("Add", turned, column)
    output = record.op("Squeeze", record.op("Transpose", turned, perm=[0, 2, 1]), record.integers(0))
    _replace(record, nodes[::-1], output if row is None else record.op("Add", output, row))


def _bias_of(squeeze: ir.Node) -> ir.Node | None:
    """The Add of a layer's bias to its rows; None for a layer without a bias."""
    users = [user for user, _ in squeeze.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add" or not input_of(users[0], 1).is_initializer():
        return None
    return users[0]


def _drop_transposes(record: Recorder, function: ir.Node) -> None:
    """W f(turned back y)^T -> W f(y): what is turned twice is not turned. A layer and its adapter may take f.

    With a gate, W (f(turned back y) * turned back z)^T, z is not turned either.
    """
    users = [user for user, _ in function.outputs[0].uses()]
    gate = users[0] if [user.op_type for user in users] == ["Mul"] else None
    rows = [input_of(function, 0)]
    if gate is not None:
        rows += [value for value in gate.inputs if value is not None and value is not function.outputs[0]]
    given = (gate or function).outputs[0]
    products = [user for user, _ in given.uses()]
    is_between = all(user.op_type == FUSED_PRODUCT and user.inputs[1] is given for user in products)
    turns = [_turn_of(value) for value in rows]
    if not products or not is_between or not all(turns):
        raise PreconditionError(f"{function.op_type} {function.name} does not stand between two linear layers")
    for value, (squeeze, transpose) in zip(rows, turns, strict=True):
        value.replace_all_uses_with(input_of(transpose, 0))
        record.graph.remove([squeeze, transpose], safe=True)
    for value in (function.outputs[0], given):
        value.shape = input_of(function, 0).shape
    for product in products:
        product.attributes["transB"] = ir.AttrInt64("transB", 0)
        if not input_of(product, 0).is_initializer():  # an adapter's (in, rank), whose product is (1, rank, R) now
            narrow = record.op(FUSED_PRODUCT, *product.inputs, domain=CONTRIB, transA=1)
            _replace(record, [product], record.op("Squeeze", narrow, record.integers(0)))


def _turn_of(rows: ir.Value) -> tuple[ir.Node, ...]:
    """The Squeeze and the Transpose that turned a product back; empty where none did."""
    squeeze = rows.producer()
    transpose = (
        squeeze.inputs[0].producer() if squeeze and squeeze.op_type == "Squeeze" and squeeze.inputs[0] else None
    )
    return (squeeze, transpose) if squeeze and transpose and transpose.op_type == "Transpose" else ()
