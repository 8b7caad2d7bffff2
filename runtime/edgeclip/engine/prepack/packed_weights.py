"""Weights as onnxruntime's GEMMs want them, kept on this machine's disk: processes share them.

A session on the CPU copies most weights into another order when it opens, into memory of its process's own: of the
full-size int8 bundle 600 MB for every process. onnxruntime can write graph and copies to a file
(session.save_external_prepacked_constant_initializers), and a session that opens that file maps them: the next
process has the same pages. It still packs each weight once, to compare by hash, and drops its copy; so packed weights
of another processor cost memory and give no wrong vector.

They take more room than the bundle itself and serve one version of onnxruntime on one processor. So nobody gets them
unasked: `edgeclip prepack` makes them (`edgeclip.engine.prepack.packing`), every opening on the CPU looks for them. A
folder here is whole or not there, and what it cannot serve is opened from the bundle.
"""

import hashlib
import json
import os
import platform
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
_PROCESSOR = re.compile(r"^(?:model name|flags|CPU implementer|CPU part|Features)\s*:\s*(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFacts:
    """Everything that packed weights depend on: the graph's files by sha256, and what packs them."""

    files: tuple[str, ...]
    onnxruntime: str
    processor: str
    plan: Plan

    @property
    def prefix(self) -> str:
        """16 hex digits: of which graph they are."""
        return _digest([_LAYOUT, *self.files])

    @property
    def key(self) -> str:
        """The folder's name: of which graph, packed by what."""
        made_by = [self.onnxruntime, self.processor, *self.plan.entries, *self.plan.without]
        return f"{self.prefix}-{_digest(made_by)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A tower's folder of packed weights: its graph to open, the bytes of its files."""

    graph: Path
    files: tuple[FileFacts, ...]

    @property
    def size_bytes(self) -> int:
        """What it takes on disk."""
        return sum(file.size_bytes for file in self.files)

    def verify(self) -> None:
        """Read every byte; BundleError names the file whose sha256 is not what was written."""
        for file in self.files:
            try:
                verify_hash(self.graph.parent, file)
            except BundleError as error:
                raise BundleError(
                    f"{self.graph.parent}: {file.name} is not what was packed; `edgeclip prepack` makes it anew"
                ) from error


def packed_root(environment: Mapping[str, str], find_home: Callable[[], Path] = Path.home) -> Path | None:
    """Where packed weights are kept; None for a user without a home."""
    try:
        return cache_root(environment, find_home) / "prepacked"
    except DeviceError:
        return None


def saving_entries(graph: str) -> tuple[tuple[str, str], ...]:
    """The session's config entries that write weights and packed copies beside the written graph of this name."""
    return (
        ("session.optimized_model_external_initializers_file_name", f"{graph}_data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    )


def find_packed(root: Path, facts: PackedFacts) -> Packed | None:
    """What is kept for these facts; None without it. What is there and damaged is told on stderr, and is None.

    Sizes are compared, and the graph by its hash, as of a bundle: `Packed.verify` reads the rest.
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
    """Say on stderr, in one line, why the bundle is opened without them."""
    print(f"edgeclip: opened without packed weights ({error})", file=sys.stderr)


@contextmanager
def keep_packed(root: Path, facts: PackedFacts, graph: str, weight_bytes: int) -> Iterator[Path]:
    """A folder to write `graph` and its weights into; it takes its place when the block succeeds.

    What was packed of the same graph by another onnxruntime or processor goes then. Raises BuildError for a place
    that cannot be written and a disk without room.
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
    """Remove what is kept of the graph, whoever packed it; the bytes that became free. Raises BuildError."""
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


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The first processor's name and features, which kernels and so their packing are chosen by."""
    try:
        with cpuinfo.open(errors="replace") as file:
            first = file.read(16384).split("\n\n")[0]
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    return "\n".join(_PROCESSOR.findall(first))


def _read(folder: Path) -> Packed:
    found = json.loads((folder / _LIST).read_text())
    files = tuple(FileFacts(**file) for file in found["files"])
    return Packed(graph=folder / found["graph"], files=files)


def _folders(root: Path, prefix: str) -> list[Path]:
    return [path for path in root.glob(f"{prefix}-*") if not path.name.endswith(".tmp")]


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
