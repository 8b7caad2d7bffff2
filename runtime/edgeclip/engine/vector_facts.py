"""Facts that decide a vector besides its input and the call's options; caches keep and find vectors by them.

Nothing is picked: the whole manifest, every file of the package, every library between an input and its vector, and
the settings that choose the kernels. So a change that alters no vector costs one more computation, and no change that
alters one is missed. The other texts of a batch are left out: they alter a vector by the order of a float's sum alone
(2e-7, measured on the small golden model).
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from importlib.metadata import packages_distributions, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Protocol

import numpy as np
import tokenizers

from edgeclip.engine.ort import import_onnxruntime
from edgeclip.engine.providers import Plan
from edgeclip.host.nvidia import cuda_version, cudnn_version, read_driver, tensorrt_version
from edgeclip.host.processor import read_processor
from edgeclip.inputs.images import known_formats
from edgeclip.manifest import Manifest

# Variables that make CUDA, TensorRT, OpenVINO and onnxruntime compute in other ways than their options say.
_VARIABLES = ("NVIDIA_", "CUDA_", "CUBLAS", "CUDNN", "TENSORRT_", "ORT_", "OPENVINO_", "OV_")


class OpenBundle(Protocol):
    """The part of `edgeclip.encoder.Encoder` that this module asks."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's facts."""

    @property
    def device(self) -> str:
        """The device that runs the graphs."""

    @property
    def threads(self) -> int:
        """The number of threads on the CPU."""

    def plan(self, graph: str) -> Plan:
        """What a graph is run with."""


def vector_facts(bundle: OpenBundle, graphs: Iterable[str]) -> dict[str, Any]:
    """The facts that decide the vectors of these graphs: JSON values that survive a round trip, under names for
    messages.
    """
    onnxruntime = import_onnxruntime()
    facts = {
        "the bundle's manifest": hashlib.sha256(bundle.manifest.to_json().encode()).hexdigest(),  # has every sha256
        "edgeclip's code": _CODE,
        "the version of Python": platform.python_version(),
        "the version of numpy": np.__version__,
        "the version of onnxruntime": [onnxruntime.__version__, onnxruntime.get_build_info()],
        "the version of tokenizers": tokenizers.__version__,
        **_pillow_facts(),
        "the device": bundle.device,
        "the number of threads": bundle.threads,
        "the processor": read_processor(),
        "the GPU": [] if bundle.device == "cpu" else _gpu(),
        "the environment": {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
        **{f"the plan of the {graph} graph": asdict(bundle.plan(graph)) for graph in graphs},
    }
    return dict(json.loads(json.dumps(facts)))


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
_CODE = hash_packages([files("edgeclip")])


def _pillow_facts() -> dict[str, Any]:
    try:
        import PIL
        from PIL import Image
    except ImportError:
        return {}
    known_formats()  # registers what the first image would register
    modules = sorted({str(factory.__module__).partition(".")[0] for factory, _ in Image.OPEN.values()} - {"PIL"})
    return {
        "the version of Pillow": PIL.__version__,
        "the version of Pillow's libraries": _decoders(),
        "the version of Pillow's plugins": {name: version(name) for module in modules for name in _owners(module)},
    }


@cache
def _decoders() -> dict[str, str | None]:
    """The libraries in Pillow: it may be built with another libjpeg, which rounds otherwise."""
    from PIL import features

    return {name: features.version(name) for name in features.get_supported()}


@cache
def _owners(module: str) -> list[str]:
    """The packages that brought a module, as pillow-heif brings pillow_heif, by their normal names (PEP 503)."""
    return sorted({re.sub(r"[-_.]+", "-", name).lower() for name in packages_distributions().get(module, [])})


def _gpu() -> list[str | None]:
    driver = read_driver()
    major = str(getattr(import_onnxruntime(), "cuda_version", "")).partition(".")[0]
    return [
        *((driver.cuda, *driver.gpus) if driver else ()),
        cuda_version(int(major)) if major.isdigit() else None,
        cudnn_version(),
        tensorrt_version(),
    ]
