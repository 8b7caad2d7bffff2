"""The rivals' graphs: what others make of the same tower, each with their own tool and made once.

    WORK/<rival>/<tower>/    the graph, its weights, and made.json with what they were made of and with

A graph is taken again when checkpoint and recipe are still the same, by whichever interpreter it was made: so
packages that do not go together can each prepare their own rivals in one folder. Each is made in a process of its
own, which gives back the memory that it took; what the tool says while at it is in WORK/<rival>/<tower>.log.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from edgeclip import Manifest
from edgeclip.jina_clip import normalize_pixels
from edgeclip.manifest import TowerName
from edgeclip.staging import file_facts, staged
from edgeclip_quant.samples import made_up_samples

Engine = Literal["onnxruntime", "openvino"]

_RECORD = "made.json"
# onnxruntime's quantizer would by default take every operator whose name it knows. It takes the Attention of opset
# 23 for com.microsoft's, and the graph does not load; ConvInteger has no kernel for int8 weights
# (microsoft/onnxruntime#15888). What it knows beside these and stands in the towers: the weights' MatMul, the
# token table's Gather.
_OPERATORS = ["MatMul", "Gather"]
# nncf would take 300; the towers' ranges settle long before.
_TEXTS, _IMAGES = 128, 32


class LeftOut(Exception):  # noqa: N818
    """A rival cannot take part; the message says why in a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the rivals are made of: a checkpoint, its fp32 bundle, and the hash of the weights of both."""

    checkpoint: Path
    bundle: Path
    weights_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A rival's tower on disk. `made_with` is of packages, `files` of hashes of what is loaded."""

    rival: str
    tower: TowerName
    recipe: str
    weights_sha256: str
    made_with: Mapping[str, str]
    made_in_s: float
    graph: str
    size_bytes: int
    files: Mapping[str, str]


# (material, tower, the plain graph, a folder) -> the file in the folder that is loaded
Make = Callable[[Material, TowerName, Path, Path], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A tool's way with a tower: `recipe` says it in a line, `packages` must be installed to make it."""

    recipe: str
    engine: Engine
    packages: tuple[str, ...]
    make: Make


def make_plain(material: Material, tower: TowerName, plain: Path, folder: Path) -> Path:
    """The graph as torch.onnx.export leaves it; `plain` is not there yet."""
    from edgeclip_bench.latency import plain_graph

    return plain_graph(material.checkpoint, folder, tower)


def _quantize_dynamic(weight_type: str) -> Make:
    def make(material: Material, tower: TowerName, plain: Path, folder: Path) -> Path:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            plain,
            folder / plain.name,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            weight_type=QuantType[weight_type],
            use_external_data_format=True,
        )
        return folder / plain.name

    return make


def _optimum(preset: str) -> Make:
    def make(material: Material, tower: TowerName, plain: Path, folder: Path) -> Path:
        from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

        config = getattr(AutoQuantizationConfig, preset)(
            is_static=False, per_channel=True, operators_to_quantize=_OPERATORS
        )
        quantizer = ORTQuantizer.from_pretrained(plain.parent, file_name=plain.name)
        quantizer.quantize(config, folder, file_suffix="", use_external_data_format=True)
        (folder / "ort_config.json").unlink()  # tells presets apart whose graphs are one
        return folder / plain.name

    return make


def _openvino(material: Material, tower: TowerName, plain: Path, folder: Path) -> Path:
    import openvino

    openvino.save_model(openvino.convert_model(plain), folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def _openvino_int8(material: Material, tower: TowerName, plain: Path, folder: Path) -> Path:
    import nncf
    import openvino

    batches = _calibration(material, tower)
    model = nncf.quantize(
        openvino.convert_model(plain),
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        # Else its inputs become int8 as well. Raises when the graph has none.
        ignored_scope=nncf.IgnoredScope(types=["ScaledDotProductAttention"]),
    )
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def _calibration(material: Material, tower: TowerName) -> Sequence[NDArray[Any]]:
    manifest = Manifest.read(material.bundle)
    samples = made_up_samples(material.bundle, manifest, texts=_TEXTS, images=_IMAGES)
    if tower == "text":
        return samples.text
    return [normalize_pixels(pixels, manifest.image) for pixels in samples.vision]


PLAIN = "plain"
_OF_WEIGHTS = f"of {' and '.join(_OPERATORS)}, per channel"
RIVALS: Mapping[str, Rival] = {
    PLAIN: Rival(
        recipe="torch.onnx.export, fp32",
        engine="onnxruntime",
        packages=("torch", "onnxscript"),
        make=make_plain,
    ),
    **{
        name: Rival(
            recipe=f"onnxruntime.quantization.quantize_dynamic {_OF_WEIGHTS}, {weight_type} weights",
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


def prepare(name: str, material: Material, tower: TowerName, work: Path) -> Made:
    """The rival's tower under `work`, made now unless it is there; LeftOut when it cannot be made here."""
    rival, folder = RIVALS[name], work / name / tower
    made = read_made(folder)
    if made and (made.weights_sha256, made.recipe) == (material.weights_sha256, rival.recipe):
        return made
    if missing := [package for package in rival.packages if not installed(package)]:
        raise LeftOut(f"not in {work}, and {' and '.join(missing)} not installed to make it")
    plain = folder
    if name != PLAIN:
        plain = work / PLAIN / tower / prepare(PLAIN, material, tower, work).graph
    shutil.rmtree(folder, ignore_errors=True)
    with staged(folder, needed_bytes=Manifest.read(material.bundle).weight_bytes) as stage:
        started = time.perf_counter()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                log = folder.with_name(f"{tower}.log")
                graph = pool.submit(_make, name, material, tower, plain, stage, log).result()
            except BrokenProcessPool as error:
                raise LeftOut("the process that made it died; is there memory enough?") from error
        seconds = time.perf_counter() - started
        files = file_facts(stage, lambda what, done, total: None)
        made = Made(
            rival=name,
            tower=tower,
            recipe=rival.recipe,
            weights_sha256=material.weights_sha256,
            made_with={package: version(package) for package in rival.packages},
            made_in_s=seconds,
            graph=graph,
            size_bytes=sum(file.size_bytes for file in files),
            files={file.name: file.sha256 for file in files},
        )
        (stage / _RECORD).write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")
    return made


def read_made(folder: Path) -> Made | None:
    """What was made in a folder; None where nothing was, or nothing that this version knows."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if set(document) == {field.name for field in dataclasses.fields(Made)}:
            return Made(**document)
    return None


def installed(package: str) -> bool:
    """Whether a distribution of that name is installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _make(name: str, material: Material, tower: TowerName, plain: Path, folder: Path, log: Path) -> str:
    """In a process of its own. The tools' errors have no class in common, and not all can be sent back."""
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        return RIVALS[name].make(material, tower, plain, folder).name
    except Exception as error:
        raise LeftOut(first_line(error)) from None


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of its essay."""
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def same_graphs(made: Sequence[Made]) -> dict[str, str]:
    """Of one tower's graphs, each rival whose files are to the last bit those of one before it, and that one."""
    first: dict[frozenset[tuple[str, str]], str] = {}
    same = {}
    for one in made:
        known = first.setdefault(frozenset(one.files.items()), one.rival)
        if known != one.rival:
            same[one.rival] = known
    return same
