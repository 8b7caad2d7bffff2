"""A bundle in the shape of jina-embeddings-v4's, with tiny graphs whose answers numpy repeats.

The graphs take every input that the real ones take, and each one counts: a wrong window, position, place, pooled
token or adapter gives other vectors.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeclip.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    AdapterFacts,
    ArrayFacts,
    FileFacts,
    GraphFacts,
    Manifest,
    Modality,
    MultiSpace,
    PatchFacts,
    SingleSpace,
    Source,
    Spaces,
    TaskFacts,
    TextFacts,
)
from tests.scenes.graph_writer import FLOAT, node, save_graph

DATA = Path(__file__).parents[1] / "data" / "jina_embeddings_v4"
DIM, MULTI_DIM, WIDTH, IDS = 64, 16, 24, 400
ADAPTERS = ("retrieval", "text-matching", "code")
IMAGE_ID = 382
BOTH: tuple[Modality, ...] = ("text", "image")
TASKS: Mapping[str, TaskFacts] = {
    "retrieval.query": TaskFacts(prompt="Query: ", adapter="retrieval", modalities=BOTH),
    "retrieval.passage": TaskFacts(prompt="Passage: ", adapter="retrieval", modalities=BOTH),
    "text-matching": TaskFacts(prompt="Query: ", adapter="text-matching", modalities=BOTH),
    "code.query": TaskFacts(prompt="Query: ", adapter="code", modalities=BOTH),
    "code.passage": TaskFacts(prompt="Passage: ", adapter="code", modalities=BOTH),
}
FACTS = PatchFacts(
    kind="patches",
    patch_px=14,
    merge=2,
    window_px=112,
    min_pixels=3136,
    max_pixels=602_112,
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    prompt_ids=(371, 351, 198, 379, IMAGE_ID, 380, 314, 347, 261, 259, 296, 13, 372, 198),
    image_id=IMAGE_ID,
)
_VALUES = 3 * 14 * 14
_SHIFT = "adapter_shift"

_draw = np.random.default_rng(11)
WEIGHTS: Mapping[str, NDArray[np.float32]] = {
    name: _draw.standard_normal(shape).astype(np.float32)
    for name, shape in {
        "patch": (_VALUES, 8),
        "place": (2, 8),
        "merge": (4 * 8, WIDTH),
        "embedding": (IDS, WIDTH),
        "turn": (3, WIDTH),
        "single_head": (WIDTH, DIM),
        "multi_head": (WIDTH, MULTI_DIM),
    }.items()
}
SHIFTS = {name: _draw.standard_normal((1, 1, WIDTH)).astype(np.float32) for name in ADAPTERS}

_VISION_INPUTS = (
    ArrayFacts(name="pixel_values", dtype="uint8", axes=("batch", "patches", _VALUES)),
    ArrayFacts(name="patch_positions", dtype="int64", axes=("patches", 2)),
    ArrayFacts(name="windows", dtype="int64", axes=("windows", "window_patches")),
    ArrayFacts(name="window_places", dtype="int64", axes=("patches",)),
)
_TEXT_INPUTS = (
    ArrayFacts(name="input_ids", dtype="int64", axes=("batch", "tokens")),
    ArrayFacts(name="position_ids", dtype="int64", axes=("batch", 3, "tokens")),
    ArrayFacts(name="image_features", dtype="float32", axes=("batch", "image_tokens", WIDTH)),
    ArrayFacts(name="image_places", dtype="int64", axes=("batch", "tokens")),
    ArrayFacts(name="pool_mask", dtype="float32", axes=("batch", "tokens")),
)
_VISION_OUTPUTS = (ArrayFacts(name="image_features", dtype="float32", axes=("batch", "image_tokens", WIDTH)),)
_TEXT_OUTPUTS = (
    ArrayFacts(name="single", dtype="float32", axes=("batch", DIM)),
    ArrayFacts(name="multi", dtype="float32", axes=("batch", "tokens", MULTI_DIM)),
)


def make_page_bundle(out: Path, *, max_length: int = 32_768) -> Path:
    """Write the bundle to `out`."""
    out.mkdir()
    shutil.copyfile(DATA / "checkpoint" / "tokenizer.json", out / "tokenizer.json")
    _save_vision(out / "vision.onnx")
    _save_text(out / "text.onnx")
    for name, shift in SHIFTS.items():
        np.savez(out / f"{name}.adapter.npz", adapter_shift=shift)
    pixels = np.random.default_rng(4).integers(0, 256, (84, 112, 3), np.uint8)
    query, passage = "retrieval.query", "code.passage"
    text, image = answer_text("a page", query), answer_image(pixels, passage)
    np.savez(
        out / "selftest.npz",
        texts=np.array(["a page"]),
        tasks=np.array([query]),
        text_embeds=text[0][None],
        text_multi=text[1],
        image_0=pixels,
        image_tasks=np.array([passage]),
        image_embeds=image[0][None],
        image_multi=image[1],
    )
    files = tuple(
        FileFacts(
            name=path.name, size_bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(out.iterdir())
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        family="jina_embeddings_v4",
        source=Source(name="made-up/pages", revision=None, weights_sha256="0" * 64, license=None),
        target="cpu",
        opset=18,
        graphs={
            "text": _facts("text.onnx", _TEXT_INPUTS, _TEXT_OUTPUTS),
            "vision": _facts("vision.onnx", _VISION_INPUTS, _VISION_OUTPUTS),
        },
        spaces=Spaces(
            single=SingleSpace(dim=DIM, matryoshka_dims=(8, 16, 32, DIM), is_strict=True),
            multi=MultiSpace(dim=MULTI_DIM),
        ),
        text=TextFacts(file="tokenizer.json", max_length=max_length, bos_id=370, eos_id=372, pad_id=370),
        image=FACTS,
        tasks=TASKS,
        task_required=True,
        adapters={name: AdapterFacts(file=f"{name}.adapter.npz", graph="text", rank=1) for name in ADAPTERS},
        selftest="selftest.npz",
        proof=None,
        files=files,
        measured=(),
        built_with={},
    )
    (out / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return out


def answer_text(text: str, task: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the bundle answers for a text: its single vector and its multi vectors."""
    facts = TASKS[task]
    ids = Tokenizer.from_file(str(DATA / "checkpoint" / "tokenizer.json")).encode(facts.prompt + text).ids
    states = WEIGHTS["embedding"][ids].astype(np.float64)
    positions = np.tile(np.arange(len(ids)), (3, 1))
    return _decode(states, positions, slice(0, len(ids)), facts.adapter)


def answer_image(pixels: NDArray[np.uint8], task: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the bundle answers for an image whose sides are multiples of 28, and which needs no resizing."""
    rows, columns = pixels.shape[0] // 28, pixels.shape[1] // 28
    states = {}  # by the row and the column of a patch
    for row, column in np.ndindex(2 * rows, 2 * columns):
        patch = pixels[14 * row : 14 * row + 14, 14 * column : 14 * column + 14].transpose(2, 0, 1).ravel() / 255
        states[row, column] = patch @ WEIGHTS["patch"] + np.array([row, column]) @ WEIGHTS["place"]
    means = {
        window: np.mean(
            [state for (row, column), state in states.items() if (row // 8, column // 8) == window], axis=0
        )
        for window in {(row // 8, column // 8) for row, column in states}
    }
    mixed = {(row, column): state + means[row // 8, column // 8] for (row, column), state in states.items()}
    features = [
        np.concatenate([mixed[2 * row + y, 2 * column + x] for y, x in np.ndindex(2, 2)]) @ WEIGHTS["merge"]
        for row, column in np.ndindex(rows, columns)
    ]
    before = FACTS.prompt_ids.index(IMAGE_ID)
    words = WEIGHTS["embedding"][list(FACTS.prompt_ids)].astype(np.float64)
    all_states = np.concatenate([words[:before], features, words[before + 1 :]])
    places = [(index, index, index) for index in range(before)]
    places += [(before, before + row, before + column) for row, column in np.ndindex(rows, columns)]
    places += [(before + max(rows, columns) + index,) * 3 for index in range(len(words) - before - 1)]
    pooled = slice(before - 1, before + len(features) + 1)
    return _decode(all_states, np.array(places).T, pooled, TASKS[task].adapter)


def _decode(
    states: NDArray[np.float64], positions: NDArray[np.int64], pooled: slice, adapter: str | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    states = states + 0.01 * positions.T @ WEIGHTS["turn"] + SHIFTS[str(adapter)][0]
    states = states + 0.1 * np.cumsum(states, axis=0)
    single = states[pooled].sum(axis=0) @ WEIGHTS["single_head"]
    multi = states @ WEIGHTS["multi_head"]
    return single / np.linalg.norm(single), multi / np.linalg.norm(multi, axis=1, keepdims=True)


def _save_vision(path: Path) -> None:
    nodes = [
        node("Cast", ["pixel_values"], ["numbers"], to=FLOAT),
        node("Div", ["numbers", "most"], ["scaled"]),
        node("MatMul", ["scaled", "patch"], ["embedded"]),  # (B, P, 8)
        node("Cast", ["patch_positions"], ["places"], to=FLOAT),
        node("MatMul", ["places", "place"], ["turns"]),  # (P, 8)
        node("Add", ["embedded", "turns"], ["states"]),
        node("Max", ["windows", "zero"], ["indices"]),  # (W, L)
        node("Gather", ["states", "indices"], ["apart"], axis=1),  # (B, W, L, 8)
        node("GreaterOrEqual", ["windows", "zero"], ["is_there"]),
        node("Cast", ["is_there"], ["there"], to=FLOAT),
        node("Unsqueeze", ["there", "last"], ["mask"]),  # (W, L, 1)
        node("Mul", ["apart", "mask"], ["masked"]),
        node("ReduceSum", ["masked", "two"], ["sums"]),  # (B, W, 1, 8)
        node("ReduceSum", ["mask", "one"], ["counts"]),  # (W, 1, 1)
        node("Div", ["sums", "counts"], ["means"]),
        node("Add", ["apart", "means"], ["mixed"]),
        node("Reshape", ["mixed", "flat"], ["flattened"]),  # (B, W * L, 8)
        node("Gather", ["flattened", "window_places"], ["back"], axis=1),  # (B, P, 8)
        node("Reshape", ["back", "fours"], ["tokens"]),  # (B, M, 32)
        node("MatMul", ["tokens", "merge"], ["image_features"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        **{name: WEIGHTS[name] for name in ("patch", "place", "merge")},
        "most": np.array(255, np.float32),
        "zero": np.array(0),
        "one": np.array([1]),
        "two": np.array([2]),
        "last": np.array([-1]),
        "flat": np.array([0, -1, 8]),
        "fours": np.array([0, -1, 32]),
    }
    save_graph(path, "vision", nodes, _VISION_INPUTS, _VISION_OUTPUTS, constants)


def _save_text(path: Path) -> None:
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["words"]),  # (B, T, W)
        node("Max", ["image_places", "zero"], ["rows"]),
        node("Unsqueeze", ["rows", "last"], ["indices"]),  # (B, T, 1)
        node("GatherND", ["image_features", "indices"], ["features"], batch_dims=1),  # (B, T, W)
        node("GreaterOrEqual", ["image_places", "zero"], ["is_image"]),
        node("Unsqueeze", ["is_image", "last"], ["is_feature"]),
        node("Where", ["is_feature", "features", "words"], ["embedded"]),
        node("Cast", ["position_ids"], ["numbers"], to=FLOAT),
        node("Transpose", ["numbers"], ["positions"], perm=[0, 2, 1]),  # (B, T, 3)
        node("MatMul", ["positions", "turn"], ["turns"]),
        node("Mul", ["turns", "hundredth"], ["small"]),
        node("Add", ["embedded", "small"], ["turned"]),
        node("Add", ["turned", _SHIFT], ["states"]),
        node("CumSum", ["states", "axis"], ["before"]),
        node("Mul", ["before", "tenth"], ["memory"]),
        node("Add", ["states", "memory"], ["hidden"]),  # (B, T, W)
        node("MatMul", ["hidden", "multi_head"], ["many"]),
        node("LpNormalization", ["many"], ["multi"], axis=2),
        node("Unsqueeze", ["pool_mask", "one"], ["weights"]),  # (B, 1, T)
        node("MatMul", ["weights", "hidden"], ["sum"]),
        node("Squeeze", ["sum", "one"], ["pooled"]),
        node("MatMul", ["pooled", "single_head"], ["headed"]),
        node("LpNormalization", ["headed"], ["single"], axis=1),
    ]
    constants: dict[str, NDArray[Any]] = {
        **{name: WEIGHTS[name] for name in ("embedding", "multi_head", "single_head", "turn")},
        "zero": np.array(0),
        "one": np.array([1]),
        "axis": np.array(1),
        "last": np.array([-1]),
        "tenth": np.array(0.1, np.float32),
        "hundredth": np.array(0.01, np.float32),
    }
    shift = ArrayFacts(name=_SHIFT, dtype="float32", axes=(1, 1, WIDTH))
    save_graph(path, "text", nodes, (*_TEXT_INPUTS, shift), _TEXT_OUTPUTS, constants)


def _facts(file: str, inputs: tuple[ArrayFacts, ...], outputs: tuple[ArrayFacts, ...]) -> GraphFacts:
    return GraphFacts(
        file=file, precision="fp32", parameters=1, operators={}, kernels={}, inputs=inputs, outputs=outputs
    )
