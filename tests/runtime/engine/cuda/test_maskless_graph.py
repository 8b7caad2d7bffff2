"""The text graph for CUDA without its choice: no If is left, and texts without padding get the same vectors."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeclip.engine.cuda.maskless_graph import without_mask
from edgeclip.errors import BundleError
from edgeclip.manifest import Manifest, Target

IDS = np.array([[0, 5, 6, 7, 2], [0, 8, 9, 10, 2]])


def operators(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


def open_session(model: bytes, folder: Path, optimized: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def test_the_choice_is_made(bundles: dict[Target, Path], tmp_path: Path) -> None:
    """onnxruntime opens the graph with the unmasked branch in the If's place, and the vectors are the same."""
    folder = bundles["cuda"]
    whole = (folder / "text.onnx").read_bytes()
    unmasked = without_mask(whole)
    assert unmasked is not None
    assert unmasked.pad_id == Manifest.read(folder).need_text().pad_id
    fast = open_session(unmasked.model, folder, tmp_path / "fast.onnx")
    left = operators(onnx.load(tmp_path / "fast.onnx", load_external_data=False).graph)
    assert "If" not in left and "MultiHeadAttention" in left
    slow = open_session(whole, folder, tmp_path / "slow.onnx")
    assert "If" in operators(onnx.load(tmp_path / "slow.onnx", load_external_data=False).graph)
    found, wanted = (session.run(None, {"input_ids": IDS})[0] for session in (fast, slow))
    assert np.abs(found - wanted).max() <= 1e-6
    padded = np.array([[0, 5, 6, unmasked.pad_id, 2]])
    found, wanted = (session.run(None, {"input_ids": padded})[0] for session in (fast, slow))
    assert np.abs(found - wanted).max() > 1e-3  # else the branch would not have mattered


@pytest.mark.parametrize(
    ("target", "name"), [("cuda", "vision"), ("tensorrt", "text"), ("cpu", "text"), ("cpu", "vision")]
)
def test_a_graph_that_does_not_ask_is_left_alone(bundles: dict[Target, Path], target: Target, name: str) -> None:
    """The CPU's choice is another one, by rows."""
    assert without_mask((bundles[target] / f"{name}.onnx").read_bytes()) is None


def test_a_graph_cut_short_is_one_error(bundles: dict[Target, Path]) -> None:
    whole = (bundles["cuda"] / "text.onnx").read_bytes()
    for size in range(1, len(whole), len(whole) // 40):
        try:
            assert without_mask(whole[:size]) is None  # nothing of the graph is there yet
        except BundleError as error:
            assert "cannot be read" in str(error) and "\n" not in str(error)
    with pytest.raises(BundleError, match="cannot be read"):
        without_mask(b"\x0f\x0f")


def test_two_questions_are_one_too_many(bundles: dict[Target, Path]) -> None:
    model = onnx.load(bundles["cuda"] / "text.onnx", load_external_data=False)
    choices = [node for node in model.graph.node if node.op_type == "If"]
    choices[0].input[0] = "another"
    with pytest.raises(BundleError, match="2 questions"):
        without_mask(model.SerializeToString())
