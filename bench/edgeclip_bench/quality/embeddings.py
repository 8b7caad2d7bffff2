"""Compute each input of an evaluation once, as a full-width unit vector.

Inputs are read a block at a time, so beside the vectors only a block of them is in memory. One that came before in
this run, or that the cache holds, is not computed again. Two things move a vector by the order of a float's sum alone
and do not count as another: the number of threads, and which texts shared a batch.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclip import Encoder, InputError, Manifest
from edgeclip.bundle.files import verify_hash
from edgeclip.families.tasks import find_task
from edgeclip.manifest import FileFacts, Modality
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.quality.cache import EmbeddingCache, Entry, Space
from edgeclip_bench.quality.spaces import graphs_of, space_of

Vectors = NDArray[np.float32]
T = TypeVar("T")

_TEXTS_AT_ONCE = 256
_IMAGES_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The origins of vectors: `inputs` = repeated + cached + computed. `cut` inputs lost their tail."""

    inputs: int = 0
    repeated: int = 0
    cached: int = 0
    computed: int = 0
    cut: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: count + getattr(other, name) for name, count in asdict(self).items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way(Generic[T]):
    """The steps from inputs of one modality to entries: `digest` names an input, `compute` encodes several."""

    modality: Modality
    space: Space
    block: int  # looked up together
    at_once: int  # computed and kept together
    digest: Callable[[T, int], bytes]
    compute: Callable[[list[T]], list[Entry]]


class Embedder:
    """An Encoder and a cache.

    A graph's files are hashed before any of its vectors is used, so that those of a damaged one are never kept.
    """

    def __init__(self, encoder: Encoder, cache: EmbeddingCache, *, progress: bool | None = None) -> None:
        self.encoder = encoder
        self._counts = Counts()
        self._cache = cache
        self._is_shown = is_wanted(progress)
        self._proved: set[str] = set()

    def texts(self, texts: Iterable[str], count: int, *, task: str | None = None, label: str = "texts") -> Vectors:
        """Unit vectors (count, D) float32 of the texts, each with that task; InputError for more or fewer."""
        facts = find_task(self.encoder.manifest, task, "text")  # an unknown task is one without texts too

        def digest(text: str, row: int) -> bytes:
            try:
                return hashlib.sha256(f"{facts.adapter or ''}\0{facts.prompt}{text}".encode()).digest()
            except UnicodeEncodeError as error:
                raise InputError(f"{label}: number {row} holds a lone surrogate, so it is no Unicode text") from error

        way: _Way[str] = _Way(
            modality="text",
            space=space_of(self.encoder, "text"),
            block=_TEXTS_AT_ONCE,
            at_once=_TEXTS_AT_ONCE,
            digest=digest,
            compute=lambda texts: self._encode_texts(texts, task),
        )
        return self._embed(way, texts, count, label)

    def images(self, paths: Sequence[Path], *, task: str | None = None, label: str = "images") -> Vectors:
        """Unit vectors (N, D) float32 of image files, with that task; InputError names one that cannot be read."""
        adapter = find_task(self.encoder.manifest, task, "image").adapter
        way: _Way[Path] = _Way(
            modality="image",
            space=space_of(self.encoder, "image"),
            block=_IMAGES_AT_ONCE,
            at_once=1,  # a second each where hardware is small: a killed run loses one
            digest=lambda path, row: _hash_file(path, adapter),
            compute=lambda paths: [
                Entry(self.encoder.encode_image(path, task=task, progress=False), is_cut=False) for path in paths
            ],
        )
        return self._embed(way, paths, len(paths), label)

    def take_counts(self) -> Counts:
        """The counts of all inputs since this was last asked."""
        counts, self._counts = self._counts, Counts()
        return counts

    def _embed(self, way: _Way[T], inputs: Iterable[T], total: int, label: str) -> Vectors:
        vectors = np.empty((total, way.space.dim), np.float32)
        rows: dict[bytes, int] = {}  # where each input came first
        cut: set[bytes] = set()
        counts = Counts()
        with ProgressBar(label, total, is_shown=self._is_shown) as bar:
            for block in _blocks(inputs, way.block):
                start = counts.inputs
                if start + len(block) > total:
                    raise InputError(f"{label}: found more than the {total} expected; did a file change?")
                keys = [way.digest(item, row) for row, item in enumerate(block, start)]
                new = {}
                for row, (key, item) in enumerate(zip(keys, block, strict=True), start):
                    if key not in rows:
                        rows[key], new[key] = row, item
                counts += Counts(inputs=len(block), repeated=len(block) - len(new))
                for entries, came in self._find(way, new):
                    for key, entry in entries.items():
                        vectors[rows[key]] = entry.vector
                    cut.update(key for key, entry in entries.items() if entry.is_cut)
                    counts += came
                    shown = f"{label}: {counts.cached} cached, {counts.computed} new,"
                    bar.show(shown, counts.repeated + counts.cached + counts.computed, total)
                for row, key in enumerate(keys, start):
                    if rows[key] != row:
                        vectors[row] = vectors[rows[key]]
                counts += Counts(cut=sum(key in cut for key in keys))
        if counts.inputs != total:
            raise InputError(f"{label}: found {counts.inputs}, expected {total}; did a file change?")
        self._counts += counts
        return vectors

    def _find(self, way: _Way[T], new: dict[bytes, T]) -> Iterator[tuple[dict[bytes, Entry], Counts]]:
        """The entries of these inputs: first what the cache has, then the rest as it is computed."""
        for graph in graphs_of(self.encoder.manifest, way.modality):
            if graph not in self._proved:
                for file in graph_files(self.encoder.manifest, graph):
                    verify_hash(self.encoder.folder, file)
            self._proved.add(graph)
        kept = self._cache.read(way.space, list(new))
        yield kept, Counts(cached=len(kept))
        missing = [key for key in new if key not in kept]
        for keys in _blocks(missing, way.at_once):
            entries = dict(zip(keys, way.compute([new[key] for key in keys]), strict=True))
            self._cache.write(way.space, entries)
            yield entries, Counts(computed=len(entries))

    def _encode_texts(self, texts: list[str], task: str | None) -> list[Entry]:
        prepared = self.encoder.prepare_texts(texts, task=task)
        vectors = self.encoder.run_items(prepared.items)
        return [Entry(vector, is_cut=index in prepared.cut) for index, vector in enumerate(vectors)]


def graph_files(manifest: Manifest, graph: str) -> list[FileFacts]:
    """The files that decide a graph's vectors: its structure, its weights, and its adapters."""
    adapters = {adapter.file for adapter in manifest.adapters.values() if adapter.graph == graph}
    name = manifest.graphs[graph].file
    return [file for file in manifest.files if file.name.startswith(name) or file.name in adapters]


def _hash_file(path: Path, adapter: str | None) -> bytes:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256")
            if adapter is not None:
                found.update(f"\0{adapter}".encode())
            return found.digest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _blocks(inputs: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(inputs)
    while block := list(islice(iterator, size)):
        yield block
