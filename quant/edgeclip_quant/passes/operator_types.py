"""The types that an operator's schema allows a node: which inputs and outputs share one, and which may be fp16.

onnx holds the schemas of the standard operators. onnxruntime's own operators stand in a table here, which a test
compares with the schemas inside onnxruntime.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.operators import CONTRIB

FLOATS = frozenset({"tensor(float)", "tensor(float16)"})
_TYPES = {
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(float)": ir.DataType.FLOAT,
}
# Type variables of inputs and outputs, in their order; T is any float, the others are none.
_CONTRIB_SCHEMAS = {
    "MultiHeadAttention": ("T T T T M T T T M M", "T T T QK"),
    "QuickGelu": ("T", "T"),
    "RotaryEmbedding": ("T M T T", "T"),
}
_CONTRIB_ALLOWED = {"T": FLOATS, "QK": FLOATS, "M": frozenset({"tensor(int32)", "tensor(int64)"})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The type variable of each input and output of one node, and which types each may be."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    allowed: Mapping[str, frozenset[str]]

    def slots(self, node: ir.Node) -> Iterator[tuple[str, ir.Value]]:
        """Every value of the node with its variable, inputs first; omitted inputs are left out."""
        for values, variables in ((node.inputs, self.inputs), (node.outputs, self.outputs)):
            for value, variable in zip(values, variables, strict=True):
                if value is not None:
                    yield variable, value

    def takes_half(self, node: ir.Node) -> bool:
        """Whether all fp32 values of the node may be fp16, and its fp16 outputs follow from its inputs."""
        floats = {variable for variable, value in self.slots(node) if value.dtype == ir.DataType.FLOAT}
        given = {
            variable
            for variable, value in zip(self.inputs, node.inputs, strict=True)
            if value is not None and value.dtype == ir.DataType.FLOAT
        }
        return floats <= given and all("tensor(float16)" in self.allowed[variable] for variable in floats)


def signature(node: ir.Node, opset: int) -> Signature:
    """The signature of a standard operator of this opset, or of a known one of onnxruntime's; else
    PreconditionError.
    """
    if node.domain == CONTRIB and node.op_type in _CONTRIB_SCHEMAS:
        inputs, outputs = (variables.split() for variables in _CONTRIB_SCHEMAS[node.op_type])
        return Signature(
            inputs=inputs[: len(node.inputs)], outputs=outputs[: len(node.outputs)], allowed=_CONTRIB_ALLOWED
        )
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, max_inclusive_version=opset):
        raise PreconditionError(f"no schema is known of {node.domain}.{node.op_type} ({node.name})")
    schema = onnx.defs.get_schema(node.op_type, opset)
    inputs, outputs = _expanded(schema.inputs, len(node.inputs)), _expanded(schema.outputs, len(node.outputs))
    allowed = {one.type_param_str: frozenset(one.allowed_type_strs) for one in schema.type_constraints}
    for variable in (*inputs, *outputs):
        allowed.setdefault(variable, frozenset({variable}))  # a type, not a variable
    return Signature(inputs=inputs, outputs=outputs, allowed=allowed)


def _expanded(formals: Sequence[Any], count: int) -> list[str]:
    """One variable for each of `count` values: the last formal stands for all that follow, each with a type of its
    own where the schema lets them differ.
    """
    variables = [str(formal.type_str) for formal in formals[:count]]
    while len(variables) < count:
        variables.append(str(formals[-1].type_str))
    return variables


class FillTypes(InPlacePass):
    """Gives a type, by the schemas, to values that earlier passes left without one.

    Postcondition: every value of the graph and its subgraphs has a type.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Fill types in the order of the nodes."""
        _fill(model.graph, model.graph.opset_imports[""])
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that every value has a type."""
        untyped = [
            value.name for node in model.graph.all_nodes() for value in node.outputs if value.name and not value.dtype
        ]
        if untyped:
            raise PostconditionError(f"{len(untyped)} values have no type: {untyped[:5]}")


def _fill(graph: ir.Graph, opset: int) -> None:
    for node in graph:
        branches = [branch.as_graph() for branch in node.attributes.values() if branch.type == ir.AttributeType.GRAPH]
        for branch in branches:
            _fill(branch, opset)
        if all(value.dtype for value in node.outputs):
            continue
        if branches:
            for value, result in zip(node.outputs, branches[0].outputs, strict=True):
                value.type = ir.TensorType(result.dtype) if result.dtype else None
        elif node.op_type == "Cast":
            node.outputs[0].dtype = ir.DataType(node.attributes["to"].as_int())
        else:
            _fill_node(node, signature(node, opset))


def _fill_node(node: ir.Node, found: Signature) -> None:
    known = {variable: value.dtype for variable, value in found.slots(node) if value.dtype}
    for value, variable in zip(node.outputs, found.outputs, strict=True):
        only = next(iter(found.allowed[variable])) if len(found.allowed[variable]) == 1 else ""
        dtype = value.dtype or known.get(variable) or _TYPES.get(only)
        if dtype is not None:
            value.dtype = dtype
