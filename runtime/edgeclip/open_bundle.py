"""An open bundle: its graphs on a device, what makes items of inputs, and what runs items to vectors.

`edgeclip.encoder` puts texts and images through it. Programs that form batches themselves, as the service does, use
it step by step: `prepare_texts` or `prepare_image`, then `run_items` or `run_batch`.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.files import find_folder, open_manifest, unproved
from edgeclip.bundle.selftest import run_selftest
from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.engine.devices import Device, choose_device, choose_threads, usable_cpus
from edgeclip.engine.graphs import Graphs
from edgeclip.engine.memory_check import check_memory, check_smallest
from edgeclip.engine.opening import plan_graph
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.engine.providers import Plan
from edgeclip.engine.run import Runner
from edgeclip.engine.unit_vectors import Vectors
from edgeclip.errors import InputError, UnprovedWarning
from edgeclip.families import open_family
from edgeclip.families.family import Arrays, Family, Item, Prepared
from edgeclip.families.tasks import find_task
from edgeclip.host.out_of_memory import naming_out_of_memory
from edgeclip.inputs.checks import check_texts
from edgeclip.inputs.images import ImageInput
from edgeclip.manifest import MODALITIES, Manifest, Modality, Space
from edgeclip.multi_vectors import MultiVectors

_MOST_THREADS = 1024


class OpenBundle:
    """A bundle, opened on a device: the part of an `edgeclip.Encoder` that runs items."""

    def __init__(self, folder: Path, manifest: Manifest, device: Device, threads: int) -> None:
        self.manifest = self.whole_manifest = manifest
        self._folder, self._device, self._threads = folder, device, threads
        self._decoding_threads = threads
        self._graphs = Graphs(folder, manifest, device, threads)
        self._family = open_family(manifest, self._graphs.parse_tokenizer)
        self._policy = BatchPolicy.choose(device.kind, manifest, "throughput")
        self._runner = Runner(manifest, self._family, self._policy, self._run_graph, self._verify_graph)
        self._opened_by: dict[str, Any] = {"device": str(device), "threads": threads}

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        selftest: bool | None = None,
        modality: Modality | None = None,
    ) -> Self:
        """Open the bundle in a folder.

        `device` is "auto", "cpu", "cuda[:n]", "tensorrt[:n]" or "openvino[:CPU|GPU|NPU]"; any value but "auto" means
        that device or an error. `threads` compute a graph, and as many decode images meanwhile. None takes every
        processor the process may use (cgroup and affinity), and one thread for tiny graphs
        (`edgeclip.engine.devices.choose_threads`). A quantised graph without a proof of what that cost gives
        an UnprovedWarning.

        `selftest` runs the bundle's self-test before anything else (`edgeclip.bundle.selftest.run_selftest`). None
        runs it on every device but the CPU: drivers and compiled kernels can be wrong without an error, and a GPU
        needs little time for it, while a CPU would load all graphs and compute two images first, which takes
        seconds.

        `modality` opens the bundle as if it took "text" or "image" alone: the other graphs are neither loaded nor
        counted. `whole_manifest` says what the bundle takes.

        Raises BundleError for a folder that holds no complete bundle, DeviceError for a device that is unknown,
        absent or answers wrongly, OutOfMemoryError where no graph fits into memory, MissingExtraError without
        onnxruntime, InputError for bad threads or selftest.
        """
        if selftest is not None and type(selftest) is not bool:
            raise InputError(f"selftest is {selftest!r}, wanted True, False or None")
        if threads is not None and (type(threads) is not int or not 1 <= threads <= _MOST_THREADS):
            raise InputError(f"threads is {threads!r}, wanted an int from 1 to {_MOST_THREADS}")
        folder = find_folder(bundle)
        whole = open_manifest(folder)
        if modality is not None and modality not in MODALITIES:
            raise InputError(f"modality is {modality!r}, wanted None or one of {', '.join(MODALITIES)}")
        manifest = whole if modality is None else whole.only(modality)
        if message := unproved(manifest):
            warnings.warn(UnprovedWarning(f"{folder}: {message}"), stacklevel=2)
        chosen = choose_device(device, import_onnxruntime().get_available_providers(), manifest.target)
        cpus = usable_cpus()
        if chosen.kind == "cpu":
            check_smallest(folder, manifest)
        with naming_out_of_memory("the bundle was opened"):
            encoder = cls(folder, manifest, chosen, threads or choose_threads(manifest, cpus))
        encoder._decoding_threads = threads or cpus
        encoder.whole_manifest = whole
        encoder._opened_by = {"device": device, "threads": threads, "selftest": selftest, "modality": modality}
        is_lazy = chosen.kind == "cpu"  # another device is proved by starting it
        try:
            for graph in () if is_lazy else manifest.graphs:
                encoder._graphs.session(graph)
            if not is_lazy if selftest is None else selftest:
                run_selftest(manifest, encoder.ask, folder, device=encoder.device)
        except BaseException:
            encoder.close()
            raise
        return encoder

    @property
    def device(self) -> str:
        """The device that runs the graphs: "cpu", "cuda:0", "tensorrt:0", "openvino:CPU"."""
        return str(self._device)

    @property
    def folder(self) -> Path:
        """The folder that the bundle was opened from."""
        return self._folder

    @property
    def threads(self) -> int:
        """The number of threads that a graph computes with on the CPU."""
        return self._threads

    @property
    def family(self) -> Family:
        """What makes items of texts and images, for programs that form batches themselves."""
        return self._family

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What can be encoded: "text", "image" or both."""
        return self.manifest.modalities

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the model has, by name."""
        return tuple(self.manifest.tasks)

    def plan(self, graph: str) -> Plan:
        """The providers, their options and the session entries that onnxruntime runs a graph with.

        On CUDA the stream that graphs are captured on is left out, because its number differs in each process.
        """
        return plan_graph(graph, self._device, self._threads, self.manifest)

    def prepare_texts(
        self, texts: str | Iterable[str], *, task: str | None = None, max_length: int | None = None
    ) -> Prepared:
        """Texts as items, and the indices of texts that were cut.

        This is the first step of `encode_text`, for programs that form batches themselves; it raises the same errors.
        """
        find_task(self.manifest, task, "text")  # an unknown task is one without texts, too
        return self._family.texts(check_texts(texts), task, max_length)

    def prepare_image(
        self, image: ImageInput, *, task: str | None = None, max_pixels: int | None = None, label: str = "image"
    ) -> Item:
        """An image as an item.

        This is the first step of `encode_image`, for programs that form batches themselves. Any number of threads may
        call it at once. Raises InputError, whose message calls the image `label`.
        """
        return self._family.image(image, task, max_pixels=max_pixels, label=label)

    def run_items(self, items: Sequence[Item], dim: int | None = None, *, batch_size: int | None = None) -> Vectors:
        """Unit vectors (N, dim) of items in their order, cut to `dim` dimensions (None: all of them).

        Raises DeviceError for items that the graph cannot take.
        """
        dim = self.manifest.embedding_dim if dim is None else dim
        vectors = np.empty((len(items), dim), np.float32)
        for indices, found in self._runner.run(items, dim, batch_size):
            if len(indices) == len(items) and indices == list(range(len(items))):
                return found
            vectors[indices] = found
        return vectors

    def run_items_multi(self, items: Sequence[Item], *, batch_size: int | None = None) -> MultiVectors:
        """The multi vectors of items in their order. Raises what `run_items` raises."""
        dim = self.manifest.need_multi().dim
        matrices: list[Vectors] = [np.empty((0, dim), np.float32)] * len(items)
        for indices, found in self._runner.run(items, dim, batch_size, space="multi"):
            for index, matrix in zip(indices, found, strict=True):
                matrices[index] = matrix
        return MultiVectors.of(matrices, dim=dim)

    def run_items_both(self, items: Sequence[Item]) -> tuple[Vectors, MultiVectors]:
        """The vectors (N, dim) and the multi vectors of items in their order, from one run of every graph.

        Raises what `run_items` raises.
        """
        dim = self.manifest.need_multi().dim
        vectors = np.empty((len(items), self.manifest.embedding_dim), np.float32)
        matrices: list[Vectors] = [np.empty((0, dim), np.float32)] * len(items)
        for indices, (single, multi) in self._runner.run_spaces(items, ("single", "multi")):
            vectors[indices] = single
            for index, matrix in zip(indices, multi, strict=True):
                matrices[index] = matrix
        return vectors, MultiVectors.of(matrices, dim=dim)

    def run_batch(self, items: Sequence[Item], *, space: Space = "single") -> Vectors | list[Item]:
        """Run items of one kind as one batch: their unit vectors, or the items of the next graph.

        Vectors are (B, dim), or in the space "multi" (B, T, dim). This is a single step of `run_items`, for programs
        that queue items themselves.
        """
        return self._runner.run_batch(items, self.manifest.dim(space), space=space)

    def keep_features(self, most_bytes: int) -> None:
        """Keep at most so many bytes of images' features, which other tasks of the same images use; 0 keeps none.

        Measurements keep none, or the second run of an image would leave out its first graph.
        """
        self._runner.keep(most_bytes)

    def run_graph(self, graph: str, feed: Arrays, *, adapter: str | None = None) -> dict[str, NDArray[Any]]:
        """Every output of a graph, by name, for arrays in its own form, by the names of its inputs.

        Nothing is checked, cut or normalised. Raises DeviceError for arrays that the graph cannot take.
        """
        return self._run_graph(graph, feed, adapter)

    def ask(
        self,
        modality: Modality,
        inputs: Sequence[Any],
        tasks: Sequence[str | None],
        spaces: Sequence[Space] = ("single",),
    ) -> dict[Space, Vectors]:
        """Unit vectors of texts or images, each with its own task, as rows in every space (`bundle.selftest.Ask`)."""
        items = self.prepare_inputs(modality, inputs, tasks)
        return {
            space: self.run_items(items) if space == "single" else self.run_items_multi(items).rows
            for space in spaces
        }

    def prepare_inputs(self, modality: Modality, inputs: Sequence[Any], tasks: Sequence[str | None]) -> list[Item]:
        """Texts or images as items, each with its own task."""
        items: list[Item] = []
        for index, (one, task) in enumerate(zip(inputs, tasks, strict=True)):
            if modality == "text":
                items += self.prepare_texts(one, task=task).items
            else:
                items.append(self.prepare_image(one, task=task, label=f"image {index}"))
        return items

    def check_memory(self, *, is_service: bool = False) -> str | None:
        """A warning's words where all graphs together come near a limit of this process's memory; None elsewhere.

        Raises OutOfMemoryError where they surely exceed one. Afterwards loading a graph warns no more.
        """
        if self._device.kind != "cpu":
            return None
        self._graphs.is_warned = True
        return check_memory(self._folder, self.manifest, tuple(self.manifest.graphs), is_service=is_service)

    def count_token_ids(self) -> int:
        """One more than the highest token id; InputError for a model that takes no texts."""
        return self._graphs.parse_tokenizer().count_ids()

    @property
    def overwritten_files(self) -> tuple[str, ...]:
        """Names of files of loaded graphs that were changed in place since they were opened. No file is read."""
        return self._graphs.overwritten

    def verify_files(self) -> None:
        """Read changed files of loaded graphs; raise BundleError for one whose bytes are not those that were
        exported.
        """
        self._graphs.verify_files()

    def close(self) -> None:
        """Free the graphs and the tokenizer. Closing twice is harmless; encoding afterwards is an InputError."""
        self._graphs.close()
        self._runner.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder and the options; unpickling or copying opens the bundle again."""
        self._check_open()
        return _reopen, (type(self), str(self._folder), self._opened_by)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_graph(self, graph: str, feed: Arrays, adapter: str | None) -> dict[str, NDArray[Any]]:
        return self._graphs.session(graph).run(feed, adapter=adapter)

    def _verify_graph(self, graph: str) -> None:
        self._graphs.session(graph).files.verify()

    def _check_open(self) -> None:
        self._graphs.check_open()


def _reopen(kind: type[OpenBundle], folder: str, options: dict[str, Any]) -> OpenBundle:
    return kind.open(folder, **options)
