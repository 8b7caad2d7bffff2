"""Causal attention and RMSNorm: fused and in standard operators they answer as torch does, at any length."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import PassBase
from torch import Tensor, nn

from edgeclip.manifest import Target
from edgeclip_export.operators import causal_attention, rms_norm
from edgeclip_graph.passes import lower
from edgeclip_graph.passes.causal_attention import (
    FuseCausalAttention,
    RepeatCausalAttention,
    SpellOutCausalAttention,
)
from edgeclip_graph.passes.rms_norm import FuseRmsNorm, SpellOutRmsNorm
from edgeclip_graph.traits import Traits
from tests.graph.passes.test_passes import HEADS, TOKENS, WIDTH, compare, some_input, traced

KV_HEADS = 2


class Sees(nn.Module):
    """Two causal attentions, one after the other; two heads of queries share one of keys."""

    def forward(self, x: Tensor) -> Tensor:
        keys, values = x.chunk(2, dim=-1)
        h = causal_attention(x, keys, values, HEADS, KV_HEADS)
        return causal_attention(h, values, keys, HEADS, KV_HEADS)


class Norms(nn.Module):
    """An RMSNorm whose epsilon counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, 0.1)


CASES = [
    (Sees, FuseCausalAttention),
    (Sees, RepeatCausalAttention),
    (Sees, SpellOutCausalAttention),
    (Norms, FuseRmsNorm),
    (Norms, SpellOutRmsNorm),
]


@pytest.mark.parametrize(("module", "step"), CASES)
@pytest.mark.parametrize("tokens", [1, 2, TOKENS])
def test_it_answers_as_torch_does(tmp_path: Path, module: type[nn.Module], step: type[PassBase], tokens: int) -> None:
    tower = module()
    compare(tower, step()(traced(tower)).model, some_input()[:, :tokens], tmp_path)


@pytest.mark.parametrize(("target", "kernel"), [("cpu", "GroupQueryAttention"), ("cuda", "MultiHeadAttention")])
def test_no_mask_of_tokens_x_tokens_is_made(target: Target, kernel: str) -> None:
    model = lower(traced(Sees()), target, "text", Traits())
    operators = [node.op_type for node in model.graph]
    assert operators.count(kernel) == 2
    assert not {"Where", "Softmax", "LessOrEqual", "Range"} & set(operators)
    assert operators.count("Expand") <= 1  # the lengths, once for both


def test_the_next_attention_reads_what_a_cache_would_hold() -> None:
    """onnxruntime keeps a value without a reader until the run ends: 17 MB a layer for 8,192 tokens."""
    model = lower(traced(Sees()), "cpu", "text", Traits())
    first, second = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    for cached in first.outputs[1:]:
        assert cached.name
        assert second in _readers(cached)


def _readers(value: ir.Value) -> set[ir.Node]:
    """The nodes that cannot be computed before the value."""
    users = {user for user, _ in value.uses()}
    return users.union(*(_readers(output) for user in users for output in user.outputs))


def test_the_mask_is_made_once_for_all_attentions() -> None:
    model = lower(traced(Sees()), "tensorrt", "text", Traits())
    assert [node.op_type for node in model.graph].count("Where") == 1
    assert {node.domain for node in model.graph} == {""}


def test_a_later_token_changes_no_earlier_one() -> None:
    tower = Sees()
    x = some_input()
    changed = torch.cat((x[:, :-1], 5 + x[:, -1:]), dim=1)
    wanted = tower(x)[:, :-1]
    assert torch.allclose(tower(changed)[:, :-1], wanted, atol=1e-6)
    assert not torch.allclose(tower(changed)[:, -1], tower(x)[:, -1], atol=1e-2)


def test_rms_norm_is_no_layer_norm() -> None:
    model = FuseRmsNorm()(traced(Norms())).model
    (node,) = [node for node in model.graph if node.op_type == "RMSNormalization"]
    assert node.attributes["epsilon"].as_float() == pytest.approx(0.1)
