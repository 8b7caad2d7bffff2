"""One linear layer whose output is split at once (q, k and v; gate and up) as a product for each part.

The split copies: 67 ms of 3310 for an image on two cores. The GEMMs are as fast apart. What a bias of zeros adds is
left out; the reference's keys have none.
"""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from edgeclip_graph.frame import Recorder
from edgeclip_graph.lazy import Columns, derive
from edgeclip_graph.linear import LinearLayer, linear_layers, split_of, width_of


class SeparateParts(InPlacePass):
    """Split(MatMul(x, W) + b) with constant W (in, out) and b (out,) -> MatMul(x, W_i) + b_i for each part.

    Precondition: there is such a Split. Postcondition: there is none.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace every layer that is split."""
        record = Recorder(model.graph)
        for layer, split in split_layers(model.graph):
            outputs, start = [], 0
            for number, width in enumerate(map(width_of, split.outputs)):
                outputs.append(_part(record, layer, f"_part_{number}", Columns(start, start + width)))
                start += width
            ir.convenience.replace_nodes_and_values(
                model.graph, split, [split, *layer.nodes], record.take(), list(split.outputs), outputs
            )
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """A layer is split."""
        if not split_layers(model.graph):
            raise PreconditionError("no linear layer in the graph is split")

    def ensures(self, model: ir.Model) -> None:
        """No layer is split."""
        if left := split_layers(model.graph):
            raise PostconditionError(f"{len(left)} linear layers that are split left in the graph")


def split_layers(graph: ir.Graph) -> list[tuple[LinearLayer, ir.Node]]:
    """Every linear layer whose output is split at once, and the Split."""
    return [(layer, split) for layer in linear_layers(graph) if (split := split_of(layer)) is not None]


def _part(record: Recorder, layer: LinearLayer, ending: str, columns: Columns) -> ir.Value:
    """The product with some columns of a layer's weight, and the same part of its bias unless that is 0."""
    weight = derive(record.graph, f"{layer.name}{ending}", layer.weight_value, columns)
    product = record.op("MatMul", layer.x, weight)
    bias = layer.bias_value
    if bias is None or not columns.apply(layer.bias).any():
        return product
    return record.op("Add", product, derive(record.graph, f"{bias.name}{ending}", bias, columns))
