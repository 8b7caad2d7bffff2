"""A gated MLP as the sum of parts, each over some of its middle columns: the whole middle is never in memory.

The middle of jina-embeddings-v4's decoder is 11,008 wide: for a text of 8,192 tokens each value of it takes 361 MB,
and three are needed at once. onnxruntime computes a sum's terms one after the other, each with all that it needs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import Recorder, input_of, only_user
from edgeclip_graph.lazy import Columns, Rows, derive
from edgeclip_graph.linear import LinearLayer, linear_layer
from edgeclip_graph.operators import CONTRIB

_SILU = "QuickGelu"
_PART = "_part_"
_BLOCK = 128  # weights that have a scale in common where a narrow graph has them in blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapted:
    """A linear layer without bias, and the product (narrow x B) of an adapter where one is added to it."""

    layer: LinearLayer
    adapter: ir.Node | None
    nodes: Sequence[ir.Node]

    @property
    def output(self) -> ir.Value:
        """What the last node gives."""
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mlp:
    """down(silu(gate x) * up x)."""

    gate: _Adapted
    silu: ir.Node
    up: _Adapted
    product: ir.Node
    down: _Adapted

    @property
    def width(self) -> int:
        """The number of middle columns."""
        return self.down.layer.shape[0]


def whole_weight(name: str) -> str:
    """The name of the weight that a part of this name was cut of; that name itself for a whole one."""
    return name.rpartition(_PART)[0] or name


class DivideMlp(InPlacePass):
    """down(silu(gate x) * up x) -> the sum of the same over parts of the middle, adapters and all.

    Precondition: there is such an MLP. Postcondition: none has more middle columns than its share.
    """

    def __init__(self, parts: int) -> None:
        super().__init__()
        self._parts = parts
        self._widest = 0

    def call(self, model: ir.Model) -> PassResult:
        """Divide every MLP."""
        for mlp in _mlps(model.graph):
            parts = _bounds(mlp.width, self._parts)
            self._widest = max(self._widest, *(stop - start for start, stop in parts))
            _divide(model.graph, mlp, parts)
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is an MLP."""
        if not _mlps(model.graph):
            raise PreconditionError("no gated MLP without biases in the graph")

    def ensures(self, model: ir.Model) -> None:
        """Every SiLU is followed by a part, whose product with `down` is added to another."""
        if left := [mlp for mlp in _mlps(model.graph) if mlp.width > self._widest]:
            raise PostconditionError(f"{len(left)} gated MLP left whole")


def _mlps(graph: ir.Graph) -> list[_Mlp]:
    return [mlp for node in graph if node.op_type == _SILU and (mlp := _mlp(node)) is not None]


def _mlp(silu: ir.Node) -> _Mlp | None:
    product = only_user(silu.outputs[0], "Mul")
    (other,) = (value for value in product.inputs if value is not silu.outputs[0])
    gate, up, layer = _adapted(silu.inputs[0]), _adapted(other), _find(product)
    if gate is None or up is None or layer is None or layer.add is not None:
        return None
    down: _Adapted | None = _Adapted(layer=layer, adapter=None, nodes=(layer.matmul,))
    if len(product.outputs[0].uses()) > 1:  # an adapter's A takes the middle too
        down = _adapted(only_user(layer.output, "Add").outputs[0])
    return None if down is None else _Mlp(gate=gate, silu=silu, up=up, product=product, down=down)


def _find(product: ir.Node) -> LinearLayer | None:
    """The linear layer that takes a product."""
    found = [layer for user, _ in product.outputs[0].uses() if (layer := linear_layer(user)) is not None]
    return found[0] if len(found) == 1 else None


def _adapted(value: ir.Value | None) -> _Adapted | None:
    """The layer that gives a value, whether an adapter is added to it or not."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "Add":
        terms = [term.producer() for term in node.inputs if term is not None]
        base = next((term for term in terms if term is not None and linear_layer(term) is not None), None)
        adapter = next((term for term in terms if term is not None and term is not base), None)
        layer = None if base is None else linear_layer(base)
        if layer is None or layer.add is not None or adapter is None or adapter.op_type != "MatMul":
            return None
        return _Adapted(layer=layer, adapter=adapter, nodes=(layer.matmul, adapter, node))
    layer = linear_layer(node)
    return None if layer is None or layer.add is not None else _Adapted(layer=layer, adapter=None, nodes=(node,))


def _bounds(width: int, parts: int) -> list[tuple[int, int]]:
    """The first column of each part, and the one behind its last: whole blocks, where there are enough of them."""
    step = _BLOCK if width % _BLOCK == 0 and width // _BLOCK >= parts else 1
    return list(itertools.pairwise(width // step * part // parts * step for part in range(parts + 1)))


def _divide(graph: ir.Graph, mlp: _Mlp, parts: Sequence[tuple[int, int]]) -> None:
    record = Recorder(graph)
    terms: list[ir.Value] = []
    for number, (start, stop) in enumerate(parts):
        columns, rows = Columns(start, stop), Rows(start, stop)
        gate = _columns_of(record, mlp.gate, columns, number)
        silu = record.op(_SILU, gate, domain=CONTRIB, alpha=mlp.silu.attributes["alpha"].as_float())
        middle = record.op("Mul", silu, _columns_of(record, mlp.up, columns, number))
        middle.dtype, middle.shape = ir.DataType.FLOAT, _narrower(mlp.product.outputs[0], stop - start)
        part = record.op("MatMul", middle, _part(record, mlp.down.layer.weight_value, rows, number))
        if adapter := mlp.down.adapter:  # whole in each part, so that a part needs nothing of another
            a = _part(record, input_of(_narrow_of(adapter)[-1], 1), rows, number)
            wide = record.op("MatMul", record.op("MatMul", middle, a), input_of(adapter, 1))
            part = record.op("Add", part, wide)
        terms.append(part)
    # onnxruntime computes that input of a node first whose own node stands later: the sum so far, and then one part.
    total = reduce(partial(record.op, "Add"), terms)
    down = mlp.down.nodes[::-1]
    narrow = _narrow_of(mlp.down.adapter) if mlp.down.adapter else ()
    removed = [*down, *narrow, mlp.product, mlp.silu, *mlp.gate.nodes[::-1], *mlp.up.nodes[::-1]]
    ir.convenience.replace_nodes_and_values(graph, down[0], removed, record.take(), [mlp.down.output], [total])


def _narrow_of(adapter: ir.Node) -> Sequence[ir.Node]:
    """The product with A of which an adapter's second product is made, last; before it a Split into one part."""
    node = input_of(adapter, 0).producer()
    splits = [node] if node is not None and node.op_type == "Split" and len(node.outputs) == 1 else []
    product = input_of(splits[0], 0).producer() if splits else node
    if product is None or product.op_type != "MatMul":
        raise PreconditionError(f"MatMul {adapter.name} is no adapter's second product")
    return *splits, product


def _columns_of(record: Recorder, adapted: _Adapted, columns: Columns, number: int) -> ir.Value:
    """Some columns of what a layer gives."""
    layer = adapted.layer
    product = record.op("MatMul", layer.x, _part(record, layer.weight_value, columns, number))
    product.dtype, product.shape = ir.DataType.FLOAT, _narrower(layer.output, columns.stop - columns.start)
    if adapter := adapted.adapter:
        some = _part(record, input_of(adapter, 1), columns, number)
        product = record.op("Add", product, record.op("MatMul", input_of(adapter, 0), some))
    return product


def _part(record: Recorder, matrix: ir.Value, form: Columns | Rows, number: int) -> ir.Value:
    """A part of a constant, or of an adapter's array, which is cut when the graph runs."""
    if matrix.const_value is not None:
        return derive(record.graph, f"{matrix.name}{_PART}{number}", matrix, form)
    axis = 0 if isinstance(form, Rows) else 1
    return record.op("Slice", matrix, *map(record.integers, (form.start, form.stop, axis)))


def _narrower(value: ir.Value, width: int) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([*value.shape[:-1], width])
