"""The one shape of the JSON documents that benchmarks write and read.

    benchmark         the module that measured
    schema_version    2; a reader that compares documents refuses others
    measured_at       date and time in UTC, ISO 8601
    machine           processor, threads, memory, system, python, graphics cards
    versions          of the packages in use, those that are installed
    ...               what was run, and its figures, by names that each benchmark describes

null means not measured or not allowed by the samples, never zero.
"""

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError
from edgeclip_bench.measure.machine_facts import machine

SCHEMA_VERSION = 2
_PACKAGES = (
    *("edgeclip", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino", "numpy", "pillow"),
    *("tokenizers", "torch", "onnx", "onnx-ir", "onnxscript", "nncf", "optimum-onnx", "optimum"),
    *("transformers", "mteb"),
)


def versions() -> dict[str, str]:
    """The versions of the packages that figures depend on, those that are installed."""
    return {package: version(package) for package in _PACKAGES if installed(package)}


def installed(package: str) -> bool:
    """Whether a distribution of that name is installed."""
    return any(distributions(name=package))


def make_document(benchmark: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a benchmark that was just run; `benchmark` is the __name__ of its module."""
    return {
        "benchmark": benchmark,
        "schema_version": SCHEMA_VERSION,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        **figures,
    }


def to_json(document: Mapping[str, Any]) -> str:
    """The document as the text of its file; ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def add_out(parser: argparse.ArgumentParser) -> None:
    """Declare --out, the file for the document."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON here")


def save(document: Mapping[str, Any], out: Path | None) -> None:
    """Write the document to `out`, if that is a file's name, when it is whole; InputError where that cannot be."""
    if out is None:
        return
    part = out.with_name(f".{out.name}.part")
    try:
        part.write_text(to_json(document), encoding="utf-8", errors="backslashreplace")
        part.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error


def read_document(path: Path, *, benchmark: str | None = None) -> dict[str, Any]:
    """The document of that benchmark, or of any; InputError for a file that is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON document ({error})") from error
    found = document.get("benchmark") if isinstance(document, dict) else None
    if not isinstance(found, str) or (benchmark and found != benchmark):
        wanted = benchmark or 'with its name in "benchmark"'
        raise InputError(f"{path}: found {found!r}, wanted a benchmark's document {wanted}")
    return dict(document)
