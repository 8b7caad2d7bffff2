"""Bundles with something wrong in them that their manifests do not show."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from edgeclip.manifest import MANIFEST_NAME, Manifest

# The name, type and axes of a graph's input, and the name of its output.
_ARRAYS = {
    "text": ("input_ids", TensorProto.INT64, ["batch", "sequence"], "text_embeds"),
    "vision": ("pixel_values", TensorProto.UINT8, ["batch", "height", "width", 3], "image_embeds"),
}


def flip_byte(path: Path, position: int) -> None:
    """Change one byte; the file keeps its size."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x55
    path.write_bytes(content)


def reseal(folder: Path, **changes: object) -> None:
    """Write a manifest that fits the files as they are now, with `changes` of its own facts."""
    manifest = Manifest.read(folder)
    files = []
    for file in manifest.files:
        content = (folder / file.name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files.append(dataclasses.replace(file, size_bytes=len(content), sha256=digest))
    changed = dataclasses.replace(manifest, files=tuple(files), **changes)
    (folder / MANIFEST_NAME).write_text(changed.to_json(), encoding="utf-8")


def replace_graph(
    folder: Path,
    graph: str,
    *,
    scale: ArrayLike,
    offset: ArrayLike,
    shape: tuple[int, ...] | None = None,
    is_unit: bool = False,
) -> None:
    """Make a bundle's graph answer `mean of the input * scale + offset`, over its length if `is_unit`.

    With a fixed `shape` it fails when it is run.
    """
    name, dtype, axes, output = _ARRAYS[graph]
    answer = "answer" if shape or is_unit else output
    nodes = [
        helper.make_node("Cast", [name], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["rows"], axis=1),
        helper.make_node("ReduceMean", ["rows", "axis"], ["mean"], keepdims=1),  # (B, 1)
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], [answer]),  # (B, D)
    ]
    if is_unit:
        nodes.append(helper.make_node("LpNormalization", [answer], [output], axis=1))
    constants = {
        "axis": np.array([1]),
        "scale": np.atleast_2d(np.float32(scale)),
        "offset": np.atleast_2d(np.float32(offset)),
    }
    if shape:
        nodes.append(helper.make_node("Reshape", [answer, "shape"], [output]))
        constants["shape"] = np.array(shape)
    made = helper.make_graph(
        nodes,
        graph,
        [helper.make_tensor_value_info(name, dtype, axes)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "dim"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / Manifest.read(folder).graphs[graph].file)
    reseal(folder)
