"""Make the rivals' graphs: other tools' versions of the same graph, each made once with its own tool.

    WORK/<rival>/<graph>/    the graph, its weights, and made.json: what it was made of and with
    WORK/<rival>/both/       the same for one graph that holds both

A graph is reused while checkpoint and recipe are the same, whichever interpreter made it: so packages that exclude
each other can each prepare their own rivals in one folder. Each is made in a process of its own, which frees the
memory that it took; what the tool prints meanwhile is in WORK/<rival>/<graph>.log.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from edgeclip import Manifest
from edgeclip.bundle.staging import file_facts, staged
from edgeclip.engine.products import adds_in_16_bits
from edgeclip.inputs.square import normalize_pixels
from edgeclip.manifest import Modality
from edgeclip_bench.measure.documents import installed
from edgeclip_quant.inputs.feeder import Feeder
from edgeclip_quant.inputs.made_up import made_up_samples

# What opens a graph, and how (`edgeclip_bench.rivals.contenders`).
Engine = Literal["onnxruntime", "merged", "openvino", "openvino-bf16", "torch", "torch-bf16", "torch-compiled"]

# The only input of each graph, in bundles.
INPUTS: Mapping[str, str] = {"text": "input_ids", "vision": "pixel_values"}
GRAPHS = tuple(INPUTS)
_RECORD = "made.json"
# onnxruntime's quantizer would by default take every operator whose name it knows. It takes the Attention of opset
# 23 for com.microsoft's, and the graph does not load; ConvInteger has no kernel for int8 weights
# (microsoft/onnxruntime#15888). What it knows beside these and stands in the towers: the weights' MatMul, the
# token table's Gather.
_OPERATORS = ["MatMul", "Gather"]
# nncf would take 300; the towers' ranges settle long before.
_TEXTS, _IMAGES = 128, 32


class LeftOut(Exception):  # noqa: N818
    """Raised for a rival that cannot take part; the message says why in a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the rivals are made of: a checkpoint, its fp32 bundle, and the hash of the weights of both."""

    checkpoint: Path
    bundle: Path
    weights_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A rival's graph in `file`; `made_with` are versions of packages, `files` hashes of what is loaded."""

    rival: str
    graph: str
    recipe: str
    weights_sha256: str
    made_with: Mapping[str, str]
    made_in_s: float
    file: str
    size_bytes: int
    files: Mapping[str, str]


Graphs = Mapping[str, Path]
# (material, the graph's name, the plain graphs, a folder) -> the file in the folder that is loaded
Make = Callable[[Material, str, Graphs, Path], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """How a tool makes a graph: `recipe` says it in a line, `packages` must be installed.

    `taken_from` is the rival whose files this one opens in another engine; `is_joint`: one graph for texts and
    images.
    """

    recipe: str
    engine: Engine
    packages: tuple[str, ...]
    make: Make | None = None
    taken_from: str | None = None
    is_of_plain: bool = True
    is_joint: bool = False


def _plain(material: Material, graph: str, plain: Graphs, folder: Path) -> Path:
    from edgeclip_bench.rivals.plain_towers import export_plain

    return export_plain(material.checkpoint, folder, graph)


def _torch(material: Material, graph: str, plain: Graphs, folder: Path) -> Path:
    from edgeclip_bench.rivals.torch_towers import save_tower

    return save_tower(material.checkpoint, graph, folder)


def _merged(material: Material, graph: str, plain: Graphs, folder: Path) -> Path:
    from edgeclip_bench.rivals.merged_graph import merge_graphs

    return merge_graphs(plain, folder)


def _quantize_dynamic(weight_type: str) -> Make:
    """As onnxruntime's documentation advises: weights of 7 bits where 8 overflow, on x86 without VNNI."""

    def make(material: Material, graph: str, plain: Graphs, folder: Path) -> Path:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            plain[graph],
            folder / plain[graph].name,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            weight_type=QuantType[weight_type],
            reduce_range=adds_in_16_bits(),
            use_external_data_format=True,
        )
        return folder / plain[graph].name

    return make


def _optimum(preset: str) -> Make:
    def make(material: Material, graph: str, plain: Graphs, folder: Path) -> Path:
        from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

        config = getattr(AutoQuantizationConfig, preset)(
            is_static=False, per_channel=True, operators_to_quantize=_OPERATORS
        )
        quantizer = ORTQuantizer.from_pretrained(plain[graph].parent, file_name=plain[graph].name)
        quantizer.quantize(config, folder, file_suffix="", use_external_data_format=True)
        (folder / "ort_config.json").unlink()  # it differs between presets whose graphs are equal
        return folder / plain[graph].name

    return make


def _openvino(material: Material, graph: str, plain: Graphs, folder: Path) -> Path:
    import openvino

    openvino.save_model(openvino.convert_model(plain[graph]), folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def _openvino_int8(material: Material, graph: str, plain: Graphs, folder: Path) -> Path:
    import nncf
    import openvino

    manifest = Manifest.read(material.bundle)
    batches = made_up_batches(material.bundle, manifest, graph, texts=_TEXTS, images=_IMAGES)
    if graph == "vision":
        batches = [normalize_pixels(pixels, manifest.need_image()) for pixels in batches]
    model = nncf.quantize(
        openvino.convert_model(plain[graph]),
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        # Else its inputs become int8 as well. Raises when the graph has none.
        ignored_scope=nncf.IgnoredScope(types=["ScaledDotProductAttention"]),
    )
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def made_up_batches(
    bundle: Path, manifest: Manifest, graph: str, *, texts: int, images: int, seed: int = 0
) -> list[NDArray[Any]]:
    """Made-up inputs of a bundle's graph, each as a batch of one: ids (1, T) or pixels (1, S, S, 3)."""
    modality: Modality = "text" if graph == "text" else "image"
    samples = made_up_samples(Feeder(bundle, manifest), texts=texts, images=images, seed=seed)
    return [item.arrays[INPUTS[graph]][None] for item in samples.of(modality)]


PLAIN = "plain"
_TORCH = ("torch", "safetensors")
_OF_WEIGHTS = f"of {' and '.join(_OPERATORS)}, per channel"
RIVALS: Mapping[str, Rival] = {
    PLAIN: Rival(
        recipe="torch.onnx.export, fp32",
        engine="onnxruntime",
        packages=("torch", "onnxscript"),
        make=_plain,
        is_of_plain=False,
    ),
    "torch": Rival(
        recipe="torch eager, fp32",
        engine="torch",
        packages=_TORCH,
        make=_torch,
        is_of_plain=False,
    ),
    "torch-bf16": Rival(recipe="torch eager, bfloat16", engine="torch-bf16", packages=_TORCH, taken_from="torch"),
    "torch-compiled": Rival(
        recipe="torch.compile, fp32", engine="torch-compiled", packages=_TORCH, taken_from="torch"
    ),
    "merged": Rival(
        recipe="both plain graphs in one, a dummy for the other one's input, fp32",
        engine="merged",
        packages=("onnx",),
        make=_merged,
        is_joint=True,
    ),
    **{
        name: Rival(
            recipe=f"onnxruntime.quantization.quantize_dynamic {_OF_WEIGHTS}, {weight_type} weights, "
            "reduce_range on x86 without VNNI",
            engine="onnxruntime",
            packages=("onnx",),
            make=_quantize_dynamic(weight_type),
        )
        for name, weight_type in (("quantize_dynamic", "QInt8"), ("quantize_dynamic-quint8", "QUInt8"))
    },
    "openvino": Rival(
        recipe="openvino.convert_model, fp32",
        engine="openvino",
        packages=("openvino",),
        make=_openvino,
    ),
    "openvino-bf16": Rival(
        recipe="openvino.convert_model, fp32 weights, computed in bfloat16",
        engine="openvino-bf16",
        packages=("openvino",),
        taken_from="openvino",
    ),
    "openvino-int8": Rival(
        recipe=f"nncf.quantize, transformer, attention fp32, calibrated on {_TEXTS} made-up texts, {_IMAGES} images",
        engine="openvino",
        packages=("openvino", "nncf"),
        make=_openvino_int8,
    ),
    **{
        f"optimum-{preset}": Rival(
            recipe=f"optimum.onnxruntime AutoQuantizationConfig.{preset} {_OF_WEIGHTS}, dynamic",
            engine="onnxruntime",
            packages=("optimum-onnx",),
            make=_optimum(preset),
        )
        for preset in ("avx2", "avx512_vnni", "arm64")
    },
}


# Rivals that a reader may miss, and why they are not here.
CANNOT: Mapping[str, str] = {
    "sentence-transformers": "loads this model only by the Python code of its repository (trust_remote_code), which "
    "a checkpoint does not hold and this benchmark does not run",
    "fastembed": "opens the ONNX files that it knows, jina-clip-v1's among them (fastembed 0.9), and no checkpoint",
}


def place(name: str, graph: str) -> Path:
    """The folder of a rival's graph inside the folder of all rivals."""
    owner = RIVALS[name].taken_from or name
    return Path(owner, "both" if RIVALS[owner].is_joint else graph)


def prepare(name: str, material: Material, graph: str, work: Path) -> Made:
    """The rival's graph under `work`, made now unless it is there; LeftOut when it cannot be made here."""
    rival = RIVALS[name]
    if rival.taken_from:
        return dataclasses.replace(prepare(rival.taken_from, material, graph, work), rival=name, recipe=rival.recipe)
    folder = work / place(name, graph)
    made = read_made(folder)
    if made and (made.weights_sha256, made.recipe) == (material.weights_sha256, rival.recipe):
        return dataclasses.replace(made, graph=graph)
    if missing := [package for package in rival.packages if not installed(package)]:
        raise LeftOut(f"not in {work}, and {' and '.join(missing)} not installed to make it")
    plain: dict[str, Path] = {}
    if rival.is_of_plain:
        for one in GRAPHS if rival.is_joint else (graph,):
            plain[one] = work / place(PLAIN, one) / prepare(PLAIN, material, one, work).file
    shutil.rmtree(folder, ignore_errors=True)
    with staged(folder, needed_bytes=Manifest.read(material.bundle).weight_bytes) as stage:
        started = time.perf_counter()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                log = folder.with_name(f"{folder.name}.log")
                file = pool.submit(_make, name, material, graph, plain, stage, log).result()
            except BrokenProcessPool as error:
                raise LeftOut("the process that made it died; is there memory enough?") from error
        seconds = time.perf_counter() - started
        files = file_facts(stage, lambda what, done, total: None)
        made = Made(
            rival=name,
            graph=graph,
            recipe=rival.recipe,
            weights_sha256=material.weights_sha256,
            made_with={package: version(package) for package in rival.packages},
            made_in_s=seconds,
            file=file,
            size_bytes=sum(file.size_bytes for file in files),
            files={file.name: file.sha256 for file in files},
        )
        (stage / _RECORD).write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")
    return made


def read_made(folder: Path) -> Made | None:
    """What a folder holds; None for an empty one and for one that this version does not know."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if set(document) == {field.name for field in dataclasses.fields(Made)}:
            return Made(**document)
    return None


def _make(name: str, material: Material, graph: str, plain: Graphs, folder: Path, log: Path) -> str:
    """Make it in a process of its own. The tools' errors share no class, and not all can be pickled back."""
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    make = RIVALS[name].make
    assert make is not None
    try:
        return make(material, graph, plain, folder).name
    except Exception as error:
        raise LeftOut(first_line(error)) from None


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def same_graphs(made: Sequence[Made]) -> dict[str, str]:
    """Each rival whose files and engine equal an earlier rival's in every bit, with that rival's name."""
    first: dict[tuple[Engine, frozenset[tuple[str, str]]], str] = {}
    same = {}
    for one in made:
        known = first.setdefault((RIVALS[one.rival].engine, frozenset(one.files.items())), one.rival)
        if known != one.rival:
            same[one.rival] = known
    return same
