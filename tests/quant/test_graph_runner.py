"""A graph is opened here as the runtime opens it, and its answers come in the order of what was asked."""

import platform
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeclip import Encoder
from edgeclip.engine import products
from edgeclip.manifest import Manifest
from edgeclip_quant import graph_runner
from edgeclip_quant.graph_runner import answer, open_run
from edgeclip_quant.proof.measurement import proof_samples
from tests.scenes.graph_feeds import GRAPHS, feeds, open_feeder


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_is_opened_as_the_runtime_opens_it(bundle: Path, encoder: Encoder, graph: str) -> None:
    """Bits included: with the fused normalisation that the runtime switches off the sums are others."""
    path = bundle / Manifest.read(bundle).graphs[graph].file
    run = open_run(path, threads=encoder.threads)
    for feed in feeds(bundle, graph, proof_samples(open_feeder(bundle)))[:3]:
        (found,), (wanted,) = run(feed).values(), encoder.run_graph(graph, feed).values()
        np.testing.assert_array_equal(found, wanted)


def test_integers_that_overflow_are_mended_here_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's entry is asked of onnxruntime, which keeps what it was given."""
    monkeypatch.setattr(graph_runner, "adds_in_16_bits", lambda: True)
    given: list[str | None] = []
    honest = onnxruntime.InferenceSession

    def start(path: Path, options: onnxruntime.SessionOptions, **others: object) -> onnxruntime.InferenceSession:
        try:
            given.append(options.get_session_config_entry("session.x64quantprecision"))
        except RuntimeError:  # there is no such entry
            given.append(None)
        return honest(path, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    open_run(bundle / "text.onnx")
    open_run(bundle / "text.onnx", {"int8 per row": 2, "int7 per row": 1})
    open_run(bundle / "text.onnx", {"int7 per row": 3, "fp32": 1})
    monkeypatch.setattr(graph_runner, "pairs_overflow", lambda: True)
    open_run(bundle / "text.onnx", {"int7 per row": 3, "fp32": 1})
    assert given == ["1", "1", None, "1"]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs a system that tells what its processor has")
def test_what_has_instructions_for_it_does_not_overflow() -> None:
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    if platform.machine() == "x86_64" and not words & {"avx512_vnni", "avx_vnni"}:
        pytest.skip("this processor may overflow")
    assert not products.adds_in_16_bits()


def test_answers_come_in_the_order_of_the_batches(bundle: Path) -> None:
    path, batches = bundle / "text.onnx", feeds(bundle, "text", proof_samples(open_feeder(bundle)))[:5]
    said: list[tuple[str, int, int]] = []
    found = answer(path, batches, "asking", lambda *one: said.append(one))
    assert said == [("asking", done, 5) for done in range(5)]
    run = open_run(path)
    for row, batch in zip(found, batches, strict=True):
        np.testing.assert_allclose(run(batch)["text_embeds"][0], row, atol=1e-7)
