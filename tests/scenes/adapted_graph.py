"""A tiny text graph that takes adapters, a bundle with it, and the numpy that its answers are held against.

token_embeds = h W + (h A) B for the rows h of a table; text_embeds is their mean, over its length.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.manifest import MANIFEST_NAME, AdapterFacts, ArrayFacts, FileFacts, Manifest, TaskFacts
from tests.scenes import graph_writer
from tests.scenes.graph_writer import node

Arrays = Mapping[str, NDArray[Any]]

DIM, RANK, _IDS, _PLACES = 64, 2, 1000, 64
_draw = np.random.default_rng(0)
TABLE, PLACES, PRODUCT = (_draw.normal(size=(rows, DIM)).astype(np.float32) for rows in (_IDS, _PLACES, DIM))
# Arrays by the names of the graph's inputs, for each adapter.
ADAPTERS: Mapping[str, Arrays] = {
    name: {
        "lora_a": np.random.default_rng(seed).normal(size=(DIM, RANK)).astype(np.float32),
        "lora_b": np.random.default_rng(seed + 9).normal(size=(RANK, DIM)).astype(np.float32),
    }
    for seed, name in enumerate(("retrieval", "matching"))
}
TASKS = {
    "retrieval.query": TaskFacts(prompt="Query: ", adapter="retrieval", modalities=("text",)),
    "retrieval.passage": TaskFacts(prompt="", adapter="retrieval", modalities=("text", "image")),
    "text-matching": TaskFacts(prompt="", adapter="matching", modalities=("text",)),
}
_INPUTS = (ArrayFacts(name="input_ids", dtype="int64", axes=("batch", "tokens")),)
_OUTPUTS = (
    ArrayFacts(name="text_embeds", dtype="float32", axes=("batch", DIM)),
    ArrayFacts(name="token_embeds", dtype="float32", axes=("batch", "tokens", DIM)),
)


def save_graph(path: Path, *, has_places: bool = False) -> None:
    """Write the graph; with `has_places` it takes `positions` (batch, tokens) besides, whose rows are added to h."""
    nodes = [
        node("Gather", ["table", "input_ids"], ["words"]),
        node("MatMul", ["h" if has_places else "words", "product"], ["base"]),
        node("MatMul", ["h" if has_places else "words", "lora_a"], ["narrow"]),
        node("MatMul", ["narrow", "lora_b"], ["added"]),
        node("Add", ["base", "added"], ["token_embeds"]),
        node("ReduceMean", ["token_embeds", "axis"], ["mean"], keepdims=0),
        node("LpNormalization", ["mean"], ["text_embeds"], axis=1),
    ]
    constants = {"table": TABLE, "product": PRODUCT, "axis": np.array([1])}
    inputs = [*_INPUTS]
    if has_places:
        nodes[1:1] = [
            node("Gather", ["places", "positions"], ["where"]),
            node("Add", ["words", "where"], ["h"]),
        ]
        constants["places"] = PLACES
        inputs.append(ArrayFacts(name="positions", dtype="int64", axes=("batch", "tokens")))
    inputs += [
        ArrayFacts(name=name, dtype="float32", axes=shape)
        for name, shape in (("lora_a", (DIM, RANK)), ("lora_b", (RANK, DIM)))
    ]
    graph_writer.save_graph(path, "text", nodes, inputs, _OUTPUTS, constants)


def answer(feed: Arrays, adapter: str | None = None) -> dict[str, NDArray[np.float64]]:
    """What the graph has to answer, in float64."""
    h = TABLE[feed["input_ids"]].astype(np.float64)  # (B, T, D)
    if "positions" in feed:
        h = h + PLACES[feed["positions"]]
    tokens = h @ PRODUCT
    if adapter is not None:
        tokens = tokens + h @ ADAPTERS[adapter]["lora_a"] @ ADAPTERS[adapter]["lora_b"]
    mean = tokens.mean(axis=1)
    return {"text_embeds": mean / np.linalg.norm(mean, axis=1, keepdims=True), "token_embeds": tokens}


def adapt(folder: Path, **changes: object) -> Manifest:
    """Give a bundle this graph, the adapters and the tasks, and other `changes` of its manifest."""
    manifest = Manifest.read(folder)
    save_graph(folder / manifest.graphs["text"].file)
    (folder / f"{manifest.graphs['text'].file}_data").unlink()
    for name, arrays in ADAPTERS.items():
        np.savez(folder / f"{name}.adapter.npz", **arrays)
    graph = dataclasses.replace(
        manifest.graphs["text"],
        inputs=_INPUTS,
        outputs=_OUTPUTS,
    )
    facts: dict[str, Any] = {
        "graphs": {**manifest.graphs, "text": graph},
        "tasks": TASKS,
        "adapters": {name: AdapterFacts(file=f"{name}.adapter.npz", graph="text", rank=RANK) for name in ADAPTERS},
        "files": tuple(
            FileFacts(
                name=path.name,
                size_bytes=path.stat().st_size,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            for path in sorted(folder.iterdir())
            if path.name != MANIFEST_NAME
        ),
    }
    changed = dataclasses.replace(manifest, **facts | changes)
    (folder / MANIFEST_NAME).write_text(changed.to_json(), encoding="utf-8")
    return changed
