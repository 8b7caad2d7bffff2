"""Write a bundle as a Triton Inference Server model repository: one model per graph, for Triton's onnxruntime
backend.

Triton batches only requests of one shape, which suits the text graph: nothing is padded, so the other texts of a
batch do not change a text's vector. Triton does not turn texts into ids or images into pixels; every repository has a
README (`triton_readme.md`) that says how, with a client that runs.

A client would have to send an adapter's arrays with every request, because Triton gives a graph's inputs no values of
its own. So a bundle with adapters is refused: `edgeclip export --task` merges one task's adapter into the graph.
Models of images of any size are refused too: Triton forms batches of inputs whose first axis is the batch, which the
windows of patches have not, and the text graph takes the vision graph's features, which would go through the client.

The layout is the one documented for models of several files: `1/model.onnx` is a folder with a `model.onnx` in it.
The options are those that triton-inference-server/onnxruntime_backend reads in src/onnxruntime.cc. TensorRT's options
were never run by this project.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from edgeclip.bundle.files import open_manifest, verify_hash, weights_of
from edgeclip.bundle.staging import staged
from edgeclip.engine.batch_policy import BatchPolicy, Kind
from edgeclip.errors import InputError
from edgeclip.families.tasks import are_languages
from edgeclip.manifest import (
    FIRST_GRAPH,
    MANIFEST_NAME,
    ArrayFacts,
    ImageFacts,
    Manifest,
    PatchFacts,
    Precision,
    Target,
)

# The oldest onnxruntime that loaded and ran such graphs of the small trained model, of those tried: 1.20.1, 1.22.1,
# 1.23.2, 1.24.1, 1.25.0, 1.26.0 and 1.31.1, all with the CPU provider.
_OLDEST_RUNTIME = {"tensorrt": "1.20"}
_OLDEST_RUNTIME_INT8, _OLDEST_RUNTIME_ELSE = "1.24", "1.23"

# Beyond this Triton answers "unavailable" at once instead of queueing without end.
_MAX_QUEUED = 256
# What README.md says of tasks that are languages.
_LANGUAGES = "here it is the code of the text's language: a token that takes the place of the opening one"
_TIMEOUT_US = 30_000_000
_WARM_TOKENS = 16
_KINDS = {"int64": "TYPE_INT64", "uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_ENGINES = "/engines"
_MOST_THREADS = 1024
# More than the files take that are written beside the bundle's own.
_WORDS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    name: str
    kind: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f'{{ name: "{self.name}" data_type: {self.kind} dims: {_list(self.shape)} }}'


def export_triton(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    threads: int = 0,
    progress: Callable[[int], None] = lambda read_bytes: None,
) -> None:
    """Write the bundle in a folder as a model repository in `out`, which must not exist.

    `threads` are those of one graph on the CPU; 0 leaves it to onnxruntime, which takes every core for each graph.
    Graphs and weights are copies: onnx and onnx_ir refuse weights that have a second hard link, so linking them would
    spoil the bundle for `edgeclip quantize`. Every file's hash is checked; `progress` is called with the bytes read.

    Raises BundleError for a folder that holds no complete bundle, InputError for bad threads and for a bundle with
    adapters or with images of any size, BuildError when `out` exists, cannot be written, or the disk is full.
    """
    if type(threads) is not int or not 0 <= threads <= _MOST_THREADS:
        raise InputError(
            f"threads is {threads!r}, wanted an int from 1 to {_MOST_THREADS}, or 0 for onnxruntime's own"
        )
    folder, out = Path(bundle), Path(out)
    manifest = open_manifest(folder)
    _check_can_be_served(manifest)
    parts = {graph: _graph_files(manifest, graph) for graph in manifest.graphs}
    tokenizer = [manifest.text.file] if manifest.text else []
    for name in (*tokenizer, *(name for names in parts.values() for name in names)):
        verify_hash(folder, manifest.file(name), progress)
    with staged(out, manifest.weight_bytes + _WORDS_BYTES) as stage:
        for graph, names in parts.items():
            model = stage / model_name(graph)
            graph_folder = model / "1" / "model.onnx"
            graph_folder.mkdir(parents=True)
            for name in names:
                # The graph names its data by their file name, so that stays; the graph itself is model.onnx.
                placed = "model.onnx" if name == manifest.graphs[graph].file else name
                shutil.copyfile(folder / name, graph_folder / placed)
            (model / "config.pbtxt").write_text(model_config(manifest, graph, threads=threads), encoding="utf-8")
        for name in (*tokenizer, MANIFEST_NAME):
            shutil.copyfile(folder / name, stage / name)
        (stage / "README.md").write_text(readme(manifest), encoding="utf-8")


def model_name(graph: str) -> str:
    """The name of a graph's model in Triton."""
    return f"{graph}_model"


def model_config(manifest: Manifest, graph: str, *, threads: int = 0) -> str:
    """config.pbtxt of one graph, in protobuf's text format (inference.ModelConfig)."""
    is_gpu = manifest.target != "cpu"
    policy = BatchPolicy.choose(manifest.target, manifest, "uniform")
    given, warm, answer = _tensors(manifest, graph)
    warm_value = f"{{ data_type: {warm.kind} dims: {_list(warm.shape)} zero_data: true }}"
    lines = [
        f'name: "{model_name(graph)}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {_largest_batch(policy, manifest, graph)}",
        f"input [ {given} ]",
        f"output [ {answer} ]",
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group [ {{ kind: {'KIND_GPU' if is_gpu else 'KIND_CPU'} count: 1 }} ]",
        "dynamic_batching {",
        # No request waits for others: the requests that came while a batch ran form the next one.
        "  max_queue_delay_microseconds: 0",
        "  default_queue_policy {",
        "    timeout_action: REJECT",
        f"    default_timeout_microseconds: {_TIMEOUT_US}",
        f"    max_queue_size: {_MAX_QUEUED}",
        "  }",
        "}",
        # Ready means that the weights are in memory and TensorRT's engine is built.
        "model_warmup [ {",
        f'  name: "{graph}" batch_size: 1',
        f'  inputs {{ key: "{warm.name}" value {warm_value} }}',
        "} ]",
        *(_parameter(key, value) for key, value in _parameters(is_gpu, threads).items()),
    ]
    if manifest.target == "tensorrt":
        options = _tensorrt_options(manifest, graph, policy)
        lines += [
            "optimization { execution_accelerators { gpu_execution_accelerator [ {",
            '  name: "tensorrt"',
            *(f'  parameters {{ key: "{key}" value: "{value}" }}' for key, value in options.items()),
            "} ] } }",
        ]
    return "\n".join(lines) + "\n"


def readme(manifest: Manifest) -> str:
    """README.md of the repository: how to start it, what goes in and comes out, and a client."""
    text = files("edgeclip").joinpath("triton_readme.md").read_text(encoding="utf-8")
    for modality in ("text", "image"):  # parts between <!-- text --> and <!-- end --> are for models of texts
        kept = r"\1" if modality in manifest.modalities else ""
        text = re.sub(rf"<!-- {modality} -->\n(.*?)<!-- end -->\n", kept, text, flags=re.DOTALL)
    policy = BatchPolicy.choose(manifest.target, manifest, "uniform")
    devices = [" --gpus all"] if manifest.target != "cpu" else []
    devices += [f" -v edgeclip-engines:{_ENGINES}"] if manifest.target == "tensorrt" else []
    precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
    return Template(text).substitute(
        source=manifest.source.name,
        target=manifest.target,
        models="A model" if len(precisions) == 1 else "Two models",
        precisions=", ".join(f"{name} {precision}" for name, precision in precisions.items()),
        runtime=max(_oldest_runtime(manifest.target, precision) for precision in precisions.values()),
        options="".join(devices),
        rows="\n".join(_table_row(manifest, graph, policy) for graph in manifest.graphs),
        dims=", ".join(map(str, manifest.spaces.single.matryoshka_dims)),
        target_notes=_target_notes(manifest),
        **_text_facts(manifest),
        **_image_facts(manifest),
    )


def _check_can_be_served(manifest: Manifest) -> None:
    """InputError for a bundle whose graphs Triton cannot feed alone."""
    if isinstance(manifest.image, PatchFacts):
        raise InputError(
            f"this bundle ({manifest.source.name}) takes images of any size, whose patches and windows are no batch "
            "for Triton, and its text graph takes what its vision graph gives; serve it with `edgeclip serve`"
        )
    if manifest.adapters:
        raise InputError(
            f"this bundle ({manifest.source.name}) takes its adapters as inputs, and Triton has no values for them; "
            f"merge one: `edgeclip export CHECKPOINT OUT --task T`, with T one of {', '.join(manifest.adapters)}"
        )


def _text_facts(manifest: Manifest) -> dict[str, object]:
    """What README.md says of texts."""
    if (text := manifest.text) is None:
        return {}
    prompts = {task: facts.prompt for task, facts in manifest.tasks.items() if "text" in facts.modalities}
    said = "; ".join(f'{task}: "{prompt}"' for task, prompt in prompts.items() if prompt) or "it has none"
    return {
        "tasks": _LANGUAGES if are_languages(manifest.tasks) else said,
        "tokenizer": text.file,
        "max_length": text.max_length,
        "eos_id": text.eos_id,
    }


def _image_facts(manifest: Manifest) -> dict[str, object]:
    """What README.md says of images."""
    image = manifest.image
    if not isinstance(image, ImageFacts):
        return {}
    size = image.size_px
    resize = {
        "shortest": f"the short side to {size} pixels, then the middle {size} x {size}",
        "longest": f"the long side to {size} pixels, in the middle of {size} x {size} filled with {image.fill_color}",
        "squash": f"both sides to {size} pixels",
    }[image.resize_mode]
    return {"interpolation": image.interpolation, "resize": resize}


def _table_row(manifest: Manifest, graph: str, policy: BatchPolicy) -> str:
    """A row of README.md's table of models."""
    given, _, answer = _tensors(manifest, graph)
    facts = manifest.graphs[graph].inputs[0]
    batch = f"up to {_largest_batch(policy, manifest, graph)}"
    shape = ", ".join(map(str, facts.axes[1:]))
    if graph == FIRST_GRAPH["text"]:
        batch += " texts of one length"
    return (
        f"| `{model_name(graph)}` | `{given.name}` {facts.dtype} [{shape}] | "
        f"`{answer.name}` float32 [{manifest.embedding_dim}] | {batch} |"
    )


def _tensors(manifest: Manifest, graph: str) -> tuple[_Tensor, _Tensor, _Tensor]:
    """The graph's input, the same input at warm-up, and its output; without the batch axis, as Triton wants them."""
    facts = manifest.graphs[graph]
    (given,) = facts.inputs
    most = manifest.text.max_length if manifest.text else _WARM_TOKENS
    answer = _Tensor(name=facts.outputs[0].name, kind="TYPE_FP32", shape=(manifest.embedding_dim,))
    return _tensor(given, -1), _tensor(given, min(_WARM_TOKENS, most)), answer


def _tensor(array: ArrayFacts, length: int) -> _Tensor:
    """An array without its batch axis; an axis that varies has this length."""
    shape = tuple(axis if isinstance(axis, int) else length for axis in array.axes[1:])
    return _Tensor(name=array.name, kind=_KINDS[array.dtype], shape=shape)


def _parameters(is_gpu: bool, threads: int) -> dict[str, str]:
    """The parameters that the backend reads, but for the accelerators."""
    always = {
        "execution_mode": "0",  # one node after another: the graphs have no branches
        "enable_mem_pattern": "0",  # plans memory for each shape it has seen, and texts have many
    }
    if is_gpu:
        # Among an accelerator's options it would be lost: parameters set it, to the power of two unless given here.
        return {**always, "arena_extend_strategy": "1"}
    return {**always, "intra_op_thread_count": str(threads)}


def _tensorrt_options(manifest: Manifest, graph: str, policy: BatchPolicy) -> dict[str, str]:
    precision = manifest.graphs[graph].precision
    options = {
        "precision_mode": {"fp16": "FP16", "int8": "INT8"}.get(precision, "FP32"),
        "max_workspace_size_bytes": str(4 << 30),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": _ENGINES,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": _ENGINES,
    }
    if precision == "fp16":
        options["trt_layer_norm_fp32_fallback"] = "1"  # their sums overflow in fp16
    # Without a profile a new shape is a new engine, built inside the request that brought it.
    profiles = policy.profiles(graph)
    return {**options, **(profiles.options(_tensors(manifest, graph)[0].name) if profiles else {})}


def _largest_batch(policy: BatchPolicy, manifest: Manifest, graph: str) -> int:
    """Triton's max_batch_size: the same for inputs of every length."""
    longest = manifest.text.max_length if manifest.text and graph == FIRST_GRAPH["text"] else 1
    return policy.rows(Kind(longest, graph))


def _target_notes(manifest: Manifest) -> str:
    if manifest.target == "cpu":
        return (
            "- `intra_op_thread_count` 0 gives each graph a thread per core; where both are busy, halve it "
            "(`edgeclip export-triton --threads N`, or edit config.pbtxt).\n"
            "- On x86 without VNNI an int8 graph can overflow under Triton, for its backend does not pass on the "
            "setting that edgeclip's own runtime makes there; one of `edgeclip quantize --cpu avx2` cannot."
        )
    if manifest.target == "cuda":
        return "- One instance runs on every GPU that the container sees; name some with `gpus` in `instance_group`."
    notes = [
        f"- The engines are built when the model is loaded, which takes minutes, and kept in `{_ENGINES}`: mount a "
        "volume there.",
        "- TensorRT was not run by this project; compare the first vectors with those of `edgeclip embed`.",
    ]
    if manifest.text:
        notes.append(
            f"- TensorRT reserves memory for texts of {manifest.text.max_length} tokens, as many as share a run. If "
            "that is too much, lower `max_batch_size` and, by as much, the first number of each shape in "
            "`trt_profile_max_shapes`."
        )
    return "\n".join(notes)


def _oldest_runtime(target: Target, precision: Precision) -> str:
    return _OLDEST_RUNTIME.get(target) or (_OLDEST_RUNTIME_INT8 if precision == "int8" else _OLDEST_RUNTIME_ELSE)


def _graph_files(manifest: Manifest, graph: str) -> list[str]:
    """The names of the files of a graph and its weights."""
    file = manifest.graphs[graph].file
    return [file, *(weights.name for weights in weights_of(file, manifest.files))]


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _list(numbers: tuple[int, ...]) -> str:
    return f"[ {', '.join(map(str, numbers))} ]"
