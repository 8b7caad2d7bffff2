"""Say in one line why a package cannot be imported here, and what to install: it is missing, or its wheel is for
another processor, another system or another Python.

A wheel for another machine gets into an environment that was copied or shared, or by `pip install --target` and
`--platform`. Python then names a module that "is not there", or a library that "cannot be opened".
"""

import importlib.util
import struct
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from edgeclip.errors import MissingExtraError
from edgeclip.host.installation import install_command, missing_package

# ELF's e_machine (elf.h), by the names that Python has for processors.
_PROCESSORS = {0x03: "i386", 0x28: "arm", 0x3E: "x86_64", 0xB7: "aarch64", 0xF3: "riscv64"}
# The newest Python that onnxruntime 1.32 has wheels for.
_NEWEST_PYTHON = (3, 14)
_WITHOUT_TAG = (".so", ".abi3.so", ".pyd", ".dylib", ".dll")


def explain_import(error: ImportError, extra: str = "cpu", package: str = "") -> MissingExtraError | None:
    """The error to raise in place of `error`, which importing a package raised; None where the fault is edgeclip's.

    `extra` brings the package, which is `package` where the error names none.
    """
    cause = _cause(error)
    package = _package(cause) or package
    if not package or package.startswith("edgeclip"):
        return None
    if isinstance(cause, ModuleNotFoundError) and cause.name == package:
        if package != "onnxruntime":
            return missing_package(cause, extra)
        why = f" ({lacking})" if (lacking := _no_wheel()) else ""
        command = f"`{install_command('cpu')}`, for CUDA and TensorRT [gpu] in place of [cpu]"
        return MissingExtraError(f"onnxruntime is not installed{why}: {command}")
    command = f"`{install_command(extra, '--force-reinstall')}`"
    other = ", or [gpu] in place of [cpu]" if package == "onnxruntime" else ""
    return MissingExtraError(f"{package} is installed but cannot be loaded ({reason(error)}); {command}{other}")


def reason(error: ImportError) -> str:
    """Why a package cannot be imported, in a few words: what it is built for, or Python's own words."""
    cause = _cause(error)
    return _built_for(_package(cause), cause.path) or str(cause).strip().split("\n")[0]


def _cause(error: ImportError) -> ImportError:
    """The first of the errors that led to this one. numpy puts a page of advice before it."""
    before = error.__cause__ or error.__context__
    return _cause(before) if isinstance(before, ImportError) else error


def _package(error: ImportError) -> str:
    """The package whose file could not be loaded: of a library Python gives the last part of its name alone."""
    found = (error.name or "").partition(".")[0]
    for folder in Path(error.path or "").parents:
        if not (folder / "__init__.py").is_file():
            break
        found = folder.name
    return found


def _no_wheel() -> str:
    """Why pip finds no wheel of onnxruntime for this Python; "" where it does."""
    if "musl" in (sysconfig.get_config_var("SOABI") or ""):
        return "it has no wheel for musl: take a system with glibc, as Debian, in place of Alpine"
    if struct.calcsize("P") == 4:
        return "it has no wheel for 32 bits: take a 64-bit system"
    if sys.version_info[:2] > _NEWEST_PYTHON:
        newest = ".".join(map(str, _NEWEST_PYTHON))
        return f"it may have no wheel for Python {sys.version_info[0]}.{sys.version_info[1]} yet: take {newest}"
    return ""


def _built_for(package: str, library: str | None) -> str | None:
    """What a package's libraries are built for, where that is neither this Python nor this processor."""
    try:
        found = importlib.util.find_spec(package) if package else None
        folders = [Path(place) for place in (found and found.submodule_search_locations) or ()]
        libraries = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".so", ".pyd")]
        processor = _processor(Path(library)) if library else None
    except (ImportError, OSError, ValueError):
        return None
    suffixes = {f".{path.name.partition('.')[2]}" for path in libraries} - set(_WITHOUT_TAG)
    here = EXTENSION_SUFFIXES[0].strip(".").partition(".")[0]
    if suffixes and not suffixes & set(EXTENSION_SUFFIXES):
        others = ", ".join(sorted({suffix.strip(".").partition(".")[0] for suffix in suffixes}))
        return f"it is built for {others}, and this Python is {here}"
    if processor and processor not in here and sys.platform == "linux":
        return f"it is built for {processor}, and this Python is {here}"
    return None


def _processor(library: Path) -> str | None:
    """The processor that a Linux library is built for; None for other files."""
    with library.open("rb") as file:
        head = file.read(20)
    return _PROCESSORS.get(int.from_bytes(head[18:20], "little")) if head[:4] == b"\x7fELF" else None
