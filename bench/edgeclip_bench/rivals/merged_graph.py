"""Merge both plain towers into one graph with two inputs, as this model's official file has them, and run it.

A graph computes all that is in it. So a request for a text must also give an image: the smallest batch of zeros,
which costs a whole image. A request for an image gives a text of one token.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose

from edgeclip.engine.ort import start_session
from edgeclip_bench.rivals.recipes import GRAPHS

MERGED = "merged.onnx"
# XLM-RoBERTa's closing token: any but the padding token, of which there would be nothing to pool.
_DUMMY_ID = 2


def merge_graphs(graphs: Mapping[str, Path], folder: Path) -> Path:
    """Write one graph into `folder` that holds both towers' graphs, each with its weights in files beside it.

    Names become "<tower>_<name>", also those of dimensions: onnxruntime gives equally named dimensions the same
    buffers. `onnx.compose.merge_models` cannot be used, because it needs the weights in the working directory.
    """
    merged: onnx.ModelProto | None = None
    for tower in GRAPHS:
        model = compose.add_prefix(onnx.load(graphs[tower], load_external_data=False), f"{tower}_")
        graph = model.graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dimension in value.type.tensor_type.shape.dim:
                if dimension.dim_param:
                    dimension.dim_param = f"{tower}_{dimension.dim_param}"
        weights = (entry for weight in graph.initializer for entry in weight.external_data)
        for name in {entry.value for entry in weights if entry.key == "location"}:
            shutil.copyfile(graphs[tower].with_name(name), folder / name)  # a hard link, onnx takes for an attack
        if merged is None:
            merged = model
            continue
        for part in ("node", "initializer", "input", "output", "value_info"):
            getattr(merged.graph, part).extend(getattr(graph, part))
    assert merged is not None
    onnx.save(merged, folder / MERGED)
    return folder / MERGED


def open_merged(path: Path, tower: str, threads: int) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A function that runs the merged graph for one tower's rows (B, D), beside the other tower's dummy input."""
    session = start_session(path, threads=threads)
    names = dict(zip(GRAPHS, (found.name for found in session.get_inputs()), strict=True))
    other = "vision" if tower == "text" else "text"
    pixels = next(found.shape[1:] for found in session.get_inputs() if found.name == names["vision"])
    dummies: dict[str, NDArray[Any]] = {
        "text": np.full((1, 1), _DUMMY_ID, np.int64),
        "vision": np.zeros((1, *pixels), np.float32),
    }
    place = GRAPHS.index(tower)
    return lambda batch: session.run(None, {names[tower]: batch, names[other]: dummies[other]})[place]
