"""jina-embeddings-v4's decoder in OpenVINO, weights and activations in int8 by NNCF: a contender's process.

`edgeclip bench side-by-side` runs this file with an interpreter that has openvino and nncf, and nothing of edgeclip:
`python openvino_program.py TEXT.ONNX FOLDER`. TEXT.ONNX is the text graph of an fp32 bundle for tensorrt, which has
standard operators alone. FOLDER gets the quantised model where it is missing, with quality.json: the least cosines of
texts that it was not calibrated on to the same graph in fp32. Each line of stdin is a text as the ids of its tokens,
JSON of a string with blanks between them; the answer is the shape of the vector.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino

_CALIBRATED, _HELD_OUT = (16,) * 16 + (64,) * 16 + (128,) * 8, (16, 128, 512) * 4
_MODEL, _QUALITY = "int8.xml", "quality.json"


def feed(ids: Any, width: int) -> dict[str, Any]:
    """The graph's inputs for the ids (T,) of a text without an image; its features have this width."""
    tokens = np.asarray(ids, np.int64)[None]
    return {
        "input_ids": tokens,
        "position_ids": np.tile(np.arange(tokens.size), (1, 3, 1)),
        "image_features": np.zeros((1, 1, width), np.float32),
        "image_places": np.full_like(tokens, -1),
        "pool_mask": np.ones(tokens.shape, np.float32),
    }


def quantize(core: openvino.Core, graph: Path, folder: Path) -> None:
    """Write the int8 model and what it loses, calibrated on random ids."""
    import nncf

    plain = core.read_model(graph)
    width = plain.input("image_features").partial_shape[2].get_length()
    draw = np.random.default_rng(0)
    some, others = (
        [feed(draw.integers(0, 100_000, length), width) for length in lengths] for lengths in (_CALIBRATED, _HELD_OUT)
    )
    small = nncf.quantize(
        plain,
        nncf.Dataset(some),
        subset_size=len(some),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(types=["ScaledDotProductAttention"], validate=False),
    )
    folder.mkdir(parents=True, exist_ok=True)
    exact, found = (core.compile_model(model, "CPU") for model in (plain, small))
    least = {name: min(_cosine(exact(one)[name], found(one)[name]) for one in others) for name in ("single", "multi")}
    (folder / _QUALITY).write_text(json.dumps({"least_cosine": least}), encoding="utf-8")
    openvino.save_model(small, folder / _MODEL, compress_to_fp16=False)


def _cosine(one: Any, other: Any) -> float:
    """The least cosine of vectors (..., D) in pairs."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float(((one * other).sum(axis=-1) / lengths).min())


def main(graph: Path, folder: Path) -> None:
    """Answer every line of stdin with one of stdout."""
    core = openvino.Core()
    # Without the hint, processors that have bfloat16 would compute what is not int8 in it.
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": os.cpu_count() or 1})
    if not (folder / _MODEL).exists():
        answers, standard = sys.stdout, sys.stderr
        sys.stdout = standard  # nncf reports its progress there
        quantize(core, graph, folder)
        sys.stdout = answers
    model = core.compile_model(folder / _MODEL, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    width = model.input("image_features").partial_shape[2].get_length()
    request = model.create_infer_request()
    print(json.dumps(["text"]), flush=True)
    for line in sys.stdin:
        outputs = request.infer(feed([int(word) for word in json.loads(line).split()], width), share_inputs=True)
        print(json.dumps(outputs["single"].shape), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
