"""Bring a bundle's graph into the plain form that quantising starts from: linear layers as MatMul and Add.

An fp32 graph for the CPU reads its text weights in place, in two forms chosen by the number of rows, because reading
1.2 GB is what a short text costs there. Integer weights are a quarter of that and have a kernel of their own, so the
choice is undone: one form, with a mask only where something is padding. And the fp32 graph multiplies by q, k and v,
gate and up separately; here they are one layer, of one input that is rounded once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError, common

from edgeclip_graph.frame import array_of, constant, input_of, only_user
from edgeclip_graph.linear import LinearLayer, linear_layer
from edgeclip_graph.operators import CONTRIB, FUSED_ATTENTION, FUSED_PRODUCT, MASKED_SCORE
from edgeclip_graph.passes.gemm import IN_PLACE
from edgeclip_graph.passes.split_linear import PART

_PART = re.compile(rf"(.+){PART}(\d+)")


class MakePlain(InPlacePass):
    """Undoes the choice by rows: its form without a mask is inlined, each product becomes a MatMul with weights (in,
    out).

    An attention becomes a choice between one without a mask, which is the flash kernel, and one with a mask. A graph
    without that choice is left as it is, but layers in parts are joined. Postcondition: no product with weights in
    place is left, and no layer in parts.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Inline the form for many rows, and join the parts."""
        parts = _parts(model.graph)
        for name, some in parts.items():
            _join(model.graph, name, some)
        if parts:
            common.RemoveUnusedNodesPass()(model)  # the weights of the parts
        choice = _choice(model)
        if choice is None:
            return PassResult(model, modified=bool(parts))
        mask = _mask(choice)
        many = choice.attributes["else_branch"].as_graph()
        nodes, (result,) = list(many), many.outputs
        many.outputs.clear()
        many.remove(nodes)
        model.graph.extend(nodes)
        (output,) = choice.outputs
        result.name, output.name = output.name, None
        model.graph.outputs[0] = result
        model.graph.remove(choice, safe=True)
        _let_go(choice.attributes["then_branch"].as_graph())
        for node in nodes:
            if node.op_type == FUSED_PRODUCT:
                _turn(model.graph, node)
        _mask_attentions(model.graph, mask)
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that no product with weights in place is left, and no part."""
        if left := [node for node in model.graph.all_nodes() if node.op_type == FUSED_PRODUCT]:
            raise PostconditionError(f"{len(left)} {FUSED_PRODUCT} left in the graph")
        if parts := _parts(model.graph):
            raise PostconditionError(f"{len(parts)} layers in parts left in the graph")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A part of a layer; it has no Add where its bias is 0."""

    number: int
    matmul: ir.Node
    layer: LinearLayer | None

    @property
    def output(self) -> ir.Value:
        return self.layer.output if self.layer else self.matmul.outputs[0]


def _parts(graph: ir.Graph) -> dict[str, list[_Part]]:
    """The parts of each layer that an export has separated, in order, by its weights' name."""
    found: dict[str, list[_Part]] = {}
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and (match := _PART.fullmatch(str(weight.name))):
            part = _Part(number=int(match[2]), matmul=node, layer=linear_layer(node))
            found.setdefault(match[1], []).append(part)
    return {name: sorted(some, key=lambda part: part.number) for name, some in found.items()}


def _join(graph: ir.Graph, name: str, parts: Sequence[_Part]) -> None:
    """Put Split(x (W_0 | W_1 | ...) + (b_0 | b_1 | ...)) in place of the parts."""
    x = parts[0].matmul.inputs[0]
    if [part.number for part in parts] != list(range(len(parts))) or any(p.matmul.inputs[0] is not x for p in parts):
        raise PreconditionError(f"{name}: its parts are not those of one layer")
    weights = [array_of(input_of(part.matmul, 1)) for part in parts]
    widths = [weight.shape[1] for weight in weights]
    biases = [
        part.layer.bias if part.layer else np.zeros(width, np.float32)
        for part, width in zip(parts, widths, strict=True)
    ]
    tape = ir.tape.Tape()
    product = tape.op("MatMul", [x, constant(graph, name, np.concatenate(weights, axis=1))])
    output = tape.op("Add", [product, constant(graph, f"{name}_bias", np.concatenate(biases))])
    sizes = constant(graph, f"{name}_widths", np.array(widths, np.int64))
    outputs = tape.op_multi_out("Split", [output, sizes], {"axis": -1}, num_outputs=len(parts))
    nodes = [node for part in parts for node in (part.layer and part.layer.add, part.matmul) if node]
    first = next(node for node in graph if node in nodes)
    ir.convenience.replace_nodes_and_values(
        graph, first, nodes, tape.nodes, [part.output for part in parts], list(outputs)
    )


def _choice(model: ir.Model) -> ir.Node | None:
    """The If whose branches multiply, None in a graph without one."""
    for node in model.graph:
        if node.op_type == "If":
            inner = node.attributes["else_branch"].as_graph()
            if any(one.op_type == FUSED_PRODUCT for one in inner):
                return node
    return None


def _mask(choice: ir.Node) -> ir.Value:
    """The mask that the choice depends on: True at tokens that are not padding."""
    waiting = [value for value in choice.inputs if value is not None]
    while waiting:
        producer = waiting.pop().producer()
        if producer is None:
            continue
        needed = [value for value in producer.inputs if value is not None]
        if producer.op_type == "Size":
            return needed[0]
        waiting.extend(needed)
    raise PreconditionError("the choice by rows does not ask for a mask's size")


def _let_go(branch: ir.Graph) -> None:
    """Take a branch apart, so that weights which only it reads are known to be unused."""
    branch.outputs.clear()
    branch.remove(list(branch), safe=True)


def _turn(graph: ir.Graph, product: ir.Node) -> None:
    """Turn x times (1, out, in)^T, squeezed, into x times (in, out)."""
    squeeze = only_user(product.outputs[0], "Squeeze")
    x, stored = input_of(product, 0), input_of(product, 1)
    array = np.ascontiguousarray(array_of(stored)[0].T)
    weight = constant(graph, str(stored.name).removesuffix(IN_PLACE), array)
    matmul = ir.node("MatMul", [x, weight])
    ir.convenience.replace_nodes_and_values(
        graph, squeeze, [squeeze, product], [matmul], [squeeze.outputs[0]], [matmul.outputs[0]]
    )


def _mask_attentions(graph: ir.Graph, mask: ir.Value) -> None:
    tape = ir.tape.Tape()
    seen = tape.op("Cast", [mask], {"to": ir.DataType.INT32})
    axes = constant(graph, "mask_axes", np.array([0, 1], np.int64))
    smallest = tape.op("ReduceMin", [seen, axes], {"keepdims": 0})
    all_seen = tape.op("Cast", [smallest], {"to": ir.DataType.BOOL})
    graph.insert_before(graph[0], tape.nodes)
    for node in [node for node in graph if node.op_type == FUSED_ATTENTION]:
        output = node.outputs[0]
        plain, masked = (_way(node, name, seen if name == "masked" else None) for name in ("unmasked", "masked"))
        choice = ir.node("If", [all_seen], {"then_branch": plain, "else_branch": masked})
        choice.outputs[0].type, choice.outputs[0].shape = output.type, output.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], [choice], [output], [choice.outputs[0]])


def _way(node: ir.Node, name: str, seen: ir.Value | None) -> ir.Graph:
    """A graph of one attention, on values of the graph outside."""
    attributes = dict(node.attributes.items())
    if seen is not None:
        attributes["mask_filter_value"] = ir.AttrFloat32("mask_filter_value", MASKED_SCORE)
    inputs = [*node.inputs[:3], *([None, seen] if seen is not None else [])]
    attention = ir.Node(CONTRIB, FUSED_ATTENTION, inputs, attributes.values(), num_outputs=1)
    result, output = attention.outputs[0], node.outputs[0]
    result.name, result.type, result.shape = f"{output.name}_{name}", output.type, output.shape
    return ir.Graph([], [result], nodes=[attention], name=name)
