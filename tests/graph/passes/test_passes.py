"""The graph passes: each leaves what it promises, refuses a graph it does not fit, and changes no answer.

The graphs of the golden checkpoint are held as text under tests/data/graphs, one file per tower and
target: inputs, outputs, opset, and how often each operator stands where. `pytest --bless` renews them.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from edgeclip import Manifest
from edgeclip.errors import BuildError
from edgeclip.manifest import TARGETS, Target
from edgeclip_export.checkpoint import read_json
from edgeclip_export.families.family import GraphPlan
from edgeclip_export.families.jina_clip.config import parse_config
from edgeclip_export.operators import attention, rotary_embedding
from edgeclip_export.towers.weights import LazyWeight
from edgeclip_export.tracing import trace
from edgeclip_graph.census import count_operators
from edgeclip_graph.passes import TENSORRT_OPSET, lower
from edgeclip_graph.passes.activation import FuseSilu
from edgeclip_graph.passes.attention import FuseAttention, SpellOutAttention
from edgeclip_graph.passes.gemm import WeightsFirst, WeightsInPlace
from edgeclip_graph.passes.mask_choice import FEW_ROWS, ChooseByRows
from edgeclip_graph.passes.rotary import FuseRotary, SpellOutRotary
from edgeclip_graph.passes.split_linear import SeparateParts
from edgeclip_graph.passes.standard import MeasureAfterCast, RequireStandardOps
from edgeclip_graph.traits import Traits
from tests.conftest import CHECKPOINT, DATA
from tests.export.families.jina_clip.test_parity import run_graph
from tests.scenes.described_graphs import describe

# Two orders of summation in fp32. Measured: 2e-7.
SAME = 2e-6
HEADS, WIDTH, TOKENS = 4, 32, 7
GRAPHS = ("text", "vision")


class Attends(nn.Module):
    """Rotation and attention, with a mask for the zeros of its input or without one."""

    def __init__(self, *, is_masked: bool) -> None:
        super().__init__()
        self.is_masked = is_masked
        angles = torch.randn(200, WIDTH // HEADS // 2, generator=torch.Generator().manual_seed(0))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        q, k = rotary_embedding(x, self.cos, self.sin, HEADS), rotary_embedding(-x, self.cos, self.sin, HEADS)
        return attention(q, k, x * 2, HEADS, x[:, :, 0] != 0 if self.is_masked else None)


class Feeds(nn.Module):
    """Two linear layers with GELU between them, or the SwiGLU of the vision tower's activation."""

    def __init__(self, *, activation: str) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.activation = activation
        self.w1 = nn.Parameter(torch.randn(WIDTH, 48, generator=draw))
        self.b1 = nn.Parameter(torch.randn(48, generator=draw))
        self.w2 = nn.Parameter(torch.randn(48, WIDTH, generator=draw))
        self.b2 = nn.Parameter(torch.randn(WIDTH, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.matmul(x.flatten(0, 1), self.w1) + self.b1
        h = nn.functional.gelu(h) if self.activation == "gelu" else nn.functional.silu(h)
        return torch.matmul(h, self.w2) + self.b2


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("rotary", "attend"), [(FuseRotary, FuseAttention), (SpellOutRotary, SpellOutAttention)])
def test_attention_and_rotation_answer_as_torch_does(tmp_path: Path, rotary, attend, is_masked: bool) -> None:
    module = Attends(is_masked=is_masked)
    model = traced(module)
    for step in (rotary(), attend()):
        model = step(model).model
    assert not any(node.domain == "edgeclip" for node in model.graph.all_nodes())
    for hidden in (0, 3):
        x = some_input()
        x[1, TOKENS - hidden :, 0] = 0
        compare(module, model, x, tmp_path)


def test_a_masked_attention_leaves_the_mask_out_when_it_hides_nothing() -> None:
    model = traced(Attends(is_masked=True))
    for step in (FuseRotary(), FuseAttention()):
        model = step(model).model
    (choice,) = [node for node in model.graph if node.op_type == "If"]
    (unmasked,), (masked,) = (list(choice.attributes[f"{name}_branch"].as_graph()) for name in ("then", "else"))
    assert len(unmasked.inputs) == 3
    assert masked.inputs[4] is not None
    assert masked.attributes["mask_filter_value"].as_float() == -10000.0


@pytest.mark.parametrize(
    ("steps", "activation"),
    [
        ([WeightsInPlace], "gelu"),
        ([WeightsInPlace, WeightsFirst], "gelu"),
        ([FuseSilu], "silu"),
    ],
)
def test_linear_layers_and_activations_answer_as_torch_does(tmp_path: Path, steps, activation: str) -> None:
    module = Feeds(activation=activation)
    model = traced(module)
    for step in steps:
        model = step()(model).model
    compare(module, model, some_input(), tmp_path)


class OneLayer(nn.Module):
    """A layer with a bias or without one, whose rows nothing but an output follows."""

    def __init__(self, *, is_biased: bool) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.is_biased = is_biased
        self.w = nn.Parameter(torch.randn(WIDTH, 48, generator=draw))
        self.b = nn.Parameter(torch.randn(48, generator=draw)) if is_biased else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.matmul(x.flatten(0, 1), self.w)
        return h if self.b is None else h + self.b


@pytest.mark.parametrize("is_biased", [False, True])
def test_a_bias_is_added_as_a_row_behind_the_turn(tmp_path: Path, *, is_biased: bool) -> None:
    module = OneLayer(is_biased=is_biased)
    model = WeightsFirst()(WeightsInPlace()(traced(module)).model).model
    compare(module, model, some_input(), tmp_path)
    adds = [node for node in model.graph if node.op_type == "Add"]
    assert [node.inputs[1].shape for node in adds] == [ir.Shape([48])] * is_biased


class Parts(nn.Module):
    """A layer of three parts, one of them without a bias, and a part of a split that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(WIDTH, 3 * 20, generator=draw))
        self.b = nn.Parameter(torch.randn(3 * 20, generator=draw))
        self.b.data[20:40] = 0

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (torch.matmul(x, self.w) + self.b).chunk(3, dim=-1)
        left, right = x.chunk(2, dim=-1)
        return torch.cat((a, b * 2, c * 3, left, right * 2), dim=-1)


def test_parts_of_a_layer_answer_as_torch_does(tmp_path: Path) -> None:
    module = Parts()
    model = SeparateParts()(traced(module)).model
    compare(module, model, some_input(), tmp_path)
    counts = count_operators(model)
    assert (counts["MatMul"], counts["Add"], counts["Split"]) == (3, 2, 1)


def test_weights_first_turns_the_mlp_once() -> None:
    """Two products with the weights on the left, one Transpose behind the second, none between."""
    model = WeightsFirst()(WeightsInPlace()(traced(Feeds(activation="gelu"))).model).model
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("FusedMatMul") == 2
    assert kinds.count("Transpose") == 1
    assert all(node.inputs[0].is_initializer() for node in model.graph if node.op_type == "FusedMatMul")


class Adapted(nn.Module):
    """Two layers with GELU between them and an adapter on either, whose four factors are the rows of the input."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.w1 = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=draw))
        self.w2 = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=draw))
        self.b = nn.Parameter(torch.randn(WIDTH, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        rows, a, b = x.flatten(0, 1), x[0, :3].reshape(-1, 3), x[1, :3]  # (R, W), (W, rank), (rank, W)
        h = nn.functional.gelu(torch.matmul(rows, self.w1) + self.b + torch.matmul(torch.matmul(rows, a), b))
        return torch.matmul(h, self.w2) + self.b + torch.matmul(torch.matmul(h, a), b)


def test_an_adapter_is_turned_round_with_its_layer(tmp_path: Path) -> None:
    """One Transpose behind the second layer, and no product of the adapter with its weights on the right."""
    module = Adapted()
    model = WeightsFirst()(WeightsInPlace()(traced(module)).model).model
    model = common.RemoveUnusedNodesPass()(model).model
    compare(module, model, some_input(), tmp_path)
    counts = count_operators(model)
    assert (counts["com.microsoft.FusedMatMul"], counts["Gemm"], counts["Transpose"]) == (4, 2, 1)
    assert "MatMul" not in counts


def test_a_choice_without_a_mask_is_by_rows_alone(tmp_path: Path) -> None:
    module = Attends(is_masked=False)
    model = FuseRotary()(traced(module)).model
    model = ChooseByRows(few=[FuseAttention("always")], many=[FuseAttention("never")])(model).model
    compare(module, model, some_input(), tmp_path)
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Size", "LessOrEqual", "If"]


def test_no_weight_is_one_that_onnxruntime_would_pack() -> None:
    """It packs a constant right operand of two dimensions, which would copy every weight at opening."""
    model = WeightsInPlace()(traced(Feeds(activation="gelu"))).model
    assert [len(node.inputs[1].shape) for node in model.graph if node.op_type == "FusedMatMul"] == [3, 3]


@pytest.mark.parametrize("rows", [2, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("hidden", [0, 1])
def test_either_way_of_a_choice_answers_as_torch_does(tmp_path: Path, rows: int, hidden: int) -> None:
    """Few rows and padding go one way, many rows without padding the other; the answer is one."""
    module = Attends(is_masked=True)
    model = FuseRotary()(traced(module)).model
    model = ChooseByRows(few=[FuseAttention("always")], many=[FuseAttention("never")])(model).model
    x = torch.randn(1, rows, WIDTH, generator=torch.Generator().manual_seed(2))
    x[0, rows - hidden :, 0] = 0
    compare(module, model, x, tmp_path)


def test_a_choice_stores_its_weights_once_and_outside() -> None:
    model = FuseRotary()(traced(Attends(is_masked=True))).model
    model = ChooseByRows(few=[FuseAttention("always")], many=[FuseAttention("never")])(model).model
    (choice,) = [node for node in model.graph if node.op_type == "If"]
    for attribute in choice.attributes.values():
        assert not attribute.as_graph().initializers
        assert not attribute.as_graph().inputs
    assert {"cos", "sin"} <= set(model.graph.initializers)


@pytest.mark.parametrize("step", [FuseRotary, SpellOutRotary, FuseAttention, SpellOutAttention])
def test_a_pass_that_has_nothing_to_lower_is_an_error(step) -> None:
    with pytest.raises(ir.passes.PreconditionError, match=r"no edgeclip\."):
        step()(traced(Feeds(activation="gelu")))


@pytest.mark.parametrize("step", [WeightsInPlace, WeightsFirst, FuseSilu, SeparateParts])
def test_a_pass_that_matches_nothing_is_an_error(step) -> None:
    with pytest.raises(ir.passes.PreconditionError, match="no "):
        step()(traced(Attends(is_masked=False)))


def test_a_sigmoid_that_is_no_part_of_a_silu_is_refused() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]>
    g (float[2] x, float[2] z) => (float[2] y) { s = Sigmoid(x) y = Mul(z, s) }"""
    with pytest.raises(ir.passes.PreconditionError, match="is not multiplied by its input"):
        FuseSilu()(ir.from_proto(onnx.parser.parse_model(text)))


def test_a_failed_pass_is_a_build_error_that_names_it() -> None:
    with pytest.raises(BuildError, match="ChooseByRows on the text graph for cpu: 0 masks of attentions"):
        lower(traced(Feeds(activation="gelu")), "cpu", "text", Traits(chooses_by_rows=True))


def test_what_is_not_standard_is_refused_by_name() -> None:
    model = FuseSilu()(traced(Feeds(activation="silu"))).model
    with pytest.raises(ir.passes.PostconditionError, match="com.microsoft.QuickGelu is no standard operator"):
        RequireStandardOps(TENSORRT_OPSET)(model)
    with pytest.raises(ir.passes.PostconditionError, match="Gelu is not in opset 18"):
        RequireStandardOps(18)(traced(Feeds(activation="gelu")))


@pytest.mark.parametrize("tower", GRAPHS)
def test_a_tensorrt_graph_holds_standard_ops_alone(bundles: dict[Target, Path], tower: str) -> None:
    """Op by op, against onnx's own schemas of the opset it declares, and by onnx's full type check."""
    path = bundles["tensorrt"] / f"{tower}.onnx"
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", TENSORRT_OPSET)]
    assert not model.functions
    for node in model.graph.node:
        assert node.domain == ""
        schema = onnx.defs.get_schema(node.op_type, TENSORRT_OPSET)
        assert {attribute.name for attribute in node.attribute} <= set(schema.attributes)
        assert not any(attribute.HasField("g") for attribute in node.attribute)
        assert node.op_type not in ("Attention", "RotaryEmbedding", "MultiHeadAttention")
    onnx.checker.check_model(str(path), full_check=True)
    layers = 3
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Softmax") == layers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tower", GRAPHS)
def test_the_graph_is_the_one_that_was_reviewed(
    bundles: dict[Target, Path], target: Target, tower: str, request: pytest.FixtureRequest
) -> None:
    held = DATA / "graphs" / f"{tower}_{target}.txt"
    found = describe(ir.load(bundles[target] / f"{tower}.onnx"))
    if request.config.getoption("--bless"):
        held.write_text(found)
    assert found == held.read_text()


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_savings_all_apply(bundles: dict[Target, Path], target: Target) -> None:
    """Three layers each: what kernels allow is one op each. The CPU's text graph holds its two ways."""
    layers = 3
    text, vision = (ir.load(bundles[target] / f"{tower}.onnx") for tower in GRAPHS)
    ways = 2 if target == "cpu" else 1
    assert count_operators(text)["com.microsoft.RotaryEmbedding"] == 2 * layers * ways
    assert count_operators(vision)["com.microsoft.RotaryEmbedding"] == 2 * layers - 1  # CLS alone is not rotated
    assert count_operators(vision)["com.microsoft.MultiHeadAttention"] == layers
    assert len(products(text)) == 4 * layers * ways  # q, k and v are one
    # The patches, and the last block's q apart; on the CPU, where a split copies, k, v and up are apart as well.
    apart = 3 * layers - 1 if target == "cpu" else 0
    assert len(products(vision)) == 4 * layers + 1 + 1 + apart
    assert ("Split" in count_operators(vision)) == (target != "cpu")
    assert vision.graph.inputs[0].dtype == ir.DataType.UINT8
    assert products(vision)[-1].inputs[0].shape[1] == 1  # the last block's MLP sees one token


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tower", GRAPHS)
def test_the_weights_are_the_towers_and_nothing_more(bundles: dict[Target, Path], target: Target, tower: str) -> None:
    """No adapter, no second copy of a weight, no table of positions: what is stored is what is counted."""
    model = ir.load(bundles[target] / f"{tower}.onnx")
    stored = sum(tensor.const_value.size for tensor in model.graph.initializers.values())
    config = parse_config(read_json(CHECKPOINT / "config.json"))
    part = config.text if tower == "text" else config.vision
    rows = config.text.max_tokens if tower == "text" else 1 + config.vision.patches
    tables = 2 * rows * part.head_width // 2
    parameters = Manifest.read(bundles[target]).graphs[tower].parameters
    turned_biases = 3 * part.layers * (3 * part.width + part.width + part.mlp_width + part.width) // 3
    spare = 100 + (turned_biases if (target, tower) == ("cpu", "text") else 0)
    zeros = part.layers * part.width if (target, tower) == ("cpu", "vision") else 0  # the keys' bias
    assert parameters + tables - zeros <= stored <= parameters + tables - zeros + spare


def test_the_attention_scale_is_in_the_weights(bundles: dict[Target, Path]) -> None:
    """So every kernel is told to use 1."""
    for tower in GRAPHS:
        model = ir.load(bundles["cpu"] / f"{tower}.onnx")
        scales = {
            node.attributes["scale"].as_float()
            for node in model.graph.all_nodes()
            if node.op_type == "MultiHeadAttention"
        }
        assert scales == {1.0}


def traced(module: nn.Module) -> ir.Model:
    """The module's trace with its own tensors as weights."""
    settings = {
        name: value for name, value in vars(module).items() if name in ("is_masked", "activation", "is_biased")
    }
    weights = {
        name: LazyWeight(tuple(weight.shape), lambda weight=weight: weight)
        for name, weight in module.state_dict().items()
    }
    plan = GraphPlan(
        name="text",
        build=lambda: type(module)(**settings),
        examples={"x": some_input()},
        dynamic={"x": {0: "batch", 1: "sequence"}},
        outputs={"y": None},
        weights=weights,
        traits=Traits(),
        cases=lambda answers: [],
    )
    return trace(plan)


def some_input() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def compare(module: nn.Module, model: ir.Model, x: Tensor, folder: Path) -> None:
    ir.save(model, folder / "model.onnx")
    found = run_graph(folder / "model.onnx", x.numpy())
    with torch.no_grad():
        wanted = module(x).numpy()
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= SAME * max(scale, 1.0)


def products(model: ir.Model) -> list[ir.Node]:
    """Every matrix product with weights, in either way of a choice."""
    kinds = ("MatMul", "FusedMatMul")
    return [
        node
        for node in model.graph.all_nodes()
        if node.op_type in kinds and any(value.is_initializer() for value in node.inputs[:2])
    ]


def test_bytes_are_measured_as_what_they_are_cast_to() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (uint8[A, 3] x) => (float[A, 3] y, int64[2] shape) {{ y = {cast} shape = Shape(x) }}"""
    found = MeasureAfterCast()(ir.from_proto(onnx.parser.parse_model(text.format(cast="Cast<to = 1>(x)"))))
    assert found.modified
    assert {node.op_type: node.inputs[0].name for node in found.model.graph} == {"Cast": "x", "Shape": "y"}
    assert not MeasureAfterCast()(found.model).modified
    with pytest.raises(ir.passes.PostconditionError, match="1 Shape of bytes"):
        MeasureAfterCast()(ir.from_proto(onnx.parser.parse_model(text.format(cast="Identity(x)"))))
