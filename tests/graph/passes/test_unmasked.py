"""Without padding, the form of a CUDA text graph that never masks answers as the other; both have the same data."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import PreconditionError

from edgeclip.engine.ort import start_session
from edgeclip.manifest import Target
from edgeclip_graph.census import count_operators
from edgeclip_graph.passes.unmasked import TakeUnmasked, has_choice, unmasked_path

# The same sums.
SAME = 1e-7


def test_it_answers_as_the_graph_without_padding(bundles: dict[Target, Path]) -> None:
    path = bundles["cuda"] / "text.onnx"
    unmasked = unmasked_path(path)
    ids = np.random.default_rng(0).integers(4, 60, (3, 9))
    wanted, found = (start_session(one).run(None, {"input_ids": ids})[0] for one in (path, unmasked))
    assert np.abs(found - wanted).max() <= SAME
    ids[1, -3:] = 1
    wanted, found = (start_session(one).run(None, {"input_ids": ids})[0] for one in (path, unmasked))
    assert np.abs(found[1] - wanted[1]).max() > 1e-3  # the mask is gone
    assert np.abs(found[[0, 2]] - wanted[[0, 2]]).max() <= 2 * SAME


def test_it_has_no_choice_and_no_weights_of_its_own(bundles: dict[Target, Path]) -> None:
    path = bundles["cuda"] / "text.onnx"
    model, unmasked = ir.load(path), ir.load(unmasked_path(path))
    assert has_choice(model) and not has_choice(unmasked)
    found, wanted = count_operators(unmasked), count_operators(model)
    assert "If" not in found and found["com.microsoft.MultiHeadAttention"] == wanted["If"] == 3
    assert unmasked_path(path).stat().st_size < 64_000


def test_only_a_text_graph_for_cuda_has_one(bundles: dict[Target, Path]) -> None:
    found = {path for one in bundles.values() for path in one.glob("*.unm*")}
    assert found == {unmasked_path(bundles["cuda"] / "text.onnx")}
    with pytest.raises(PreconditionError, match="no attention chooses whether to mask"):
        TakeUnmasked()(ir.load(bundles["cuda"] / "vision.onnx"))
