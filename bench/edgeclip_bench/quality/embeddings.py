"""Compute each input of an evaluation once, as a full-width unit vector.

Inputs are read a block at a time, so beside the vectors only a block of them is in memory. One that came before in
this run, or that the cache holds, is not computed again. Two things move a vector by the order of a float's sum alone
and do not count as another: the number of threads, and which texts shared a batch.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclip import Encoder, InputError, Manifest, MultiVectors
from edgeclip.bundle.files import verify_hash
from edgeclip.families.family import Item
from edgeclip.families.tasks import find_task
from edgeclip.manifest import FileFacts, Modality
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.quality.cache import EmbeddingCache, Entry, Space
from edgeclip_bench.quality.datasets import PageImage
from edgeclip_bench.quality.spaces import graphs_of, space_of

Vectors = NDArray[np.float32]
T = TypeVar("T")

_TEXTS_AT_ONCE = 256
_IMAGES_AT_ONCE = 16
# A page may be a file of megabytes, and its multi vectors in the cache 25 MB at the largest `max_pixels` in use.
_PAGES_AT_ONCE = 4


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


class Found(NamedTuple):
    """The entries of an input, in each of the spaces asked for, by its row.

    An input that came before, in the row `first`, has no entries of its own.
    """

    row: int
    first: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way(Generic[T]):
    """The steps from inputs of one modality to entries: `digest` names an input, `compute` encodes several."""

    modality: Modality
    spaces: tuple[Space, ...]
    block: int  # looked up together
    at_once: int  # computed and kept together
    digest: Callable[[T, int], bytes]
    compute: Callable[[list[T]], list[tuple[Entry, ...]]]


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

    @property
    def has_multi(self) -> bool:
        """Whether the model has multi vectors."""
        return self.encoder.manifest.spaces.multi is not None

    def texts(self, texts: Iterable[str], count: int, *, task: str | None = None, label: str = "texts") -> Vectors:
        """Unit vectors (count, D) float32 of the texts, each with that task; InputError for more or fewer."""
        return self._embed(self._texts_way(task, label, with_multi=False), texts, count, label)

    def texts_in_spaces(
        self, texts: Sequence[str], *, task: str | None = None, label: str = "texts"
    ) -> tuple[Vectors, MultiVectors | None]:
        """Unit vectors (N, D) float32 of the texts, and their multi vectors where the model has some."""
        way = self._texts_way(task, label, with_multi=self.has_multi)
        entries: list[tuple[Entry, ...]] = []
        for found in sorted(self._stream(way, texts, len(texts), label)):
            entries.append(found.entries or entries[found.first])
        vectors = np.array([each[0].vector for each in entries], np.float32).reshape(len(entries), way.spaces[0].dim)
        if not self.has_multi:
            return vectors, None
        return vectors, MultiVectors.of((each[1].vector for each in entries), dim=way.spaces[1].dim)

    def images(self, paths: Sequence[Path], *, task: str | None = None, label: str = "images") -> Vectors:
        """Unit vectors (N, D) float32 of image files, with that task; InputError names one that cannot be read."""
        adapter = find_task(self.encoder.manifest, task, "image").adapter
        way: _Way[Path] = _Way(
            modality="image",
            spaces=(space_of(self.encoder, "image"),),
            block=_IMAGES_AT_ONCE,
            at_once=1,  # a second each where hardware is small: a killed run loses one
            digest=lambda path, row: _hash_image(path, adapter),
            compute=lambda paths: [
                (Entry(self.encoder.encode_image(path, task=task, progress=False), is_cut=False),) for path in paths
            ],
        )
        return self._embed(way, paths, len(paths), label)

    def pages(
        self,
        pages: Iterable[PageImage],
        count: int,
        *,
        task: str | None = None,
        text_task: str | None = None,
        max_pixels: int | None = None,
        label: str = "pages",
    ) -> Iterator[Found]:
        """Yield each page's unit vector, and its multi vectors where the model has some, as they are computed.

        A page with a text, which has `text_task`, has the sum of both vectors, normalised, and the multi vectors of
        both, as in mteb. Nothing is held here but the pages of a block. InputError names a page that cannot be read.
        """
        adapter = find_task(self.encoder.manifest, task, "image").adapter
        words = find_task(self.encoder.manifest, text_task, "text")

        def compute(block: list[PageImage]) -> list[tuple[Entry, ...]]:
            items = [
                self.encoder.prepare_image(page.source, task=task, max_pixels=max_pixels, label=page.where)
                for page in block
            ]
            found = self._encode(items, with_multi=self.has_multi)
            written = [place for place, page in enumerate(block) if page.text]
            if written:
                prepared = self.encoder.prepare_texts([block[place].text for place in written], task=text_task)
                its = self._encode(prepared.items, prepared.cut, with_multi=self.has_multi)
                for place, entries in zip(written, its, strict=True):
                    found[place] = _join_entries(found[place], entries)
            return found

        def digest(page: PageImage, row: int) -> bytes:
            image = _hash_image(page.source, adapter, max_pixels)
            if not page.text:
                return image
            return hashlib.sha256(image + f"{words.adapter or ''}\0{words.prompt}{page.text}".encode()).digest()

        way: _Way[PageImage] = _Way(
            modality="image",
            spaces=self._spaces("image", with_multi=self.has_multi),
            block=_PAGES_AT_ONCE,
            at_once=1,
            digest=digest,
            compute=compute,
        )
        return self._stream(way, pages, count, label)

    def take_counts(self) -> Counts:
        """The counts of all inputs since this was last asked."""
        counts, self._counts = self._counts, Counts()
        return counts

    def _spaces(self, modality: Modality, *, with_multi: bool) -> tuple[Space, ...]:
        single = space_of(self.encoder, modality)
        return (single, space_of(self.encoder, modality, "multi")) if with_multi else (single,)

    def _texts_way(self, task: str | None, label: str, *, with_multi: bool) -> _Way[str]:
        facts = find_task(self.encoder.manifest, task, "text")  # an unknown task is one without texts too

        def digest(text: str, row: int) -> bytes:
            try:
                return hashlib.sha256(f"{facts.adapter or ''}\0{facts.prompt}{text}".encode()).digest()
            except UnicodeEncodeError as error:
                raise InputError(f"{label}: number {row} holds a lone surrogate, so it is no Unicode text") from error

        def compute(texts: list[str]) -> list[tuple[Entry, ...]]:
            prepared = self.encoder.prepare_texts(texts, task=task)
            return self._encode(prepared.items, prepared.cut, with_multi=with_multi)

        return _Way(
            modality="text",
            spaces=self._spaces("text", with_multi=with_multi),
            block=_TEXTS_AT_ONCE,
            at_once=_TEXTS_AT_ONCE,
            digest=digest,
            compute=compute,
        )

    def _encode(
        self, items: Sequence[Item], cut: Collection[int] = (), *, with_multi: bool
    ) -> list[tuple[Entry, ...]]:
        """The entries of items; `cut` are the indices of texts that were cut."""
        if not with_multi:
            vectors = self.encoder.run_items(items)
            return [(Entry(vector, is_cut=index in cut),) for index, vector in enumerate(vectors)]
        vectors, matrices = self.encoder.run_items_both(items)
        both = enumerate(zip(vectors, matrices, strict=True))
        return [tuple(Entry(one, is_cut=index in cut) for one in pair) for index, pair in both]

    def _embed(self, way: _Way[T], inputs: Iterable[T], total: int, label: str) -> Vectors:
        vectors = np.empty((total, way.spaces[0].dim), np.float32)
        for found in self._stream(way, inputs, total, label):
            vectors[found.row] = found.entries[0].vector if found.entries else vectors[found.first]
        return vectors

    def _stream(self, way: _Way[T], inputs: Iterable[T], total: int, label: str) -> Iterator[Found]:
        """Yield what is found of each input; of one that came before, after the one before."""
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
                    counts += came
                    shown = f"{label}: {counts.cached} cached, {counts.computed} new,"
                    bar.show(shown, counts.repeated + counts.cached + counts.computed, total)
                    cut.update(key for key, each in entries.items() if each[0].is_cut)
                    for key, each in entries.items():
                        yield Found(rows[key], rows[key], each)
                for row, key in enumerate(keys, start):
                    if rows[key] != row:
                        yield Found(row, rows[key], ())
                counts += Counts(cut=sum(key in cut for key in keys))
        if counts.inputs != total:
            raise InputError(f"{label}: found {counts.inputs}, expected {total}; did a file change?")
        self._counts += counts

    def _find(self, way: _Way[T], new: dict[bytes, T]) -> Iterator[tuple[dict[bytes, tuple[Entry, ...]], Counts]]:
        """The entries of these inputs: first what the cache has, then the rest as it is computed."""
        for graph in graphs_of(self.encoder.manifest, way.modality):
            if graph not in self._proved:
                for file in graph_files(self.encoder.manifest, graph):
                    verify_hash(self.encoder.folder, file)
            self._proved.add(graph)
        in_spaces = [self._cache.read(space, list(new)) for space in way.spaces]
        kept = {key: tuple(of[key] for of in in_spaces) for key in new if all(key in of for of in in_spaces)}
        yield kept, Counts(cached=len(kept))
        missing = [key for key in new if key not in kept]
        for keys in _blocks(missing, way.at_once):
            entries = dict(zip(keys, way.compute([new[key] for key in keys]), strict=True))
            for place, space in enumerate(way.spaces):
                self._cache.write(space, {key: each[place] for key, each in entries.items()})
            yield entries, Counts(computed=len(entries))


def _join_entries(image: tuple[Entry, ...], text: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The entries of an image and the text beside it as one."""
    single = image[0].vector + text[0].vector
    joined = [single / max(float(np.linalg.norm(single)), 1e-12)]
    joined += [np.concatenate((one.vector, other.vector)) for one, other in zip(image[1:], text[1:], strict=True)]
    return tuple(Entry(vector, is_cut=text[0].is_cut) for vector in joined)


def graph_files(manifest: Manifest, graph: str) -> list[FileFacts]:
    """The files that decide a graph's vectors: its structure, its weights, and its adapters."""
    adapters = {adapter.file for adapter in manifest.adapters.values() if adapter.graph == graph}
    name = manifest.graphs[graph].file
    return [file for file in manifest.files if file.name.startswith(name) or file.name in adapters]


def _hash_image(source: Path | bytes, adapter: str | None, max_pixels: int | None = None) -> bytes:
    try:
        if isinstance(source, bytes):
            found = hashlib.sha256(source)
        else:
            with source.open("rb") as file:
                found = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    for option in (adapter, None if max_pixels is None else f"{max_pixels} pixels"):
        if option is not None:
            found.update(f"\0{option}".encode())
    return found.digest()


def _blocks(inputs: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(inputs)
    while block := list(islice(iterator, size)):
        yield block
