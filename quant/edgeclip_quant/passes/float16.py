"""Rewrite an fp32 graph to fp16, operator by operator; what fp16 cannot hold keeps fp32 between Casts.

fp16 ends at 65504 and has 11 bits, below 6e-5 one fewer with every halving. What stays fp32, and why:

- sums that grow with the input: products with pixels or with a mask (image sums, pooling), reductions, the L2 norm;
- softmax, where it stands by itself (a fused attention's is fp32 inside: onnxruntime's attention_softmax.cu);
- operators whose schemas do not allow fp16, and Casts to float;
- products with an adapter's weights, which are fed: adapters to come may be larger than those that were measured;
- every value whose measured range comes near either end of fp16, with the nodes that make and read it;
- cheap nodes between fp32 ones, which would cost two Casts and a rounding.

LayerNormalization takes its statistics in fp32 whatever its input is, if stash_type is 1 (so the standard says, and
so layer_norm_impl.cu does). onnxruntime's GEMMs add up in fp32. Rotary tables are at most 1, and rounding them once
costs no more than rounding what they turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError, common

from edgeclip_graph.frame import array_of, constant, input_of
from edgeclip_graph.operators import FUSED_ATTENTION
from edgeclip_quant.inputs.value_ranges import scores_of
from edgeclip_quant.passes.operator_types import FillTypes, signature

# A user's input may go four times beyond every sample, cuBLAS may keep partial sums of a product in fp16, and -10000,
# the score of a masked key, is still a half.
LARGEST = 65504 / 4
# Bits go below 2^-14: of a tensor whose largest is this, what is a sixteenth of it has all of them.
SMALLEST = 2.0**-10
_SMALLEST_NORMAL = 2.0**-14
# What the flushing of small weights may cost, beside the largest output: half a step of fp16.
_LOST = 2.0**-11

_SUMS = frozenset({"ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Softmax", "LogSoftmax"})
_PRODUCTS = frozenset({"MatMul", "Gemm"})
MOVES = frozenset({"Concat", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
# Worth two Casts.
_EXPENSIVE = _PRODUCTS | {FUSED_ATTENTION, "If", "LayerNormalization"}

_FULL, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def narrow_to_half(model: ir.Model, ranges: Mapping[str, float]) -> list[str]:
    """Rewrite an fp32 graph for a GPU to fp16, in place; inputs and outputs keep their types.

    `ranges` are those of `measure_ranges` on this graph. Returns the names of the values that keep fp32 because of
    their range, and of the weights that fp16 cannot hold, in the graph's order. Raises what onnx_ir's passes raise.
    """
    FillTypes()(model)
    narrow = NarrowToHalf(ranges)
    narrow(model)
    for step in (common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.NameFixPass()):
        step(model)
    common.TopologicalSortPass()(model)
    return list(narrow.kept)


class NarrowToHalf(InPlacePass):
    """Makes every node fp16 that may and should be, with a Cast wherever the types of two nodes differ.

    Precondition: no fp16 yet, a range for every float value, subgraphs in an If alone. Postcondition: some product is
    fp16, the inputs and outputs have the types they had, every node's types agree with its schema, and there is no
    Cast that undoes another. After a call `kept` has what `narrow_to_half` returns.
    """

    def __init__(self, ranges: Mapping[str, float]) -> None:
        super().__init__()
        self.kept: Sequence[str] = ()
        self._ranges = ranges

    def call(self, model: ir.Model) -> PassResult:
        """Decide, then rewrite."""
        plan = plan_narrowing(model, self._ranges)
        self.kept = plan.kept
        _narrow(model.graph, plan)
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """Check that the graph is fp32 and has its ranges."""
        for node in model.graph.all_nodes():
            for value in (*node.inputs, *node.outputs):
                if value and value.dtype == _HALF:
                    raise PreconditionError(f"{value.name} is fp16 already")
            names = [str(value.name) for value in _computed(node)]
            names += [scores_of(node)] if node.op_type == FUSED_ATTENTION else []
            if missing := [name for name in names if name not in self._ranges]:
                raise PreconditionError(f"no range was measured for {', '.join(missing)}")
            if node.op_type != "If" and _branches(node):
                raise PreconditionError(f"{node.op_type} {node.name} has a subgraph, which only an If may have here")

    def ensures(self, model: ir.Model) -> None:
        """Check that types agree, no Cast undoes another, and something is fp16."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            if value.dtype == _HALF:
                raise PostconditionError(f"{value.name} of the graph became fp16")
        opset = model.graph.opset_imports[""]
        products = 0
        for node in model.graph.all_nodes():
            if node.op_type == "Cast":
                before = input_of(node, 0).producer()
                if before and before.op_type == "Cast" and input_of(before, 0).dtype == node.outputs[0].dtype:
                    raise PostconditionError(f"Cast {node.name} undoes {before.name}")
            elif node.op_type == "If":
                for branch in _branches(node):
                    if [value.dtype for value in branch.outputs] != [value.dtype for value in node.outputs]:
                        raise PostconditionError(f"If {node.name} and its branch {branch.name} give other types")
            else:
                types: dict[str, ir.DataType | None] = {}
                for variable, value in signature(node, opset).slots(node):
                    if types.setdefault(variable, value.dtype) != value.dtype:
                        raise PostconditionError(f"{node.op_type} {node.name} is fp32 and fp16: at {value.name}")
            products += node.op_type in _PRODUCTS and node.outputs[0].dtype == _HALF
        if not products:
            raise PostconditionError("no product of the graph could be made fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The nodes that become fp16, also those of subgraphs, and the names that `narrow_to_half` returns."""

    half: frozenset[ir.Node]
    kept: Sequence[str]


def plan_narrowing(model: ir.Model, ranges: Mapping[str, float]) -> Plan:
    """Decide what becomes fp16 in a graph with these ranges; nothing is changed."""
    opset = model.graph.opset_imports[""]
    half = {
        one
        for node in model.graph
        if not any(_needs_full(one, opset) for one in _inside(node))
        for one in _inside(node)
    }
    half = _without_between(model.graph, half)
    kept: dict[str, None] = {}
    for node in model.graph:
        if node in half and (names := [name for one in _inside(node) for name in _unfit(one, ranges)]):
            kept |= dict.fromkeys(names)
            half -= set(_inside(node))
    return Plan(half=frozenset(_without_between(model.graph, half)), kept=tuple(kept))


def _needs_full(node: ir.Node, opset: int) -> bool:
    """Whether a node must stay fp32, however small its values are."""
    if node.op_type == "If":  # what is inside is asked
        return False
    if node.op_type == "Cast" or node.op_type in _SUMS:
        return True
    if _is_sum_of_counts(node) or _multiplies_by_adapter(node):
        return True
    if node.op_type == "LayerNormalization" and node.attributes.get_int("stash_type", 1) != 1:
        return True
    return not signature(node, opset).takes_half(node)


def _multiplies_by_adapter(node: ir.Node) -> bool:
    """Whether a node is a product with weights that are fed, an adapter's, or a part of them."""
    weights = node.inputs[1] if node.op_type in _PRODUCTS else None
    while weights is not None and (producer := weights.producer()) is not None and producer.op_type in MOVES:
        weights = producer.inputs[0]
    return weights is not None and weights.dtype == _FULL and weights.is_graph_input()


def _is_sum_of_counts(node: ir.Node) -> bool:
    """Whether a node is a product with integers made float: pixels, or the ones of a mask. It sums over an image or a
    text.
    """
    return node.op_type in _PRODUCTS and any(_is_count(value) for value in _activations(node))


def _is_count(value: ir.Value) -> bool:
    producer = value.producer()
    while producer is not None and producer.op_type in MOVES:
        producer = input_of(producer, 0).producer()
    return producer is not None and producer.op_type == "Cast" and input_of(producer, 0).dtype != _FULL


def _without_between(graph: ir.Graph, half: set[ir.Node]) -> set[ir.Node]:
    """Remove cheap nodes between fp32 ones from the fp16 nodes, which may bring others between fp32 ones."""
    while joining := {node for node in graph if node in half and _is_between(node, half)}:
        half = half - joining
    return half


def _is_between(node: ir.Node, half: set[ir.Node]) -> bool:
    """Whether all that a node reads is fp32, or some of it and all that it gives must be fp32."""
    if node.op_type in _EXPENSIVE:
        return False
    given = [value.producer() not in half for value in _activations(node)]
    wanted = [user not in half for value in node.outputs for user, _ in value.uses()]
    return any(given) and (all(given) or all(wanted))


def _unfit(node: ir.Node, ranges: Mapping[str, float]) -> list[str]:
    """The names of a node's inputs, outputs and inner values that fp16 cannot hold well enough."""
    names = [str(value.name) for value in _computed(node) if not _is_fit(value, ranges)]
    if node.op_type == FUSED_ATTENTION and ranges[scores_of(node)] > LARGEST:
        names.append(scores_of(node))
    return names + [str(value.name) for value in _constants(node) if not _holds(node, value, ranges)]


def _is_fit(value: ir.Value, ranges: Mapping[str, float]) -> bool:
    return ranges[str(value.name)] <= LARGEST and _smallest_part(value, ranges) >= SMALLEST


def _smallest_part(value: ir.Value, ranges: Mapping[str, float]) -> float:
    """The range of a value, or the smallest range of the parts that it is split into: q, k and v of one product, say.

    A value that is always 0 fits any range.
    """
    parts = [
        part
        for user, _ in value.uses()
        if user.op_type in MOVES or (user.op_type == "Add" and _constants(user))
        for part in user.outputs
        if part.dtype == _FULL
    ]
    return min([ranges[str(value.name)] or np.inf, *(_smallest_part(part, ranges) for part in parts)])


def _holds(node: ir.Node, weights: ir.Value, ranges: Mapping[str, float]) -> bool:
    """Whether fp16 is near enough to the node's weights.

    Rounding costs each weight the same share, as always in fp16; flushing costs a small one up to all of it. Small
    weights of a product may be multiplied by large inputs, so |x| |W - W'| is compared with the output.
    """
    array = array_of(weights)
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= LARGEST:
        return False
    flushed = np.where(np.abs(array) < _SMALLEST_NORMAL, np.abs(array - to_half(array)), 0.0)
    if node.op_type in _PRODUCTS and array.ndim == 2:
        largest_x = max((ranges[str(x.name)] for x in _activations(node)), default=0.0)
        return largest_x * float(flushed.sum(axis=0).max(initial=0.0)) <= _LOST * ranges[str(node.outputs[0].name)]
    return float(flushed.max(initial=0.0)) <= _LOST * largest


def to_half(array: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rounded to nearest; what is too large becomes infinite, without a warning."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _narrow(graph: ir.Graph, plan: Plan) -> None:
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.dtype == _FULL:
            _cast_where_types_differ(graph, value, plan.half)
    for node in [
        node for node in graph.all_nodes() if node in plan.half
    ]:  # in an order that stays: files have hashes
        for weights in _constants(node):
            half = constant(graph, f"{weights.name}_fp16", to_half(array_of(weights)))
            for index, given in enumerate(node.inputs):
                if given is weights:
                    node.replace_input_with(index, half)
        for value in node.outputs:
            if value.dtype == _FULL:
                value.type = ir.TensorType(_HALF)  # types may be shared with a clone


def _cast_where_types_differ(graph: ir.Graph, value: ir.Value, half: frozenset[ir.Node]) -> None:
    """Add one Cast for all users of a value that have the other type, and for the graph's output."""
    producer = value.producer()
    is_half = producer in half
    uses = [(user, index) for user, index in value.uses() if (user in half) != is_half]
    is_output = is_half and value.is_graph_output()
    if not uses and not is_output:
        return
    cast = ir.node("Cast", [value], {"to": _FULL if is_half else _HALF})
    result = cast.outputs[0]
    result.name, result.shape = f"{value.name}_{'fp32' if is_half else 'fp16'}", value.shape
    result.dtype = _FULL if is_half else _HALF
    for user, index in uses:
        user.replace_input_with(index, result)
    if is_output:
        graph.outputs[graph.outputs.index(value)] = result
        result.name, value.name = value.name, f"{value.name}_fp16"
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """The node and all nodes in its subgraphs."""
    yield node
    for branch in _branches(node):
        yield from branch.all_nodes()


def _branches(node: ir.Node) -> list[ir.Graph]:
    return [one.as_graph() for one in node.attributes.values() if one.type == ir.AttributeType.GRAPH]


def _computed(node: ir.Node) -> list[ir.Value]:
    """Every float that the node reads or gives and that is no constant."""
    return [*_activations(node), *(value for value in node.outputs if value.dtype == _FULL)]


def _activations(node: ir.Node) -> list[ir.Value]:
    """The floats that the node reads and that are computed."""
    return [value for value in node.inputs if value and value.dtype == _FULL and not value.is_initializer()]


def _constants(node: ir.Node) -> list[ir.Value]:
    """The floats that the node reads and that are constants."""
    return [value for value in node.inputs if value and value.dtype == _FULL and value.is_initializer()]
