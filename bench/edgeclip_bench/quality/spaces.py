"""Under what an embedding is kept: all that decides a vector besides its input.

Nothing is picked: the whole manifest, every file of the packages that compute, every library between an input and
its vector, and what chooses the kernels. So a change that moves no vector costs one computation more, and none that
moves one is missed. Not part of it, because no two runs need agree on it: which texts shared a batch, which moves a
vector by the order of a float's sum alone (2e-7, measured on the small golden model).
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from importlib.metadata import packages_distributions, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
import onnxruntime
import PIL
import tokenizers
from PIL import Image, features

from edgeclip import Encoder
from edgeclip.engine.prepack.packed_weights import read_processor
from edgeclip.host.nvidia import cuda_version, cudnn_version, read_driver, tensorrt_version
from edgeclip.manifest import TowerName
from edgeclip_bench.measure.machine_facts import graphics_cards
from edgeclip_bench.quality.cache import Space

# Between an input and its vector stand the runtime and what calls it here.
_PACKAGES = ("edgeclip", "edgeclip_bench")
# Variables by which CUDA, TensorRT, OpenVINO and onnxruntime are told to compute otherwise than their options say.
_VARIABLES = ("NVIDIA_", "CUDA_", "CUBLAS", "CUDNN", "TENSORRT_", "ORT_", "OPENVINO_", "OV_")


def space_of(encoder: Encoder, tower: TowerName) -> Space:
    """What decides the vectors of one of the encoder's towers, besides the input."""
    manifest = encoder.manifest
    facts = {
        "tower": tower,
        "manifest": hashlib.sha256(manifest.to_json().encode()).hexdigest(),  # names the sha256 of every file
        "code": _CODE,
        "versions": _versions(),
        "device": encoder.device,
        "threads": encoder.threads,
        "plan": asdict(encoder.plan(tower)),
        "processor": read_processor(),
        "gpu": [] if encoder.device == "cpu" else _gpu(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
    }
    return Space(json.dumps(facts, sort_keys=True), manifest.embedding_dim)


def hash_packages(packages: Iterable[Traversable]) -> str:
    """sha256 over the names and bytes of every file in these packages, compiled copies left out."""
    digest = hashlib.sha256()
    for package in packages:
        for name, file in sorted(_walk(package, package.name)):
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _walk(folder: Traversable, name: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        inner = f"{name}/{entry.name}"
        if not entry.is_dir():
            yield inner, entry
        elif entry.name != "__pycache__":
            yield from _walk(entry, inner)


# Read when this is imported: a process keeps the code that it began with, whatever is installed meanwhile.
_CODE = hash_packages(map(files, _PACKAGES))


def _versions() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": [onnxruntime.__version__, onnxruntime.get_build_info()],
        "pillow": PIL.__version__,
        "decoders": _decoders(),
        "plugins": _plugins(),
        "tokenizers": tokenizers.__version__,
    }


@cache
def _decoders() -> dict[str, str | None]:
    """The libraries in Pillow: it may be built with another libjpeg, which rounds otherwise."""
    return {name: features.version(name) for name in features.get_supported()}


def _plugins() -> dict[str, str]:
    """The packages besides Pillow that decode a format for it, as pillow-heif does, and their versions."""
    Image.init()
    modules = {str(factory.__module__).partition(".")[0] for factory, _ in Image.OPEN.values()} - {"PIL"}
    owners = packages_distributions() if modules else {}
    return {name: version(name) for module in modules for name in owners.get(module, [])}


def _gpu() -> list[str | None]:
    driver = read_driver()
    major = str(getattr(onnxruntime, "cuda_version", "")).partition(".")[0]
    return [
        *graphics_cards(),
        *((driver.cuda, *driver.gpus) if driver else ()),
        cuda_version(int(major)) if major.isdigit() else None,
        cudnn_version(),
        tensorrt_version(),
    ]
