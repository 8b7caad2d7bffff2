"""Bundles with something wrong in them that their manifests do not show."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from edgeclip.manifest import MANIFEST_NAME, Manifest, TowerName

_INPUTS = {
    "text": ("input_ids", TensorProto.INT64, ["batch", "sequence"]),
    "vision": ("pixel_values", TensorProto.UINT8, ["batch", "height", "width", 3]),
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
    """A tower that answers `mean of the input * scale + offset`, over its length if `is_unit`.

    One with a fixed `shape` fails when run.
    """
    name, dtype, axes = _INPUTS[tower]
    answer = "answer" if shape or is_unit else f"{tower}_embeds"
    nodes = [
        helper.make_node("Cast", [name], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["rows"], axis=1),
        helper.make_node("ReduceMean", ["rows", "axis"], ["mean"], keepdims=1),  # (B, 1)
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], [answer]),  # (B, D)
    ]
    if is_unit:
        nodes.append(helper.make_node("LpNormalization", [answer], [f"{tower}_embeds"], axis=1))
    constants = {
        "axis": np.array([1]),
        "scale": np.atleast_2d(np.float32(scale)),
        "offset": np.atleast_2d(np.float32(offset)),
    }
    if shape:
        nodes.append(helper.make_node("Reshape", [answer, "shape"], [f"{tower}_embeds"]))
        constants["shape"] = np.array(shape)
    graph = helper.make_graph(
        nodes,
        tower,
        [helper.make_tensor_value_info(name, dtype, axes)],
        [helper.make_tensor_value_info(f"{tower}_embeds", TensorProto.FLOAT, ["batch", "dim"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / Manifest.read(folder).graphs[graph].file)
    reseal(folder)
