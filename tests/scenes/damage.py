"""Bundles with something wrong in them that their manifests do not show."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from edgeclip.manifest import MANIFEST_NAME, ArrayFacts, Manifest
from tests.scenes.graph_writer import FLOAT, node, save_graph

# A graph's input, and the name of its output.
_ARRAYS = {
    "text": (ArrayFacts(name="input_ids", dtype="int64", axes=("batch", "sequence")), "text_embeds"),
    "vision": (
        ArrayFacts(name="pixel_values", dtype="uint8", axes=("batch", "height", "width", 3)),
        "image_embeds",
    ),
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
    taken, output = _ARRAYS[graph]
    answer = "answer" if shape or is_unit else output
    nodes = [
        node("Cast", [taken.name], ["numbers"], to=FLOAT),
        node("Flatten", ["numbers"], ["rows"], axis=1),
        node("ReduceMean", ["rows", "axis"], ["mean"], keepdims=1),  # (B, 1)
        node("Mul", ["mean", "scale"], ["scaled"]),
        node("Add", ["scaled", "offset"], [answer]),  # (B, D)
    ]
    if is_unit:
        nodes.append(node("LpNormalization", [answer], [output], axis=1))
    constants = {
        "axis": np.array([1]),
        "scale": np.atleast_2d(np.float32(scale)),
        "offset": np.atleast_2d(np.float32(offset)),
    }
    if shape:
        nodes.append(node("Reshape", [answer, "shape"], [output]))
        constants["shape"] = np.array(shape)
    given = ArrayFacts(name=output, dtype="float32", axes=("batch", "dim"))
    save_graph(folder / Manifest.read(folder).graphs[graph].file, graph, nodes, [taken], [given], constants)
    reseal(folder)
