"""A graph is opened here as the runtime opens it, and its answers come in the order of what was asked."""

import platform
from pathlib import Path

import numpy as np
import pytest

from edgeclip import session
from edgeclip.devices import Device
from edgeclip.manifest import Manifest
from edgeclip.providers import plan_session
from edgeclip_quant import running
from edgeclip_quant.proof import proof_samples
from edgeclip_quant.running import answer, open_tower


def test_whether_integers_overflow_is_found_out_alike_here_and_there() -> None:
    """onnxruntime's cure halves the speed, so it must not be taken where there is nothing to cure."""
    assert running.adds_in_16_bits() == session.adds_in_16_bits()
    plan = plan_session(Device(kind="cpu"), "int8", threads=1, adds_in_16_bits=True)
    assert plan.entries == (running._SPIN_ONLY_INSIDE_CALLS, running._RIGHT_WITHOUT_VNNI)
    assert list(plan.without) == running._SLOWER_FUSIONS


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs a system that tells what its processor has")
def test_what_has_instructions_for_it_does_not_overflow() -> None:
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    if platform.machine() != "x86_64" or words & {"avx512_vnni", "avx_vnni"}:
        assert not session.adds_in_16_bits()


def test_answers_come_in_the_order_of_the_batches(bundle: Path) -> None:
    path, batches = bundle / "text_model.onnx", proof_samples(bundle, Manifest.read(bundle)).text[:5]
    said: list[tuple[str, int, int]] = []
    found = answer(path, batches, "asking", lambda *one: said.append(one))
    assert said == [("asking", done, 5) for done in range(5)]
    run = open_tower(path)
    for row, batch in zip(found, batches, strict=True):
        np.testing.assert_allclose(run(batch)[0], row, atol=1e-7)
