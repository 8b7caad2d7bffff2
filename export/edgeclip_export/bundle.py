"""Writing a bundle: staged, each graph proved, the manifest last. One tower is in memory at a time."""

import gc
import math
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeclip.bundle.staging import file_facts, staged
from edgeclip.errors import BuildError, CheckpointWarning
from edgeclip.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    SELFTEST_DATA,
    ArrayFacts,
    GraphFacts,
    Manifest,
    Measurement,
    Modality,
    SingleSpace,
    Source,
    Spaces,
    Target,
    TaskFacts,
)
from edgeclip_export.checkpoint import CONFIG, TOKENIZER, Checkpoint, read_json
from edgeclip_export.families.jina_clip import FAMILY
from edgeclip_export.families.jina_clip.config import JinaClipConfig, parse_config
from edgeclip_export.families.jina_clip.family import Progress, answer, load_tower, trace_tower
from edgeclip_export.families.jina_clip.preprocessor import read_image_facts, reset_tokenizer, text_facts
from edgeclip_export.families.jina_clip.selftest import TEXTS, SelfTest, make_selftest
from edgeclip_export.families.jina_clip.tensors import tensor_shapes
from edgeclip_export.families.jina_clip.weights import open_weights
from edgeclip_export.tracing import OPSET
from edgeclip_graph.census import count_operators
from edgeclip_graph.passes import TENSORRT_OPSET, lower

SELFTEST = "selftest.npz"
# The graph that gives the vectors of each modality.
GRAPHS: dict[Modality, str] = {"text": "text", "image": "vision"}

# Largest difference between a graph's unit vectors and the torch tower's. Measured: 4e-7 at 64 wide,
# 6e-7 at full size; the smallest known mistake, tanh instead of erf in GELU, moves them by 1e-4.
PARITY = 5e-6
# What a bundle needs on disk besides its fp32 weights: the graphs, a tokenizer of 17 MB, the rest.
_SPARE_BYTES = 64 << 20


def write_bundle(checkpoint: Checkpoint, source: Source, out: Path, target: Target, progress: Progress) -> Manifest:
    """Export a checkpoint to a bundle at `out`, which must not exist yet.

    A CheckpointWarning says what of it is not as in the official layout and was understood all the same.

    Raises BuildError, with nothing left at `out`, for a checkpoint that is not as its configuration says, a graph
    that does not answer as the torch tower does, and a disk that is full.
    """
    folder = checkpoint.folder
    config = parse_config(read_json(folder / CONFIG))
    image = read_image_facts(folder, config)
    tokenizer = reset_tokenizer((folder / TOKENIZER).read_bytes(), config.text)
    with open_weights(checkpoint, config) as weights:
        for note in weights.notes:
            warnings.warn(CheckpointWarning(note), stacklevel=2)
    selftest = make_selftest(Tokenizer.from_str(tokenizer), config.text, image)
    with staged(out, needed_bytes=_fp32_bytes(config) + _SPARE_BYTES) as stage:
        (stage / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        answers, facts, measured = {}, {}, []
        for modality, name in GRAPHS.items():
            tower = load_tower(name, config, image, checkpoint, progress)
            progress(f"asking the {name} tower", 0, 1)
            answers[modality] = answer(tower, selftest)
            progress(f"tracing the {name} tower", 0, 1)
            model = lower(trace_tower(tower), target, name)
            parameters = sum(parameter.numel() for parameter in tower.parameters())
            del tower
            file = f"{name}.onnx"
            _save(model, stage / file, f"writing the {name} graph", progress)
            facts[name] = GraphFacts(
                file=file,
                precision="fp32",
                parameters=parameters,
                operators=count_operators(model),
                kernels={},
                inputs=_describe(model.graph.inputs),
                outputs=_describe(model.graph.outputs),
            )
            del model
            gc.collect()
            measured.append(_prove(modality, stage, selftest, answers[modality], progress))
        inputs: dict[str, Any] = {f"image_{index}": picture for index, picture in enumerate(selftest.images)}
        inputs |= {f"input_ids_{index}": row for index, row in enumerate(selftest.ids)}
        np.savez_compressed(
            stage / SELFTEST,
            texts=np.array(TEXTS),
            tasks=np.array([""] * len(TEXTS)),
            text_embeds=answers["text"],
            image_embeds=answers["image"],
            pixel_values=selftest.pixels,
            **inputs,
        )
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            family=FAMILY,
            source=source,
            target=target,
            opset=TENSORRT_OPSET if target == "tensorrt" else OPSET,
            graphs=facts,
            spaces=Spaces(
                single=SingleSpace(dim=config.embedding_dim, matryoshka_dims=config.matryoshka_dims, is_strict=False),
                multi=None,
            ),
            text=text_facts(TOKENIZER, config.text),
            image=image,
            tasks={
                name: TaskFacts(prompt=prompt, adapter=None, modalities=("text",))
                for name, prompt in config.text.instructions.items()
            },
            task_required=False,
            adapters={},
            selftest=SELFTEST,
            proof=None,
            files=file_facts(stage, progress),
            measured=tuple(measured),
            built_with={name: version(name) for name in ("edgeclip", "torch", "onnx-ir", "onnxscript")},
        )
        (stage / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _save(model: ir.Model, path: Path, what: str, progress: Progress) -> None:
    def report(_: object, info: ir.external_data.CallbackInfo) -> None:
        progress(what, info.index + 1, info.total)

    ir.save(model, path, external_data=f"{path.name}_data", callback=report)


def _describe(values: Sequence[ir.Value]) -> tuple[ArrayFacts, ...]:
    """The arrays that a graph takes or gives."""
    facts = []
    for value in values:
        assert value.dtype is not None
        assert value.shape is not None
        axes = tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape)
        facts.append(ArrayFacts(name=str(value.name), dtype=str(value.dtype.numpy()), axes=axes))
    return tuple(facts)


def _prove(
    modality: Modality, stage: Path, selftest: SelfTest, answers: NDArray[np.float32], progress: Progress
) -> Measurement:
    """Hold the written graph, run on the CPU, against the torch tower's answers."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would print, it raises
    name = GRAPHS[modality]
    batches = list(selftest.ids) if modality == "text" else list(selftest.pixels[:, None])
    rows = []
    try:
        session = onnxruntime.InferenceSession(stage / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        for done, batch in enumerate(batches):
            progress(f"proving the {name} graph", done, len(batches))
            rows.append(session.run(None, {session.get_inputs()[0].name: batch})[0])
    except Exception as error:  # onnxruntime's share no base class
        words = str(error).strip().split("\n")[0]
        raise BuildError(f"onnxruntime cannot run the {name} graph ({words})") from error
    found = np.concatenate(rows)
    difference = float(np.abs(found - answers).max())
    if not difference <= PARITY:  # NaN fails too
        raise BuildError(
            f"the {name} graph differs from the torch tower by {difference:.1e}, allowed is {PARITY:.0e}"
        )
    cosines = (found.astype(np.float64) * answers).sum(axis=1)
    power, noise = (float((array.astype(np.float64) ** 2).sum()) for array in (answers, found - answers))
    return Measurement(
        modality=modality,
        space="single",
        against="fp32 checkpoint",
        data=SELFTEST_DATA,
        samples=len(batches),
        worst_cosine=float(cosines.min()),
        p1_cosine=float(np.percentile(cosines, 1)),
        mean_cosine=float(cosines.mean()),
        largest_difference=difference,
        sqnr_db=10 * math.log10(power / noise) if noise else None,
        weight_bytes=sum(path.stat().st_size for path in stage.glob(f"{name}.onnx*")),
    )


def _fp32_bytes(config: JinaClipConfig) -> int:
    return 4 * sum(math.prod(shape) for name, shape in tensor_shapes(config).items() if "lora_" not in name)
