"""Counting the operators of a graph: what a bundle's manifest says of each of its graphs."""

from collections import Counter

import onnx_ir as ir


def count_operators(model: ir.Model) -> dict[str, int]:
    """How often each operator stands in the graph and its subgraphs, by name, sorted.

    The name of an operator that is not a standard one begins with its domain: com.microsoft.MultiHeadAttention.
    """
    names = (f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.all_nodes())
    return dict(sorted(Counter(names).items()))
