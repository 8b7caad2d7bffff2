"""A bundle of texts alone, with an adapter for each task: a tiny graph in the shape of jina-embeddings-v3's."""

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip import Encoder
from edgeclip.manifest import (
    MANIFEST_NAME,
    AdapterFacts,
    ArrayFacts,
    FileFacts,
    GraphFacts,
    Manifest,
    SingleSpace,
    Spaces,
    TaskFacts,
)
from tests.scenes.graph_writer import FLOAT, node, save_graph

DIM, DIMS = 64, (16, 32, 64)
TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
QUERY, PASSAGE = "Represent the query: ", "Represent the document: "
_SHIFT = "adapter_shift"


def make_text_bundle(source: Path, out: Path, *, task_required: bool = False) -> Path:
    """Write the bundle to `out`, with the tokenizer of the bundle `source`.

    A text's vector is the normalised mean of waves of its ids, shifted by the adapter's array. Dimensions are 16, 32
    or 64 and no others.
    """
    out.mkdir()
    before = Manifest.read(source)
    text = before.need_text()
    shutil.copy(source / text.file, out / text.file)
    _save(out / "text.onnx")
    random = np.random.default_rng(3)
    for task in TASKS:
        np.savez(out / f"{task}.adapter.npz", **{_SHIFT: random.standard_normal((1, DIM)).astype(np.float32)})
    prompts = {"retrieval.query": QUERY, "retrieval.passage": PASSAGE}
    changes: dict[str, Any] = {
        "source": dataclasses.replace(before.source, name="made-up/texts"),
        "graphs": {"text": _facts()},
        "spaces": Spaces(single=SingleSpace(dim=DIM, matryoshka_dims=DIMS, is_strict=True), multi=None),
        "image": None,
        "tasks": {
            task: TaskFacts(prompt=prompts.get(task, ""), adapter=task, modalities=("text",)) for task in TASKS
        },
        "task_required": task_required,
        "adapters": {task: AdapterFacts(file=f"{task}.adapter.npz", graph="text", rank=1) for task in TASKS},
        "measured": (),
        "proof": None,
    }
    texts, tasks = ["a red bicycle", "ein Fahrrad", "a", "un vélo rouge"], ["separation", *TASKS[:3]]
    wanted = np.zeros((len(texts), DIM), np.float32)
    for _ in range(2):  # the first self-test holds no answers, only its inputs
        np.savez(out / before.selftest, texts=texts, tasks=tasks, text_embeds=wanted)
        _seal(out, before, changes)
        with Encoder.open(out, device="cpu", selftest=False) as encoder:
            wanted = encoder.ask("text", texts, tasks)["single"]
    return out


def _save(path: Path) -> None:
    waves = np.random.default_rng(2).uniform(0.1, 3, (1, 1, DIM)).astype(np.float32)
    nodes = [
        node("Cast", ["input_ids"], ["numbers"], to=FLOAT),  # (B, T)
        node("Unsqueeze", ["numbers", "last"], ["columns"]),  # (B, T, 1)
        node("Mul", ["columns", "waves"], ["angles"]),  # (B, T, D)
        node("Sin", ["angles"], ["sines"]),
        node("ReduceMean", ["sines", "tokens"], ["mean"], keepdims=0),  # (B, D)
        node("Add", ["mean", _SHIFT], ["shifted"]),
        node("LpNormalization", ["shifted"], ["text_embeds"], axis=1),
    ]
    shift = ArrayFacts(name=_SHIFT, dtype="float32", axes=(1, DIM))
    constants = {"last": np.array([2]), "tokens": np.array([1]), "waves": waves}
    facts = _facts()
    save_graph(path, "text", nodes, (*facts.inputs, shift), facts.outputs, constants)


def _facts() -> GraphFacts:
    return GraphFacts(
        file="text.onnx",
        precision="fp32",
        parameters=DIM,
        operators={},
        kernels={},
        inputs=(ArrayFacts(name="input_ids", dtype="int64", axes=("batch", "tokens")),),
        outputs=(ArrayFacts(name="text_embeds", dtype="float32", axes=("batch", DIM)),),
    )


def _seal(folder: Path, before: Manifest, changes: dict[str, Any]) -> None:
    """Write a changed manifest, with the files that lie in the folder."""
    files = tuple(
        FileFacts(
            name=path.name, size_bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    )
    document = dataclasses.replace(before, files=files, **changes).to_json()
    (folder / MANIFEST_NAME).write_text(document, encoding="utf-8")
