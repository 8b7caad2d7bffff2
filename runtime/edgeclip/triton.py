"""Write a bundle as a Triton Inference Server model repository: one model per tower, for Triton's onnxruntime
backend.

Triton batches only requests of one shape, which suits the text graph: nothing is padded, so the other texts of a
batch do not change a text's vector. Triton does not turn texts into ids or images into pixels; every repository has a
README (`triton_readme.md`) that says how, with a client that runs.

The layout is the one documented for models of several files: `1/model.onnx` is a folder with a `model.onnx` in it.
The options are those that triton-inference-server/onnxruntime_backend reads in src/onnxruntime.cc. TensorRT's options
were never run by this project.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from edgeclip.bundle.files import open_manifest, verify_hash
from edgeclip.bundle.staging import staged
from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.errors import BundleError, InputError
from edgeclip.manifest import MANIFEST_NAME, TOWERS, Manifest, Precision, Target, TowerName

# The oldest onnxruntime that loaded and ran such graphs of the small trained model, of those tried: 1.20.1, 1.22.1,
# 1.23.2, 1.24.1, 1.25.0, 1.26.0 and 1.31.1, all with the CPU provider.
_OLDEST_RUNTIME = {"tensorrt": "1.20"}
_OLDEST_RUNTIME_INT8, _OLDEST_RUNTIME_ELSE = "1.24", "1.23"

# Beyond this Triton answers "unavailable" at once instead of queueing without end.
_MAX_QUEUED = 256
_TIMEOUT_US = 30_000_000
_WARM_TOKENS = 16
_ENGINES = "/engines"
_MOST_THREADS = 1024
# What is written beside the bundle's own files is less.
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

    `threads` is what one tower takes on the CPU; 0 leaves it to onnxruntime, which takes every core for each tower.
    Graphs and weights are copies: onnx and onnx_ir refuse weights that have a second hard link, so linking them would
    spoil the bundle for `edgeclip quantize`. Every file's hash is checked; `progress` is called with the bytes read.

    Raises BundleError for a folder that holds no complete bundle, InputError for bad threads, BuildError when `out`
    exists, cannot be written, or the disk is full.
    """
    if type(threads) is not int or not 0 <= threads <= _MOST_THREADS:
        raise InputError(
            f"threads is {threads!r}, wanted an int from 1 to {_MOST_THREADS}, or 0 for onnxruntime's own"
        )
    folder, out = Path(bundle), Path(out)
    manifest = open_manifest(folder)
    parts = {tower: _tower_files(folder, manifest, tower) for tower in TOWERS}
    for name in (manifest.tokenizer.file, *parts["text"], *parts["vision"]):
        verify_hash(folder, manifest.file(name), progress)
    with staged(out, manifest.weight_bytes + _WORDS_BYTES) as stage:
        for tower in TOWERS:
            model = stage / model_name(tower)
            graph_folder = model / "1" / "model.onnx"
            graph_folder.mkdir(parents=True)
            for name in parts[tower]:
                # The graph names its data by their file name, so that stays; the graph itself is model.onnx.
                placed = "model.onnx" if name == manifest.tower(tower).file else name
                shutil.copyfile(folder / name, graph_folder / placed)
            (model / "config.pbtxt").write_text(model_config(manifest, tower, threads=threads), encoding="utf-8")
        shutil.copyfile(folder / manifest.tokenizer.file, stage / manifest.tokenizer.file)
        shutil.copyfile(folder / MANIFEST_NAME, stage / MANIFEST_NAME)
        (stage / "README.md").write_text(readme(manifest), encoding="utf-8")


def model_name(tower: TowerName) -> str:
    """The model's name in Triton: the graph's file name on the Hub, without its ending."""
    return f"{tower}_model"


def model_config(manifest: Manifest, tower: TowerName, *, threads: int = 0) -> str:
    """config.pbtxt of one tower, in protobuf's text format (inference.ModelConfig)."""
    is_gpu = manifest.target != "cpu"
    policy = BatchPolicy.choose(manifest.target, manifest, "uniform")
    given, warm, answer = _tensors(manifest, tower)
    warm_value = f"{{ data_type: {warm.kind} dims: {_list(warm.shape)} zero_data: true }}"
    lines = [
        f'name: "{model_name(tower)}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {_largest_batch(policy, manifest, tower)}",
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
        f'  name: "{tower}" batch_size: 1',
        f'  inputs {{ key: "{warm.name}" value {warm_value} }}',
        "} ]",
        *(_parameter(key, value) for key, value in _parameters(is_gpu, threads).items()),
    ]
    if manifest.target == "tensorrt":
        options = _tensorrt_options(manifest, tower, policy)
        lines += [
            "optimization { execution_accelerators { gpu_execution_accelerator [ {",
            '  name: "tensorrt"',
            *(f'  parameters {{ key: "{key}" value: "{value}" }}' for key, value in options.items()),
            "} ] } }",
        ]
    return "\n".join(lines) + "\n"


def readme(manifest: Manifest) -> str:
    """README.md of the repository: how to start it, what goes in and comes out, and a client."""
    template = Template(files("edgeclip").joinpath("triton_readme.md").read_text(encoding="utf-8"))
    image, tokenizer = manifest.image, manifest.tokenizer
    size, is_gpu = image.size_px, manifest.target != "cpu"
    policy = BatchPolicy.choose(manifest.target, manifest, "uniform")
    resize = {
        "shortest": f"the short side to {size} pixels, then the middle {size} x {size}",
        "longest": f"the long side to {size} pixels, in the middle of {size} x {size} filled with {image.fill_color}",
        "squash": f"both sides to {size} pixels",
    }[image.resize_mode]
    devices = [" --gpus all"] if is_gpu else []
    devices += [f" -v edgeclip-engines:{_ENGINES}"] if manifest.target == "tensorrt" else []
    return template.substitute(
        source=manifest.source.name,
        target=manifest.target,
        text_precision=manifest.text.precision,
        vision_precision=manifest.vision.precision,
        runtime=max(_oldest_runtime(manifest.target, manifest.tower(tower).precision) for tower in TOWERS),
        options="".join(devices),
        dim=manifest.embedding_dim,
        dims=", ".join(map(str, manifest.matryoshka_dims)),
        size=size,
        resize=resize,
        interpolation=image.interpolation,
        tokenizer=tokenizer.file,
        max_length=tokenizer.max_length,
        eos_id=tokenizer.eos_id,
        tasks=", ".join(f"`{task}`: `{text}`" for task, text in tokenizer.instructions.items()) or "none",
        text_batch=_largest_batch(policy, manifest, "text"),
        vision_batch=_largest_batch(policy, manifest, "vision"),
        target_notes=_target_notes(manifest),
    )


def _tensors(manifest: Manifest, tower: TowerName) -> tuple[_Tensor, _Tensor, _Tensor]:
    """The graph's input, the same input at warm-up, and its output; without the batch axis, as Triton wants them."""
    answer = _Tensor(name=f"{_embeds(tower)}_embeds", kind="TYPE_FP32", shape=(manifest.embedding_dim,))
    if tower == "text":
        given = _Tensor(name="input_ids", kind="TYPE_INT64", shape=(-1,))
        warm = _Tensor(name="input_ids", kind="TYPE_INT64", shape=(min(_WARM_TOKENS, manifest.tokenizer.max_length),))
        return given, warm, answer
    size = manifest.image.size_px
    given = _Tensor(name="pixel_values", kind="TYPE_UINT8", shape=(size, size, 3))
    return given, given, answer


def _embeds(tower: TowerName) -> str:
    return "text" if tower == "text" else "image"


def _parameters(is_gpu: bool, threads: int) -> dict[str, str]:
    """The parameters that the backend reads, but for the accelerators."""
    always = {
        "execution_mode": "0",  # one node after another: the towers have no branches
        "enable_mem_pattern": "0",  # plans memory for each shape it has seen, and texts have many
    }
    if is_gpu:
        # Among an accelerator's options it would be lost: parameters set it, to the power of two unless given here.
        return {**always, "arena_extend_strategy": "1"}
    return {**always, "intra_op_thread_count": str(threads)}


def _tensorrt_options(manifest: Manifest, tower: TowerName, policy: BatchPolicy) -> dict[str, str]:
    precision = manifest.tower(tower).precision
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
    profiles = policy.profiles(tower)
    return {**options, **(profiles.options(_tensors(manifest, tower)[0].name) if profiles else {})}


def _largest_batch(policy: BatchPolicy, manifest: Manifest, tower: TowerName) -> int:
    """Triton's max_batch_size: the same for inputs of every length."""
    size = manifest.image.size_px
    return policy.rows((manifest.tokenizer.max_length,) if tower == "text" else (size, size, 3))


def _target_notes(manifest: Manifest) -> str:
    if manifest.target == "cpu":
        return (
            "- `intra_op_thread_count` 0 gives each tower a thread per core; where both are busy, halve it "
            "(`edgeclip export-triton --threads N`, or edit config.pbtxt).\n"
            "- On x86 without VNNI an int8 tower can overflow under Triton, for its backend does not pass on the "
            "setting that edgeclip's own runtime makes there."
        )
    if manifest.target == "cuda":
        return "- One instance runs on every GPU that the container sees; name some with `gpus` in `instance_group`."
    return (
        f"- The engines are built when the model is loaded, which takes minutes, and kept in `{_ENGINES}`: mount a "
        "volume there.\n"
        f"- TensorRT reserves memory for texts of {manifest.tokenizer.max_length} tokens, as many as share a run. If "
        "that is too much, lower `max_batch_size` and, by as much, the first number of each shape in "
        "`trt_profile_max_shapes`.\n"
        "- TensorRT was not run by us; hold the first vectors against `edgeclip embed`."
    )


def _oldest_runtime(target: Target, precision: Precision) -> str:
    return _OLDEST_RUNTIME.get(target) or (_OLDEST_RUNTIME_INT8 if precision == "int8" else _OLDEST_RUNTIME_ELSE)


def _tower_files(folder: Path, manifest: Manifest, tower: TowerName) -> list[str]:
    """The graph and its data: all files whose names begin with the graph's."""
    graph = manifest.tower(tower).file
    names = [file.name for file in manifest.files if file.name.startswith(graph)]
    other = manifest.tower("vision" if tower == "text" else "text").file
    known = (graph, other, manifest.tokenizer.file, manifest.selftest, manifest.proof or manifest.selftest)
    if unknown := [file.name for file in manifest.files if not file.name.startswith(known)]:
        raise BundleError(f"{folder}: no tower's file begins the name of {', '.join(unknown)}; export it again")
    return names


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _list(numbers: tuple[int, ...]) -> str:
    return f"[ {', '.join(map(str, numbers))} ]"
