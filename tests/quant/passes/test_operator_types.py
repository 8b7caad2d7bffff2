"""What is known of onnxruntime's operators is what onnxruntime knows, and every value of a graph has its type."""

from pathlib import Path

import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes import PostconditionError, PreconditionError
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_state

from edgeclip import Manifest
from edgeclip.manifest import Target
from edgeclip_quant.passes import operator_types as signatures
from edgeclip_quant.passes.operator_types import FillTypes, signature
from tests.scenes.graph_feeds import GRAPHS


def node(text: str, opset: int = 23) -> ir.Node:
    """The last node of a graph in onnx's own notation."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]> {text}')
    return list(ir.from_proto(onnx.shape_inference.infer_shapes(model)).graph)[-1]


@pytest.mark.parametrize("name", sorted(signatures._CONTRIB_SCHEMAS))
def test_onnxruntimes_own_schemas_say_the_same(name: str) -> None:
    (schema,) = [
        one
        for one in onnxruntime_state.get_all_operator_schema()
        if (one.domain, one.name) == ("com.microsoft", name)
    ]
    inputs, outputs = (variables.split() for variables in signatures._CONTRIB_SCHEMAS[name])
    assert [formal.typeStr for formal in schema.inputs] == inputs
    assert [formal.typeStr for formal in schema.outputs] == outputs
    halves = {one.type_param_str for one in schema.type_constraints if "tensor(float16)" in one.allowed_type_strs}
    assert halves == {variable for variable in (*inputs, *outputs) if variable != "M"}


@pytest.mark.parametrize(
    ("text", "takes_half"),
    [
        ("g (float[2,3] x, float[3,2] w) => (float[2,2] y) { y = MatMul(x, w) }", True),
        ("g (float[4] x) => (float[2] y, float[2] z) { y, z = Split<axis = 0, num_outputs = 2>(x) }", True),
        ("g (float[4] x, float[4] s) => (float[4] y) { y = LayerNormalization<axis = -1>(x, s) }", True),
        ("g (bool[4] c, float[4] x) => (float[4] y) { y = Where(c, x, x) }", True),
        ("g (float[4] x) => (int64[1] y) { y = Shape(x) }", True),
        # The statistics are never fp16; what an attribute types does not follow from what goes in.
        (
            "g (float[4] x, float[4] s) => (float[4] y, float[1] m) { y, m = LayerNormalization<axis = -1>(x, s) }",
            False,
        ),
        ("g (int8[4] x, float s) => (float[4] y) { y = DequantizeLinear(x, s) }", False),
        ("g (float[1,6,4] b, float[1,1,6] s) => (int64[n,3] y) { y = NonMaxSuppression(b, s) }", False),
    ],
    ids=lambda value: value.rpartition("=")[2].split("(")[0].strip() if isinstance(value, str) else "",
)
def test_a_schema_says_what_may_be_half(text: str, takes_half: bool) -> None:
    found = node(text)
    assert signature(found, 23).takes_half(found) == takes_half


def test_an_operator_without_a_known_schema_is_refused() -> None:
    for text in ("y = com.microsoft.Whatever(x)", "y = Whatever(x)"):
        found = node(f"g (float[4] x) => (float[4] y) {{ {text} }}")
        with pytest.raises(PreconditionError, match="no schema is known of .*Whatever"):
            signature(found, 23)


@pytest.mark.parametrize("graph", GRAPHS)
def test_types_are_those_that_onnx_infers(bundles: dict[Target, Path], graph: str) -> None:
    path = bundles["tensorrt"] / Manifest.read(bundles["tensorrt"]).graphs[graph].file
    model = ir.load(path)
    untyped = {value.name for one in model.graph for value in one.outputs if not value.dtype}
    FillTypes()(model)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    wanted = {one.name: one.type.tensor_type.elem_type for one in inferred.graph.value_info}
    found = {str(value.name): value.dtype for one in model.graph for value in one.outputs}
    assert untyped
    assert {name: found[name] for name in untyped} == {name: wanted[name] for name in untyped}


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_with_all_types_still_runs(bundles: dict[Target, Path], graph: str, tmp_path: Path) -> None:
    """onnxruntime compares them with its own."""
    path = bundles["cuda"] / Manifest.read(bundles["cuda"]).graphs[graph].file
    model = FillTypes()(ir.load(path)).model
    assert all(value.dtype for one in model.graph.all_nodes() for value in one.outputs)
    ir.save(model, tmp_path / "typed.onnx", external_data="typed.data")
    onnxruntime.InferenceSession(tmp_path / "typed.onnx", providers=["CPUExecutionProvider"])


def test_a_value_whose_type_cannot_be_known_is_an_error() -> None:
    model = ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 20]> g (int64[1] s) => (y) { y = ConstantOfShape(s) }'
        )
    )
    with pytest.raises(PostconditionError, match=r"1 values have no type: \['y'\]"):
        FillTypes()(model)
