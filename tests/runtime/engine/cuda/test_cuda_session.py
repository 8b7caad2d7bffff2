"""A graph as CUDA runs it, on the CPU: without a mask in the lane, padded texts in a session beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeclip.bundle.files import unmasked_name
from edgeclip.engine import opening
from edgeclip.engine.adapters import Adapters
from edgeclip.engine.cuda.cuda_session import CudaGraph, CudaLane, Run
from edgeclip.engine.cuda.memory import HostMemory
from edgeclip.errors import BundleError
from edgeclip.manifest import Manifest, Target

# The same inputs by other graphs and in other batches; measured 0 to 4e-7.
SAME = 5e-6
OPENED: list[Path] = []


def open_lane(path: Path, graph: str, *, captures: bool = True) -> CudaLane:
    """As `edgeclip.engine.opening` opens it."""
    unmasked = path.with_name(unmasked_name(path.name)) if graph == "text" else None
    pad_id = Manifest.read(path.parent).need_text().pad_id
    cuda = CudaGraph(path, graph, HostMemory(), unmasked=unmasked, pad_id=pad_id, captures=captures)
    session = onnxruntime.InferenceSession(cuda.model, providers=["CPUExecutionProvider"])
    return cuda.bind(session, Adapters(path.parent, graph, None, {}), lambda: open_plain(path))


def open_plain(path: Path) -> Run:
    OPENED.append(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed, fetch=None, adapter=None: dict(zip(names, session.run(names, dict(feed)), strict=True))


def worst(found: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]) -> float:
    """The largest difference between two graphs' only output."""
    ((name, one),), ((same_name, other),) = found.items(), wanted.items()
    assert name == same_name and one.shape == other.shape
    return float(np.abs(one - other).max())


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
        ids = {"input_ids": draw.integers(3, 140, shape)}
        assert worst(lane.run(ids, None), plain(ids)) <= SAME
    assert lane.bound.captured == (((1, 2), None), ((1, 64), None)) and not OPENED
    padded = {"input_ids": np.array([[0, 5, 6, Manifest.read(folder).need_text().pad_id, 2]])}
    for _ in range(2):
        assert worst(lane.run(padded, None), plain(padded)) <= SAME
    assert [path] == OPENED
    assert worst(lane.bound.run(padded), plain(padded)) > 1e-3  # what the other session is for
    lane.bound.close()


@pytest.mark.parametrize("captures", [True, False])
def test_images_get_the_vectors_of_the_graph(folder: Path, captures: bool) -> None:
    path = folder / "vision.onnx"
    lane, plain = open_lane(path, "vision", captures=captures), open_plain(path)
    size = Manifest.read(folder).need_image().size_px
    pixels = np.random.default_rng(0).integers(0, 256, (34, size, size, 3), np.uint8)
    wanted = plain({"pixel_values": pixels})["image_embeds"]
    for count in (1, 3, 8, 34):
        found = lane.run({"pixel_values": pixels[:count]}, None)
        assert worst(found, {"image_embeds": wanted[:count]}) <= SAME
    expected = [1, 8, 32] if captures else []
    assert [shape[0] for shape, _ in lane.bound.captured] == expected
    lane.bound.close()


def test_the_form_without_a_mask_is_found_by_the_manifest_and_verified(
    folder: Path, bundles: dict[Target, Path], tmp_path: Path
) -> None:
    manifest = Manifest.read(folder)
    assert opening._verified_unmasked(folder / "text.onnx", manifest) == folder / "text.unmasked.onnx"
    assert opening._verified_unmasked(folder / "vision.onnx", manifest) is None
    cpu = bundles["cpu"]
    assert opening._verified_unmasked(cpu / "text.onnx", Manifest.read(cpu)) is None
    (tmp_path / "text.unmasked.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="text.unmasked.onnx"):
        opening._verified_unmasked(tmp_path / "text.onnx", manifest)
