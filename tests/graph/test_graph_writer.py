"""The scenes' graphs, written without the onnx package, are what the package reads, checks and writes itself."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeclip.manifest import ArrayFacts
from tests.scenes.graph_writer import FLOAT, node, save_graph


def test_it_is_what_onnx_would_write(tmp_path: Path) -> None:
    """Attributes of both kinds, negative ones and long ones; a scalar, long dimensions and axes of both kinds."""
    constants = {"most": np.array(300.0, np.float32), "axis": np.array([-1]), "wide": np.zeros((2, 300), np.uint8)}
    save_graph(
        tmp_path / "g.onnx",
        "g",
        [
            node("Cast", ["ids"], ["numbers"], to=FLOAT),
            node("Transpose", ["numbers"], ["turned"], perm=[0, 2, 1]),
            node("Mul", ["turned", "most"], ["scaled"]),
            node("LpNormalization", ["scaled"], ["unit"], p=2, axis=-1),
        ],
        [ArrayFacts(name="ids", dtype="int64", axes=("batch", 3, "tokens"))],
        [ArrayFacts(name="unit", dtype="float32", axes=("batch", "tokens", 300))],
        constants,
    )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["ids"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["numbers"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("Mul", ["turned", "most"], ["scaled"]),
            helper.make_node("LpNormalization", ["scaled"], ["unit"], p=2, axis=-1),
        ],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3, "tokens"])],
        [helper.make_tensor_value_info("unit", TensorProto.FLOAT, ["batch", "tokens", 300])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    wanted = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    found = onnx.load(tmp_path / "g.onnx")
    onnx.checker.check_model(found)
    assert found == wanted
