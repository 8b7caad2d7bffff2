"""A graph that is never given padding: every attention without its mask, and no test for padding.

A graph for CUDA tests at run time whether any token is padding, with an If around every attention. On a GPU the
result must return to the processor before the layers can go on, and onnxruntime refuses CUDA graphs for a graph with
an If. The caller that forms a batch knows whether it has padding, so a graph without the test lies beside the one
with it.
"""

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError, common

from edgeclip.bundle.files import unmasked_name
from edgeclip_graph.passes.attention import UNMASKED
from edgeclip_graph.shared_data import PointToData


def unmasked_path(graph: Path) -> Path:
    """The file of a graph's form without a mask: text.unmasked.onnx beside text.onnx."""
    return graph.with_name(unmasked_name(graph.name))


def has_choice(model: ir.Model) -> bool:
    """Whether the graph tests for padding at run time."""
    return bool(_choices(model.graph))


def save_unmasked(model: ir.Model, graph: Path) -> Path:
    """Write the form without a mask of a graph that was saved at `graph`, over the same weights."""
    copy = model.clone()
    for step in (TakeUnmasked(), PointToData(model, graph), common.RemoveUnusedNodesPass(), common.NameFixPass()):
        copy = step(copy).model
    copy = common.TopologicalSortPass()(copy).model
    path = unmasked_path(graph)
    ir.save(copy, path)
    return path


class TakeUnmasked(InPlacePass):
    """Puts the branch without a mask in place of each If that chooses one (`FuseAttention`).

    Precondition: there is such an If. Postcondition: there is no If.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Move each branch's nodes into the graph."""
        for choice in _choices(model.graph):
            branch = choice.attributes["then_branch"].as_graph()
            nodes, results = list(branch), list(branch.outputs)
            branch.outputs.clear()
            branch.remove(nodes)
            ir.convenience.replace_nodes_and_values(
                model.graph, choice, [choice], nodes, list(choice.outputs), results
            )
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """Something is chosen."""
        if not _choices(model.graph):
            raise PreconditionError("no attention chooses whether to mask")

    def ensures(self, model: ir.Model) -> None:
        """Nothing is chosen."""
        if left := [node for node in model.graph if node.op_type == "If"]:
            raise PostconditionError(f"{len(left)} If left in the graph")


def _choices(graph: ir.Graph) -> list[ir.Node]:
    return [
        node for node in graph if node.op_type == "If" and node.attributes["then_branch"].as_graph().name == UNMASKED
    ]
