"""A tower as CUDA runs it, on the CPU: the graph without a mask in the lane, padded texts beside it."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeclip.engine.cuda.bound_runs import HostMemory
from edgeclip.engine.cuda.cuda_session import CudaLane, CudaTower, Run
from edgeclip.errors import BundleError
from edgeclip.manifest import Manifest, Target, TowerName

# The same inputs by other graphs and in other batches; measured 0 to 4e-7.
SAME = 5e-6
OPENED: list[Path] = []


def open_lane(path: Path, graph: str, *, captures: bool = True) -> CudaLane:
    """As `edgeclip.engine.session` does it."""
    cuda = CudaTower(path, tower, HostMemory(), captures=captures)
    options = onnxruntime.SessionOptions()
    for entry in cuda.entries:
        options.add_session_config_entry(*entry)
    session = onnxruntime.InferenceSession(cuda.model, options, providers=["CPUExecutionProvider"])
    return cuda.bind(session, lambda: open_plain(path))


def open_plain(path: Path) -> Run:
    OPENED.append(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]  # type: ignore[no-any-return]


@pytest.fixture
def folder(bundles: dict[Target, Path]) -> Path:
    OPENED.clear()
    return bundles["cuda"]


def test_texts_get_the_vectors_of_the_graph(folder: Path) -> None:
    """Alone, in batches larger than a slot, and with padding, for which the file is opened as it is, once."""
    path = folder / "text.onnx"
    lane, plain = open_lane(path, "text"), open_plain(path)
    OPENED.clear()
    draw = np.random.default_rng(0)
    for shape in ((1, 2), (1, 64), (1, 65), (1030, 2)):
        ids = draw.integers(3, 140, shape)
        assert np.abs(lane.run(ids) - plain(ids)).max() <= SAME
    assert lane.bound.captured == ((1, 2), (1, 64)) and not OPENED
    padded = np.array([[0, 5, 6, Manifest.read(folder).tokenizer.pad_id, 2]])
    for _ in range(2):
        assert np.abs(lane.run(padded) - plain(padded)).max() <= SAME
    assert [path] == OPENED
    assert np.abs(lane.bound.run(padded) - plain(padded)).max() > 1e-3  # what the other session is for
    lane.bound.close()


@pytest.mark.parametrize("captures", [True, False])
def test_images_get_the_vectors_of_the_graph(folder: Path, captures: bool) -> None:
    path = folder / "vision.onnx"
    lane, plain = open_lane(path, "vision", captures=captures), open_plain(path)
    size = Manifest.read(folder).image.size_px
    pixels = np.random.default_rng(0).integers(0, 256, (34, size, size, 3), np.uint8)
    wanted = plain(pixels)
    for count in (1, 3, 8, 34):
        assert np.abs(lane.run(pixels[:count]) - wanted[:count]).max() <= SAME
    expected = [1, 8, 32] if captures else []
    assert [shape[0] for shape in lane.bound.captured] == expected
    lane.bound.close()


def test_a_text_graph_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        CudaTower(tmp_path / "text.onnx", "text", HostMemory())
