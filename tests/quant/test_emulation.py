"""The CPU answers as an fp16 graph would: every step rounded, overflow and all, which onnxruntime alone hides."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx_ir.passes import PostconditionError
from scipy.special import erf

from edgeclip import BuildError, Manifest
from edgeclip.manifest import Target
from edgeclip_quant import emulation
from edgeclip_quant.emulation import emulating_session
from tests.scenes.graph_feeds import GRAPHS, feeds, made_up

# numpy's exp and erf and sums are others in the last bit: now and then a rounding falls on the other side.
ALIKE = 0.95
STEP = 2.0**-10


def half(array: Any) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        rounded: NDArray[np.float32] = np.asarray(array).astype(np.float16).astype(np.float32)
    return rounded


def agree(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
    """To the last bit nearly everywhere, and nowhere far off."""
    return bool((found == wanted).mean() > ALIKE and np.allclose(found, wanted, rtol=STEP, atol=12 * STEP))


def saved(folder: Path, text: str) -> Path:
    path = folder / "graph.onnx"
    header = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>'
    path.write_bytes(onnx.parser.parse_model(header + text).SerializeToString())
    return path


def answer(path: Path, **inputs: NDArray[Any]) -> NDArray[np.float32]:
    with emulating_session(path, path.parent, threads=1) as session:
        found: NDArray[np.float32] = session.run(None, inputs)[0]
    return found


CHAIN = """g (float[n] x) => (float[n] y) {
    a = Cast<to = 10>(x)
    b = Mul(a, a)
    c = Neg(b)
    d = Add(c, a)
    y = Cast<to = 1>(d)
}"""


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_onnxruntime_alone_hides_what_fp16_does(tmp_path: Path, level: str) -> None:
    """Why the module is there. When this fails, onnxruntime rounds by itself, and the module may go."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    path = saved(tmp_path, CHAIN)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = np.array([300, 1 + 2**-10], np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x - x * x)


def test_every_step_is_rounded(tmp_path: Path) -> None:
    x = np.concatenate(([300, 1 + 2**-10, 1e-5, 0], np.random.default_rng(0).normal(0, 3, 500))).astype(np.float32)
    a = half(x)
    wanted = half(half(-half(a * a)) + a)
    found = answer(saved(tmp_path, CHAIN), x=x)
    assert np.isinf(wanted[0])
    np.testing.assert_array_equal(found, wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.onnx"]


def test_a_product_adds_up_in_fp32(tmp_path: Path) -> None:
    """Half by half 2048 + 1 + 1 + ... would stay at 2048."""
    path = saved(
        tmp_path,
        """g (float[1, n] x, float[n, 1] w) => (float[1, 1] y) {
        a = Cast<to = 10>(x)
        b = Cast<to = 10>(w)
        p = MatMul(a, b)
        y = Cast<to = 1>(p)
    }""",
    )
    ones = np.ones((1, 1001), np.float32)
    ones[0, 0] = 2048
    assert answer(path, x=ones, w=np.ones((1001, 1), np.float32)) == 3048


GATES = half(np.concatenate((np.linspace(-12, 12, 999), [60, -60, 0])))


def test_quick_gelu_loses_what_the_kernel_loses(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        """g (float[n] x) => (float[n] y) {
        a = Cast<to = 10>(x)
        s = com.microsoft.QuickGelu<alpha = 1.0>(a)
        y = Cast<to = 1>(s)
    }""",
    )
    x = GATES
    positive = half(1 / half(1 + half(np.exp(-np.abs(x)))))
    wanted = half(x * np.where(x < 0, half(1 - positive), positive))
    found = answer(path, x=x)
    assert agree(found, wanted)
    exact = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    assert 5e-4 < np.abs(found - exact)[np.abs(x) < 12].max() < 6e-3
    assert answer(path, x=np.array([-9], np.float32)) == 0  # silu(-9) is -1.1e-3


def test_gelu_works_in_fp16(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        """g (float[n] x) => (float[n] y) {
        a = Cast<to = 10>(x)
        s = Gelu(a)
        y = Cast<to = 1>(s)
    }""",
    )
    x = GATES
    wanted = half(half(x * 0.5) * half(1 + half(erf(half(x * half(0.5**0.5))))))
    assert agree(answer(path, x=x), wanted)


ATTENTION = """g (float[b, t, 8] q, float[b, t, 8] k, float[b, t, 8] v, int32[b, t] seen)
    => (float[b, t, 8] y) {{
    q_half = Cast<to = 10>(q)
    k_half = Cast<to = 10>(k)
    v_half = Cast<to = 10>(v)
    a = com.microsoft.MultiHeadAttention<num_heads = 2, scale = 0.5>(q_half, k_half, v_half{mask})
    y = Cast<to = 1>(a)
}}"""


def test_an_attention_with_a_mask_stores_its_scores(tmp_path: Path) -> None:
    """One without does not: there a score beyond 65504 does no harm."""
    draw = np.random.default_rng(0)
    q, k, v = (half(draw.normal(0, 3, (3, 5, 8))) for _ in range(3))
    seen = (np.arange(5) < np.array([5, 3, 1])[:, None]).astype(np.int32)
    heads = [one.reshape(3, 5, 2, 4) for one in (q, k, v)]
    scores = half(np.einsum("bqhd,bkhd->bhqk", *heads[:2])) * 0.5 + np.where(seen, 0, -10000)[:, None, None]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = half(weights / weights.sum(axis=-1, keepdims=True))
    wanted = half(np.einsum("bhqk,bkhd->bqhd", weights, heads[2])).reshape(3, 5, 8)

    masked = saved(tmp_path, ATTENTION.format(mask=", , seen"))
    assert agree(answer(masked, q=q, k=k, v=v, seen=seen), wanted)
    large = {"q": half(q * 400), "k": half(k * 400), "v": v, "seen": np.ones_like(seen)}
    assert np.isnan(answer(masked, **large)).any()
    assert np.isfinite(answer(saved(tmp_path, ATTENTION.format(mask="")), **large)).all()


def test_a_graph_that_is_given_fp16_is_refused(tmp_path: Path) -> None:
    """A bundle's never is; its first operator would run unrounded."""
    path = saved(tmp_path, "g (float16[2] x) => (float[2] y) { a = Neg(x)  y = Cast<to = 1>(a) }")
    with pytest.raises(PostconditionError, match="Neg .* has fp16 x still"), emulating_session(path, tmp_path):
        pass


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_an_fp32_graph_answers_as_ever(
    bundles: dict[Target, Path], target: Target, graph: str, tmp_path: Path
) -> None:
    bundle = bundles[target]
    path = bundle / Manifest.read(bundle).graphs[graph].file
    (sample,) = feeds(bundle, graph, made_up(bundle, texts=1, images=1))
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with emulating_session(path, tmp_path) as session:
        np.testing.assert_allclose(session.run(None, dict(sample))[0], plain.run(None, dict(sample))[0], atol=1e-6)


def test_an_onnxruntime_that_does_not_round_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of the versions before 1.27 would: the graph without the Casts that it takes away."""
    without = "\n".join(
        line for line in emulation._SQUARE.splitlines() if "half)" not in line and "to=10" not in line
    )
    monkeypatch.setattr(emulation, "_SQUARE", without.replace("again", "product"))
    with (
        pytest.raises(BuildError, match=r"onnxruntime 1\.\d+\.\d+ takes Casts to fp16 away"),
        emulating_session(saved(tmp_path, CHAIN), tmp_path),
    ):
        pass
