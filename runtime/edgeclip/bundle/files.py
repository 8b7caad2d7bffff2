"""A bundle's files, held against its manifest.

Opening checks what is cheap: that every file is there with its size. What native code parses (the
tokenizer, a graph without its weights) is hashed before it is parsed; all bytes are hashed by
`verify_hashes`, which `edgeclip check` calls.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from edgeclip.errors import BundleError
from edgeclip.families import find_family
from edgeclip.manifest import FIRST_GRAPH, POINTER_BYTES, FileFacts, Manifest, dangling_target, describe_pointer

_BLOCK_BYTES = 1 << 20
_FETCH = "fetch what it stands for (git annex get, dvc pull, git lfs pull), or copy the bundle with cp -rL"


def find_folder(bundle: str | os.PathLike[str]) -> Path:
    """The folder of a bundle as an absolute path without links; what is not there is left to `open_manifest` to name.

    It stays the same when the process changes its folder, and when a link to it is turned to another bundle.
    """
    try:
        return Path(os.path.realpath(bundle, strict=True))
    except (OSError, ValueError):
        return Path(bundle)


def open_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`, every file of it present with its size.

    Raises BundleError for a folder that is no bundle, for a family that this version does not run, and for a file
    that is missing, of another size or not to be read.
    """
    manifest = Manifest.read(folder)
    try:
        find_family(manifest.family)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error
    for file in manifest.files:
        try:
            size = (folder / file.name).stat().st_size
        except FileNotFoundError as error:
            if target := dangling_target(folder / file.name):
                raise BundleError(f"{folder}: {file.name} is a link to {target}; {_FETCH}") from error
            raise BundleError(f"{folder}: {file.name} is missing; export or copy the bundle again") from error
        except OSError as error:
            raise BundleError(f"{folder}: {file.name} cannot be read ({error.strerror})") from error
        if size != file.size_bytes:
            raise BundleError(
                f"{folder}: {file.name} has {size} bytes, the manifest says {file.size_bytes}; "
                + (_FETCH if _is_pointer(folder / file.name) else "export or copy the bundle again")
            )
        if not os.access(folder / file.name, os.R_OK):  # onnxruntime says of weights "SystemError : 13"
            raise BundleError(f"{folder}: {file.name} cannot be read; give this user the right to")
    return manifest


def _is_pointer(path: Path) -> bool:
    """Whether the file stands for one that git-lfs or git-annex has not fetched."""
    try:
        with path.open("rb") as file:
            return describe_pointer(file.read(POINTER_BYTES)) is not None
    except OSError:
        return False


def verify_hashes(
    folder: Path, manifest: Manifest, progress: Callable[[int], None] = lambda read_bytes: None
) -> None:
    """Read every file and compare its sha256; BundleError names the first that differs.

    `progress` is told the bytes read since it was last called.
    """
    for file in manifest.files:
        verify_hash(folder, file, progress)


def verify_hash(folder: Path, file: FileFacts, progress: Callable[[int], None] = lambda read_bytes: None) -> None:
    """Read one file and compare its sha256, as `verify_hashes` does."""
    try:
        with (folder / file.name).open("rb") as stream:
            verify_stream(stream, folder, file, progress)
    except OSError as error:
        raise _unreadable(folder, file, error) from error


def verify_stream(
    stream: IO[bytes], folder: Path, file: FileFacts, progress: Callable[[int], None] = lambda read_bytes: None
) -> None:
    """Read an open file from where it stands to its end and compare its sha256, as `verify_hashes` does."""
    digest = hashlib.sha256()
    try:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            progress(len(block))
    except OSError as error:
        raise _unreadable(folder, file, error) from error
    if digest.hexdigest() != file.sha256:
        raise BundleError(
            f"{folder}: {file.name} is not what was exported (its sha256 differs from the manifest's); "
            "export or copy the bundle again"
        )


def _unreadable(folder: Path, file: FileFacts, error: OSError) -> BundleError:
    return BundleError(f"{folder}: {file.name} cannot be read ({error.strerror})")


def weights_of(graph: str, files: Iterable[FileFacts]) -> list[FileFacts]:
    """The files beside a graph that hold its weights, which onnxruntime maps."""
    return [file for file in files if file.name.startswith(graph) and file.name != graph]


def unmasked_name(graph: str) -> str:
    """The file of the form of a CUDA graph that never masks, over the same weights: text.unmasked.onnx."""
    return f"{graph.removesuffix('.onnx')}.unmasked.onnx"


def unproved(manifest: Manifest) -> str | None:
    """The words for graphs that are narrowed and whose vectors were never compared with the fp32 bundle's."""
    proved = {FIRST_GRAPH[one.modality] for one in manifest.measured if one.against == "fp32 bundle"}
    missing = [name for name, facts in manifest.graphs.items() if facts.precision != "fp32" and name not in proved]
    if not missing:
        return None
    named = " and ".join(f"the {name} graph ({manifest.graphs[name].precision})" for name in missing)
    return (
        f"nobody measured what {named} lost against the fp32 bundle; make it with `edgeclip quantize`, "
        "or see with `edgeclip eval --against`"
    )
