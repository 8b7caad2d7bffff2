"""The manifest: everything a bundle knows about itself, in one JSON file.

It is written last, so a bundle that has a manifest is complete, and read first, into frozen
dataclasses that refuse what they do not know: a typo, a missing fact or another schema is a clear
BundleError instead of a wrong vector later. Checking the files themselves is `edgeclip.bundle.files`'s
work, reading JSON strictly `edgeclip.manifest.parse`'s.

    modality   what a caller gives: text, image
    graph      one ONNX file; texts enter by the graph "text", images by the graph "vision"
    space      what comes out: single (one vector), multi (a vector per token)
    task       what the caller wants of the vectors: a prompt, an adapter, or both
    adapter    named weights that are inputs of a graph, chosen for each call
"""

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from edgeclip.errors import BundleError, InputError
from edgeclip.manifest.image_facts import ImageFacts, PatchFacts
from edgeclip.manifest.parse import json_kind, parse
from edgeclip.manifest.unfetched import POINTER_BYTES, dangling_target, describe_pointer

SCHEMA_VERSION = 3
MANIFEST_NAME = "manifest.json"

Modality = Literal["text", "image"]
MODALITIES: tuple[Modality, ...] = ("text", "image")
# The graph that takes the inputs of a modality, in every family.
FIRST_GRAPH: Mapping[Modality, str] = {"text": "text", "image": "vision"}
Space = Literal["single", "multi"]
Target = Literal["cpu", "cuda", "tensorrt"]
TARGETS: tuple[Target, ...] = ("cpu", "cuda", "tensorrt")
Precision = Literal["fp32", "fp16", "int8", "int4"]
# What vectors are held against: the checkpoint's own answers, or the bundle that this one was narrowed from.
Reference = Literal["fp32 checkpoint", "fp32 bundle"]
# What every bundle is measured on: `selftest` by export and quantize, `proof` by quantize.
SELFTEST_DATA, PROOF_DATA = "self-test", "made-up inputs"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One data file of the bundle, by plain name (never a path)."""

    name: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        is_plain = Path(self.name).name == self.name and self.name not in ("", ".", "..") and "\\" not in self.name
        if not is_plain or not self.name.isprintable():
            raise BundleError(f"manifest: file name {self.name!r} is not a plain name")
        if self.size_bytes < 0:
            raise BundleError(f"manifest: {self.name} has a size of {self.size_bytes} bytes")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint a bundle was made from: a Hub id with its commit, or a folder's name."""

    name: str
    revision: str | None
    weights_sha256: str
    license: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFacts:
    """One input or output of a graph. An axis is a length, or the name of an axis whose length varies."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """One graph: its file, precision, number of parameters, how often each operator stands in it, and its arrays.

    `kernels` says how many linear layers are computed how, as {"int8 per row": 96, "fp32": 0}; an export's is empty.
    Those whose names begin with "int7" cannot overflow on x86 without VNNI.
    `inputs` are those that every call feeds; adapters' inputs are named in the adapters' files.
    """

    file: str
    precision: Precision
    parameters: int
    operators: Mapping[str, int]
    kernels: Mapping[str, int]
    inputs: tuple[ArrayFacts, ...]
    outputs: tuple[ArrayFacts, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SingleSpace:
    """One vector for each input: its full dimension, and the dimensions that the model was trained to be cut to.

    With `is_strict` no other dimension is taken.
    """

    dim: int
    matryoshka_dims: tuple[int, ...]
    is_strict: bool

    def __post_init__(self) -> None:
        if self.dim < 1 or not all(1 <= dim <= self.dim for dim in self.matryoshka_dims):
            raise BundleError(f"manifest: vectors of {self.dim} dimensions, cut to {self.matryoshka_dims}, cannot be")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MultiSpace:
    """One vector of `dim` dimensions for each token of an input."""

    dim: int

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise BundleError(f"manifest: multi vectors of {self.dim} dimensions cannot be")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spaces:
    """The kinds of vectors that the bundle gives; `multi` is None where it gives no multi vectors."""

    single: SingleSpace
    multi: MultiSpace | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """What turns a text into ids. `max_length` counts the special tokens."""

    file: str
    max_length: int
    bos_id: int
    eos_id: int
    pad_id: int

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise BundleError(f"manifest: max_length is {self.max_length}, the special tokens alone are 2")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """One task: the prompt that is put before a text, the adapter that is used, and for which modalities it is."""

    prompt: str
    adapter: str | None
    modalities: tuple[Modality, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """One adapter (LoRA): the file with its arrays by the names of the graph's inputs, the graph, and its rank."""

    file: str
    graph: str
    rank: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalChange:
    """What became of searches: `recall` of the bundle, `reference` of the source, both from 0 to 1.

    `points` is their difference in hundredths, `low` and `high` its paired 95 % interval. `truth` says what had to be
    found: "captions", where the data say which text belongs to which image, else "the source's first answers".
    """

    metric: str
    truth: str
    queries: int
    recall: float
    reference: float
    points: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How close a modality's vectors of one space on `data` are to those of `against`.

    `p1_cosine` is the 1st percentile of the cosines. `sqnr_db` is 10 log10 of |wanted|^2 / |found - wanted|^2 over
    all vectors, None where both are the same. `weight_bytes` is the size of the files of the modality's
    graphs. The ratios are to the
    source bundle's, timed in one run on `machine` with `latency_input`; None where it was not timed. `retrieval` is
    of searches with these vectors; None where nothing was searched.
    """

    modality: Modality
    space: Space
    against: Reference
    data: str
    samples: int
    worst_cosine: float
    p1_cosine: float
    mean_cosine: float
    largest_difference: float
    sqnr_db: float | None
    weight_bytes: int
    size_ratio: float | None = None
    latency_ratio: float | None = None
    latency_input: str | None = None
    latency_samples: int | None = None
    machine: str | None = None
    retrieval: RetrievalChange | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A bundle's facts; `Manifest.read(folder)` gives them or says why not.

    `graphs` are by name. `text` and `image` are None where the bundle takes no inputs of that modality. With
    `task_required` the model is wrong without a task. `selftest` is the file of its self-test, `proof` that of its
    proof against the fp32 bundle: None for an export.
    """

    schema_version: int
    family: str
    source: Source
    target: Target
    opset: int
    graphs: Mapping[str, GraphFacts]
    spaces: Spaces
    text: TextFacts | None
    image: ImageFacts | PatchFacts | None
    tasks: Mapping[str, TaskFacts]
    task_required: bool
    adapters: Mapping[str, AdapterFacts]
    selftest: str
    proof: str | None
    files: tuple[FileFacts, ...]
    measured: tuple[Measurement, ...]
    built_with: Mapping[str, str]

    def __post_init__(self) -> None:
        listed = {file.name for file in self.files}
        named = {self.selftest, *(graph.file for graph in self.graphs.values())}
        named |= {adapter.file for adapter in self.adapters.values()}
        named |= {name for name in (self.text and self.text.file, self.proof) if name}
        if missing := named - listed:
            raise BundleError(f"manifest: {', '.join(sorted(missing))} named but not among its files")
        if not self.modalities:
            raise BundleError("manifest: it takes neither texts nor images")
        if absent := [name for name in map(FIRST_GRAPH.__getitem__, self.modalities) if name not in self.graphs]:
            raise BundleError(f"manifest: no graph named {', '.join(absent)}")
        adapters = {task.adapter for task in self.tasks.values() if task.adapter is not None}
        if unknown := sorted(adapters - self.adapters.keys()):
            raise BundleError(f"manifest: no adapter named {', '.join(unknown)}, which tasks name")
        if unknown := sorted({adapter.graph for adapter in self.adapters.values()} - self.graphs.keys()):
            raise BundleError(f"manifest: no graph named {', '.join(unknown)}, which adapters name")
        if self.task_required and not self.tasks:
            raise BundleError("manifest: a task is required, and it has none")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What a caller can give: "text", "image" or both, in this order."""
        facts: Mapping[Modality, object] = {"text": self.text, "image": self.image}
        return tuple(modality for modality in MODALITIES if facts[modality] is not None)

    @property
    def space_names(self) -> tuple[Space, ...]:
        """The spaces that the bundle gives vectors of."""
        return ("single",) if self.spaces.multi is None else ("single", "multi")

    @property
    def embedding_dim(self) -> int:
        """The full dimension of a single vector."""
        return self.spaces.single.dim

    def dim(self, space: Space) -> int:
        """The full dimension of the vectors of a space; InputError for one that the bundle does not give."""
        return self.embedding_dim if space == "single" else self.need_multi().dim

    @property
    def weight_bytes(self) -> int:
        """The size of all data files together."""
        return sum(file.size_bytes for file in self.files)

    def need_text(self) -> TextFacts:
        """The facts of texts; InputError for a bundle that takes none."""
        self.check_modality("text")
        assert self.text is not None
        return self.text

    def need_image(self) -> ImageFacts:
        """The facts of images that all get one size; InputError for a bundle that takes no such images."""
        self.check_modality("image")
        if not isinstance(self.image, ImageFacts):
            raise InputError(f"this bundle ({self.source.name}) takes images of any size, wanted one size for all")
        return self.image

    def need_patches(self) -> PatchFacts:
        """The facts of images that are divided into patches; InputError for a bundle that takes no such images."""
        self.check_modality("image")
        if not isinstance(self.image, PatchFacts):
            raise InputError(f"this bundle ({self.source.name}) gives all images one size, wanted images of any size")
        return self.image

    def check_modality(self, modality: Modality) -> None:
        """InputError for a modality that the bundle does not take; the message says what it takes."""
        if modality not in self.modalities:
            taken = " and ".join(f"{name}s" for name in self.modalities)
            raise InputError(f"this bundle ({self.source.name}) takes no {modality}s; it takes {taken}")

    def need_multi(self) -> MultiSpace:
        """The facts of multi vectors; InputError for a bundle that gives none."""
        if self.spaces.multi is None:
            raise InputError(f"this bundle ({self.source.name}) gives no multi vectors; it gives single vectors")
        return self.spaces.multi

    def tasks_of(self, modality: Modality) -> tuple[str, ...]:
        """The names of the tasks that inputs of this modality can have."""
        return tuple(name for name, task in self.tasks.items() if modality in task.modalities)

    def first_graph(self, modality: Modality) -> GraphFacts:
        """The graph that takes the inputs of this modality."""
        return self.graphs[FIRST_GRAPH[modality]]

    def way(self, modality: Modality) -> tuple[GraphFacts, ...]:
        """The graphs that inputs of this modality go through: a graph that takes what another gives comes next."""
        graphs = [self.first_graph(modality)]
        while (after := self._after(graphs[-1])) is not None:
            graphs.append(after)
        return tuple(graphs)

    def graphs_of(self, modality: Modality) -> tuple[str, ...]:
        """The names of the graphs that inputs of this modality go through."""
        way = self.way(modality)
        return tuple(name for name, facts in self.graphs.items() if facts in way)

    def only(self, modality: Modality) -> Self:
        """The manifest of the bundle as if it took inputs of this modality alone, with the graphs that these need.

        InputError for a modality that the bundle does not take.
        """
        self.check_modality(modality)
        graphs = {name: self.graphs[name] for name in self.graphs_of(modality)}
        tasks = {name: task for name, task in self.tasks.items() if modality in task.modalities}
        return dataclasses.replace(
            self,
            graphs=graphs,
            text=self.text if modality == "text" else None,
            image=self.image if modality == "image" else None,
            tasks={name: dataclasses.replace(task, modalities=(modality,)) for name, task in tasks.items()},
            adapters={name: adapter for name, adapter in self.adapters.items() if adapter.graph in graphs},
            measured=tuple(one for one in self.measured if one.modality == modality),
        )

    def precision(self, modality: Modality) -> Precision:
        """The precision of the first graph on the way of this modality that is not fp32; fp32 where all are."""
        return next((graph.precision for graph in self.way(modality) if graph.precision != "fp32"), "fp32")

    def _after(self, graph: GraphFacts) -> GraphFacts | None:
        given = {array.name for array in graph.outputs}
        takers = (one for one in self.graphs.values() if given & {array.name for array in one.inputs})
        return next(takers, None)

    def file(self, name: str) -> FileFacts:
        """The size and hash of the file of that name."""
        return next(file for file in self.files if file.name == name)

    def measurement(self, modality: Modality, space: Space, against: Reference, data: str) -> Measurement | None:
        """What was measured, None where nothing was; of two with one name, the bundle's own comes first."""
        wanted = (modality, space, against, data)
        found = (one for one in self.measured if (one.modality, one.space, one.against, one.data) == wanted)
        return next(found, None)

    def to_json(self) -> str:
        """The manifest as the text of manifest.json."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse manifest.json's text; BundleError for anything unknown, missing or mistyped."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of 4300 digits
            raise BundleError(f"manifest: not valid JSON ({error})") from error
        if not isinstance(document, dict):
            raise BundleError(f"manifest: wanted an object, found {json_kind(document)}")
        version = document.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            advice = "upgrade edgeclip" if type(version) is int and version > SCHEMA_VERSION else "export it again"
            raise BundleError(
                f"manifest: schema_version is {version!r}, this edgeclip reads {SCHEMA_VERSION}; {advice}"
            )
        return typing.cast(Self, parse(cls, document, "manifest"))

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Read `folder`'s manifest; BundleError when the folder holds no complete bundle."""
        folder = Path(folder)
        path = folder / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            for place in (folder, path):
                if target := dangling_target(place):
                    raise BundleError(f"{place}: a link to {target}; fetch or copy what it stands for") from error
            if not folder.exists():
                raise BundleError(f"{folder}: no such bundle") from error
            raise BundleError(
                f"{folder}: no {MANIFEST_NAME}, so no complete bundle; `edgeclip export` makes one"
            ) from error
        except NotADirectoryError as error:
            raise BundleError(f"{folder}: a bundle is a folder, this is a file") from error
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise BundleError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
        except ValueError as error:  # a path with a NUL in it
            raise BundleError(f"{str(folder)!r}: no path ({error})") from error
        if found := describe_pointer(text.encode()[:POINTER_BYTES]):
            raise BundleError(f"{path}: {found}")
        try:
            return cls.from_json(text)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error
