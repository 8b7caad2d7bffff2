"""Weights on disk in the layout that onnxruntime's matrix products want, so that processes share them.

A session on the CPU copies most weights into another layout when it opens, into memory of its own process: 600 MB per
process for the full-size int8 bundle. onnxruntime can write the graph and these copies to a file
(session.save_external_prepacked_constant_initializers). A session that opens that file maps the copies, and the next
process uses the same pages. It still packs each weight once, compares the hash, and drops its own copy; so weights
that were packed for another processor cost memory and give no wrong vector.

Packed weights take more room than the bundle itself, and serve one version of onnxruntime on one processor. So they
are made only on request: `edgeclip prepack` makes them (`edgeclip.engine.prepack.packing`), and every opening on the
CPU looks for them. A folder of packed weights is complete or absent. If it does not fit, the bundle itself is opened.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeclip.bundle.files import verify_hash
from edgeclip.bundle.staging import file_facts, staged
from edgeclip.engine.providers import Plan, cache_root
from edgeclip.errors import BuildError, BundleError, DeviceError
from edgeclip.manifest import FileFacts

# Another layout of the folder has another number, and is not looked at.
_LAYOUT = 1
_LIST = "files.json"
# Beside each weight stands its packed copy; a text tower whose weights are read in place has next to none. What
# shares less than this of the file is not worth its room.
WORTH_SHARE = 0.1
# An entry of a weight's external_data, as onnxruntime writes it: kernel+hash|offset;bytes;checksum, more by |.
_PACKED = re.compile(rb"\w+\+\d+((?:\|\d+;\d+;\w*)+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFacts:
    """Everything that packed weights depend on: the graph's files by sha256, and what packs them."""

    files: tuple[str, ...]
    onnxruntime: str
    processor: str
    plan: Plan

    @property
    def prefix(self) -> str:
        """16 hex digits that stand for the graph alone."""
        return _digest([_LAYOUT, *self.files])

    @property
    def key(self) -> str:
        """The folder's name: it stands for the graph and for all that packed it."""
        made_by = [self.onnxruntime, self.processor, *self.plan.entries, *self.plan.without]
        return f"{self.prefix}-{_digest(made_by)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A tower's folder of packed weights: the graph to open, and the size of its files in bytes."""

    graph: Path
    files: tuple[FileFacts, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes that it takes on disk."""
        return sum(file.size_bytes for file in self.files)

    def verify(self) -> None:
        """Read every byte; BundleError names a file whose sha256 differs from what was written."""
        for file in self.files:
            try:
                verify_hash(self.graph.parent, file)
            except BundleError as error:
                raise BundleError(
                    f"{self.graph.parent}: {file.name} is not what was packed; `edgeclip prepack` makes it anew"
                ) from error


def packed_root(environment: Mapping[str, str], find_home: Callable[[], Path] = Path.home) -> Path | None:
    """The folder in which packed weights are kept; None for a user without a home folder."""
    try:
        return cache_root(environment, find_home) / "prepacked"
    except DeviceError:
        return None


def saving_entries(graph: str) -> tuple[tuple[str, str], ...]:
    """The session's config entries that make it write weights and packed copies beside a graph file of this name."""
    return (
        ("session.optimized_model_external_initializers_file_name", f"{graph}_data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    )


def find_packed(root: Path, facts: PackedFacts) -> Packed | None:
    """The packed weights for these facts; None if there are none. Damaged ones are reported on stderr and count as
    none.

    The sizes of all files are compared, and the hash of the graph; `Packed.verify` reads the rest.
    """
    folder = root / facts.key
    try:
        if not os.path.isdir(folder):  # also False for another user's, where Path.is_dir raises
            return None
        packed = _read(folder)
        graph = next(file for file in packed.files if file.name == packed.graph.name)
        Packed(graph=packed.graph, files=(graph,)).verify()
        for file in packed.files:
            if (found := (folder / file.name).stat().st_size) != file.size_bytes:
                raise BundleError(
                    f"{folder}: {file.name} has {found} bytes, {file.size_bytes} were written; "
                    "`edgeclip prepack` makes it anew"
                )
    except (OSError, ValueError, KeyError, TypeError, StopIteration, BundleError) as error:
        tell_unused(error if isinstance(error, BundleError) else BundleError(f"{folder}: {_LIST} cannot be read"))
        return None
    return packed


def tell_unused(error: Exception) -> None:
    """Print one line on stderr that says why the bundle is opened without packed weights."""
    print(f"edgeclip: opened without packed weights ({error})", file=sys.stderr)


@contextmanager
def keep_packed(root: Path, facts: PackedFacts, graph: str, weight_bytes: int) -> Iterator[Path]:
    """Yield a folder to write `graph` and its weights into; it gets its final name when the block succeeds.

    Weights of the same graph that another onnxruntime or processor packed are removed then. Raises BuildError for a
    folder that cannot be written and a disk without room.
    """
    folder = root / facts.key
    shutil.rmtree(folder, ignore_errors=True)
    # The weights and a copy of them, whose rows are filled up to whole blocks.
    try:
        with staged(folder, int(2.1 * weight_bytes)) as stage:
            yield stage
            files = file_facts(stage, lambda *_: None)
            listed = [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in files]
            (stage / _LIST).write_text(json.dumps({"graph": graph, "files": listed}))
    except BuildError:
        if not (folder / _LIST).is_file():  # else another process was first; its weights are as good
            raise
    for other in _folders(root, facts.prefix):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def remove_packed(root: Path, facts: PackedFacts) -> int:
    """Remove all packed weights of the graph, for any processor; returns the bytes that were freed. Raises
    BuildError.
    """
    freed = 0
    for folder in _folders(root, facts.prefix):
        try:
            freed += sum(path.stat().st_size for path in folder.iterdir())
            shutil.rmtree(folder)
        except OSError as error:
            raise BuildError(f"{folder}: cannot be removed ({error.strerror})") from error
    return freed


def count_packed(graph: bytes) -> int:
    """The bytes of packed copies that a written graph names."""
    entries = (entry[1].split(b"|")[1:] for entry in _PACKED.finditer(graph))
    return sum(int(part.split(b";")[1]) for parts in entries for part in parts)


def _read(folder: Path) -> Packed:
    found = json.loads((folder / _LIST).read_text())
    files = tuple(FileFacts(**file) for file in found["files"])
    return Packed(graph=folder / found["graph"], files=files)


def _folders(root: Path, prefix: str) -> list[Path]:
    return [path for path in root.glob(f"{prefix}-*") if not path.name.endswith(".tmp")]


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
