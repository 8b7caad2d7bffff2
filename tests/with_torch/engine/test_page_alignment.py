"""Every weight and every packed copy of a written graph begins at a page, and holds what it held."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgeclip.engine.prepack.page_alignment import PAGE_BYTES, align_weights

# Two weights, the first with a packed copy of two buffers, one behind the other as onnxruntime writes them.
CONTENT = bytes(range(200)) + b"copy" * 30 + b"sums" * 5 + bytes(range(64))


def write(folder: Path, nodes: list[onnx.NodeProto] | None = None) -> tuple[Path, Path]:
    first = external("first", [200], {"offset": 0, "length": 200, "prepacked_0": "MatMul+123|200;120;0|320;20;0"})
    second = external("second", [64], {"offset": 340, "length": 64})
    inside = helper.make_tensor("inside", TensorProto.UINT8, [2], b"ab", raw=True)
    graph = helper.make_graph(nodes or [], "g", [], [], [first, inside, second])
    path, weights = folder / "g.onnx", folder / "g.onnx_data"
    path.write_bytes(helper.make_model(graph, producer_name="test").SerializeToString())
    weights.write_bytes(CONTENT)
    return path, weights


def external(name: str, shape: list[int], entries: dict[str, object]) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "g.onnx_data", **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_everything_begins_at_a_page(tmp_path: Path) -> None:
    path, weights = write(tmp_path)
    before = onnx.load(path, load_external_data=False)
    align_weights(path, weights)
    after = onnx.load(path, load_external_data=False)
    held = weights.read_bytes()
    first, inside, second = after.graph.initializer
    entries = {entry.key: entry.value for entry in first.external_data}
    key, *buffers = entries["prepacked_0"].split("|")
    places = [tuple(map(int, buffer.split(";"))) for buffer in buffers]
    assert key == "MatMul+123" and [size for _, size, _ in places] == [120, 20]
    assert [held[at : at + size] for at, size, _ in places] == [b"copy" * 30, b"sums" * 5]
    offsets = [int(entries["offset"]), *(at for at, _, _ in places)]
    offsets.append(next(int(entry.value) for entry in second.external_data if entry.key == "offset"))
    assert offsets == [0, PAGE_BYTES, 2 * PAGE_BYTES, 3 * PAGE_BYTES]
    assert held[:200] == bytes(range(200)) and held[offsets[-1] :] == bytes(range(64))
    assert inside == before.graph.initializer[1] and after.producer_name == "test"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["g.onnx", "g.onnx_data"]


def test_weights_of_a_graph_inside_are_not_left_where_they_were(tmp_path: Path) -> None:
    branch = helper.make_graph([], "b", [], [], [external("third", [4], {"offset": 0, "length": 4})])
    path, weights = write(tmp_path, [helper.make_node("If", ["c"], [], then_branch=branch, else_branch=branch)])
    with pytest.raises(ValueError, match="2 weights were found, it names g.onnx_data more often"):
        align_weights(path, weights)


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    path, weights = write(tmp_path)
    weights.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="ends 1 bytes early"):
        align_weights(path, weights)
