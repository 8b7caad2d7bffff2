"""Two lowerings of one tower in one graph, chosen at run time, over the same weights.

What is best for a short text is not what is best for a long one (`passes.gemm`), and a mask costs the flash
kernel (`passes.attention`). One If at the top of the graph decides once: few rows, or padding somewhere where there
is a mask, go one way, the rest the other. Both ways read the weights of the graph outside, so nothing is stored
twice.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassBase, PassResult, PostconditionError, PreconditionError, common

from edgeclip_graph.frame import Recorder
from edgeclip_graph.operators import ATTENTION

# Rows (texts x tokens) up to which the weights go first. Measured at full size on two cores, as a share of
# the other way's time: 0.68 at 16 rows, 0.72 at 32, 0.84 at 64, 0.90 at 128, 0.98 at 256, 1.05 at 512.
FEW_ROWS = 128


class ChooseByRows(InPlacePass):
    """The whole graph twice, as branches of one If; `few` and `many` are the passes of either branch.

    Rows are counted in the graph's first input, which holds one number for each. In a graph with a mask `few` takes
    every batch with padding too, so it must mask; `many` never sees padding, so it need not.

    Precondition: there is an attention, and all of them have one mask or none. Postcondition: there is one If, and
    all initializers belong to the main graph.
    """

    def __init__(self, few: Sequence[PassBase], many: Sequence[PassBase]) -> None:
        super().__init__()
        self._few, self._many = few, many

    def call(self, model: ir.Model) -> PassResult:
        """Clone the graph for each branch, lower it, and leave the choice in the main graph."""
        graph = model.graph
        mask = _masks(model).pop()
        branches = [_branch(model, name, passes, mask) for name, passes in (("few", self._few), ("many", self._many))]
        (output,) = graph.outputs
        doomed = [node for node in graph if mask is None or node not in _ancestors(mask)]
        record = Recorder(graph)
        chosen = record.op(
            "If",
            _condition(record, mask if mask is not None else graph.inputs[0], mask),
            then_branch=branches[0],
            else_branch=branches[1],
        )
        chosen.name, chosen.type, chosen.shape = output.name, output.type, output.shape
        nodes = record.take()
        graph.outputs[0] = chosen
        graph.remove(doomed, safe=True)
        graph.extend(nodes)
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """There is one mask to decide by, or none."""
        if len(masks := _masks(model)) != 1:
            raise PreconditionError(
                f"{len(masks)} masks of attentions in the graph, wanted the same one or none for all"
            )

    def ensures(self, model: ir.Model) -> None:
        """One choice, and nothing stored in a branch."""
        choices = [node for node in model.graph if node.op_type == "If"]
        if len(choices) != 1:
            raise PostconditionError(f"{len(choices)} If in the graph, wanted 1")
        for attribute in choices[0].attributes.values():
            if stored := attribute.as_graph().initializers:
                raise PostconditionError(f"branch {attribute.name} stores {len(stored)} initializers of its own")


def _masks(model: ir.Model) -> set[ir.Value | None]:
    """The masks of all attentions; None for one without."""
    attentions = [node for node in model.graph if node.op_type == ATTENTION]
    return {node.inputs[3] if len(node.inputs) > 3 else None for node in attentions}


def _condition(record: Recorder, rows: ir.Value, mask: ir.Value | None) -> ir.Value:
    """Few rows, or a key that may not be seen; `rows` has one number for each row."""
    limit = record.constant("few_rows", np.array(FEW_ROWS, np.int64))
    is_few = record.op("LessOrEqual", record.op("Size", rows), limit)
    if mask is None:
        return is_few
    hidden = record.op("Cast", record.op("Not", mask), to=ir.DataType.INT32)
    is_padded = record.op("ReduceMax", hidden, record.integers(0, 1), keepdims=0)
    return record.op("Or", is_few, record.op("Cast", is_padded, to=ir.DataType.BOOL))


def _branch(model: ir.Model, name: str, passes: Sequence[PassBase], mask: ir.Value | None) -> ir.Graph:
    """A lowered copy of the graph that takes its inputs, its mask and its weights from outside."""
    copy = model.clone()
    for step in passes:
        copy = step(copy).model
    branch, outside = copy.graph, model.graph
    branch.name = name
    for node in branch:
        for value in node.outputs:
            if mask is not None and value.name == mask.name:
                value.replace_all_uses_with(mask)
            value.name = f"{name}_{value.name}"
    for inner, outer in zip(branch.inputs, outside.inputs, strict=True):
        inner.replace_all_uses_with(outer)
    branch.inputs.clear()
    for key in list(branch.initializers):
        inner = branch.initializers.pop(key)
        if key not in outside.initializers:
            outside.register_initializer(_stored(inner))
        inner.replace_all_uses_with(outside.initializers[key])
    copy = common.RemoveUnusedNodesPass()(copy).model
    return copy.graph


def _stored(value: ir.Value) -> ir.Value:
    """The same constant as a value that belongs to no graph yet."""
    return ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)


def _ancestors(value: ir.Value) -> set[ir.Node]:
    """Every node that `value` depends on."""
    producer = value.producer()
    if producer is None:
        return set()
    return {producer}.union(*(_ancestors(needed) for needed in producer.inputs if needed is not None))
