"""RMSNorm: one op where onnxruntime runs the graph, standard ops that older opsets have for TensorRT."""

import numpy as np
import onnx_ir as ir

from edgeclip_graph.frame import LowerOperator, Recorder, input_of
from edgeclip_graph.operators import RMS_NORM


class FuseRmsNorm(LowerOperator):
    """RMSNormalization, which is a standard operator since opset 23."""

    operator = RMS_NORM

    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record one node."""
        x, weight = (input_of(node, index) for index in range(2))
        return record.op("RMSNormalization", x, weight, axis=-1, epsilon=_epsilon_of(node))


class SpellOutRmsNorm(LowerOperator):
    """x / sqrt(mean(x * x) + eps) * w."""

    operator = RMS_NORM

    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record the six."""
        x, weight = (input_of(node, index) for index in range(2))
        epsilon = _epsilon_of(node)
        added = record.constant(f"epsilon_{epsilon:g}", np.array(epsilon, np.float32))
        mean = record.op("ReduceMean", record.op("Mul", x, x), record.integers(-1), keepdims=1)
        length = record.op("Sqrt", record.op("Add", mean, added))
        return record.op("Mul", record.op("Div", x, length), weight)


def _epsilon_of(node: ir.Node) -> float:
    return node.attributes["epsilon"].as_float()
