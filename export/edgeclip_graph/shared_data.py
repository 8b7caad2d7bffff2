"""A second graph over the weights of a first: it names them in the data file that lies beside the first.

A bundle holds a graph's weights once, whatever forms of the graph it holds. What is small stands in each graph
itself, as onnx_ir saves it.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

# Bytes of a constant that a second graph may hold itself, for want of it in the data file.
SMALL = 16 << 10


class PointToData(InPlacePass):
    """Makes every constant that the first graph holds one that is named in the first graph's file.

    `first` is the first graph in memory, as it was saved at `path`; constants are the same where they are one object.
    Postcondition: no constant of more than SMALL bytes is held by this graph itself.
    """

    def __init__(self, first: ir.Model, path: Path) -> None:
        super().__init__()
        self._saved = saved_constants(first, path)

    def call(self, model: ir.Model) -> PassResult:
        """Replace the tensors; the values stay."""
        for value in model.graph.initializers.values():
            if (saved := self._saved.get(id(value.const_value))) is not None:
                value.const_value = saved
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing large is left."""
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > SMALL:
                raise PostconditionError(f"{name} ({tensor.nbytes} bytes) is not in the data of the first graph")


def saved_constants(model: ir.Model, path: Path) -> Mapping[int, ir.TensorProtocol]:
    """The constants of a graph as they are stored in its file at `path`, by the id of the tensor in memory."""
    stored = ir.load(path).graph.initializers
    return {
        id(value.const_value): tensor
        for name, value in model.graph.initializers.items()
        if (tensor := stored[name].const_value) is not None
    }
