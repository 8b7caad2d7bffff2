"""The encoder: every step from a user's text or image to a unit vector. To read the code, start here.

    text  -> items: prompt, token ids    \\
                                           batches of one kind -> graph (-> the next graph) -> cut, normalise
    image -> items: RGB, resized, uint8  /

The model's family (`edgeclip.families`) makes the items, `edgeclip.engine.run` runs them. Pooling, LoRA that was
merged, mean and std, and the first normalisation are inside the graphs (`edgeclip_export`).
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.files import find_folder, open_manifest, unproved
from edgeclip.bundle.selftest import run_selftest
from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.engine.devices import Device, choose_device, usable_cpus
from edgeclip.engine.graphs import Graphs
from edgeclip.engine.opening import plan_graph
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.engine.providers import Plan
from edgeclip.engine.run import Runner
from edgeclip.engine.unit_vectors import Vectors
from edgeclip.errors import InputError, TruncationWarning, UnprovedWarning
from edgeclip.families import open_family
from edgeclip.families.family import Arrays, Family, Item, Prepared
from edgeclip.families.tasks import find_task
from edgeclip.inputs.checks import check_batch_size, check_images, check_texts, check_truncate_dim
from edgeclip.inputs.image_stream import EncodedImages, OnError, SkippedImage, check_on_error, stream_images
from edgeclip.inputs.images import ImageInput, is_image
from edgeclip.inputs.prefetch import Pixels
from edgeclip.inputs.tokenization import check_max_length
from edgeclip.manifest import FIRST_GRAPH, Manifest, Modality
from edgeclip.progress import ProgressBar, is_wanted

_MOST_THREADS = 1024


class Encoder:
    """A bundle, opened on a device. `Encoder.open` makes one; it is a context manager.

    On the CPU a graph is loaded when it is first used, and the tokenizer with the first text, so a program that only
    searches by text never loads the vision graph. Any number of threads may call one Encoder. One thread may close it
    while others encode: calls in progress finish, later ones raise an error that says it is closed. After a fork an
    Encoder on the CPU loads its graphs again in the child; on other devices the child gets an error. A pickled or
    copied Encoder opens its bundle again.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: Device, threads: int) -> None:
        self.manifest = manifest
        self._folder, self._device, self._threads = folder, device, threads
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
    ) -> Self:
        """Open the bundle in a folder.

        `device` is "auto", "cpu", "cuda[:n]", "tensorrt[:n]" or "openvino[:CPU|GPU|NPU]"; any value but "auto" means
        that device or an error. `threads=None` takes every processor the process may use (cgroup and affinity); as
        many threads decode images while the graph computes. A quantised graph without a proof of what that cost gives
        an UnprovedWarning.

        `selftest` runs the bundle's self-test before anything else (`edgeclip.bundle.selftest.run_selftest`). None
        runs it on every device but the CPU: drivers and compiled kernels can be wrong without an error, and a GPU
        needs little time for it, while a CPU would load all graphs and compute two images first, which takes
        seconds.

        Raises BundleError for a folder that holds no complete bundle, DeviceError for a device that is unknown,
        absent or answers wrongly, MissingExtraError without onnxruntime, InputError for bad threads or selftest.
        """
        if selftest is not None and type(selftest) is not bool:
            raise InputError(f"selftest is {selftest!r}, wanted True, False or None")
        if threads is not None and (type(threads) is not int or not 1 <= threads <= _MOST_THREADS):
            raise InputError(f"threads is {threads!r}, wanted an int from 1 to {_MOST_THREADS}")
        folder = find_folder(bundle)
        manifest = open_manifest(folder)
        if message := unproved(manifest):
            warnings.warn(UnprovedWarning(f"{folder}: {message}"), stacklevel=2)
        chosen = choose_device(device, import_onnxruntime().get_available_providers(), manifest.target)
        encoder = cls(folder, manifest, chosen, threads or usable_cpus())
        encoder._opened_by = {"device": device, "threads": threads, "selftest": selftest}
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

    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Vectors:
        """Unit vectors of texts: (dim,) for one str, (N, dim) float32 for several, in the order of the texts.

        `task` is one of `tasks`: its prompt is put before each text, and its adapter is used. `truncate_dim` keeps
        the first `truncate_dim` dimensions, then normalises. `max_length` is in tokens, the opening and closing one
        included (None: the model's limit); longer texts are cut and counted in a TruncationWarning. `batch_size` is
        the most texts in one batch. `progress=None` shows a bar when stderr is a terminal.

        Raises InputError for an input that is not a text and for an unknown option.
        """
        self._check_open()
        facts = self.manifest.need_text()
        is_single = isinstance(texts, str)
        dim = check_truncate_dim(truncate_dim, self.manifest)
        check_batch_size(batch_size)
        limit = check_max_length(max_length, facts)
        find_task(self.manifest, task, "text")  # before the graph begins to load
        checked = check_texts(texts)
        if checked and self._graphs.tokenizer is None:
            self._graphs.load_ahead(FIRST_GRAPH["text"])
        prepared = self._family.texts(checked, task, limit)
        if cut := len(prepared.cut):
            warning = TruncationWarning(f"{cut} of {len(checked)} texts were cut to {limit} tokens", cut=cut)
            warnings.warn(warning, stacklevel=2)
        vectors = np.empty((len(checked), dim), dtype=np.float32)
        with ProgressBar("texts", len(checked), is_shown=is_wanted(progress)) as bar:
            for indices, found in self._runner.run(prepared.items, dim, batch_size):
                vectors[indices] = found
                bar.advance(len(indices))
        return vectors[0] if is_single else vectors

    @overload
    def encode_image(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> Vectors: ...
    @overload
    def encode_image(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        on_error: Literal["skip"] | Callable[[SkippedImage], None],
    ) -> EncodedImages: ...
    def encode_image(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        on_error: OnError = "raise",
    ) -> Vectors | EncodedImages:
        """Unit vectors of images: (dim,) for one image, (N, dim) float32 for several, in the order of the images.

        An image is a path, the bytes of a file, a "data:image/...;base64," string, a PIL image, or an RGB array
        (height, width, 3) uint8. URLs are not fetched. Options as in `encode_text`; a batch has at most 32 images,
        whatever `batch_size` is. `max_pixels` is for models that take images of any size.

        An image that cannot be read is an InputError that names it. With `on_error="skip"` it is left out, and the
        result is an EncodedImages: the vectors, the index of each one's image, and which images were skipped and why.
        A function for `on_error` skips too, and is called with each SkippedImage as it is found, in order.
        """
        self._check_open()
        self.manifest.check_modality("image")
        is_single = is_image(images)
        dim = check_truncate_dim(truncate_dim, self.manifest)
        check_batch_size(batch_size)
        check_on_error(on_error)
        find_task(self.manifest, task, "image")
        items = check_images(images)
        prepare = partial(self._prepare_image, task, max_pixels)
        if len(items) == 1 and on_error == "raise":  # nothing to do meanwhile
            vectors = self.run_items([prepare(items[0], "image" if is_single else "image 0")], dim)
            return vectors[0] if is_single else vectors
        skipped: list[SkippedImage] = []
        indices: list[int] = []
        vectors = np.empty((len(items), dim), dtype=np.float32)
        with ProgressBar("images", len(items), is_shown=is_wanted(progress)) as bar:

            def skip(image: SkippedImage) -> None:
                skipped.append(image)
                bar.advance()
                if callable(on_error):
                    on_error(image)

            found = self._iter_images(items, prepare, dim, batch_size, on_error if on_error == "raise" else skip)
            with contextlib.closing(found):
                for batch, rows in found:
                    vectors[len(indices) : len(indices) + len(batch)] = rows
                    indices += batch
                    bar.advance(len(batch))
        if on_error == "raise":
            return vectors
        kept = vectors[: len(indices)].copy()
        return EncodedImages(vectors=kept, indices=np.array(indices, dtype=np.int64), skipped=tuple(skipped))

    def iter_images(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        on_error: OnError = "raise",
    ) -> Generator[tuple[Sequence[int], Vectors]]:
        """Yield the vectors of images batch by batch, in order: the indices of the batch's images, and its (B, dim)
        float32.

        Use it for more images than memory has room for vectors. The indices are a range. Threads decode a few of the
        next images while one batch computes, so an array must not change until its vector was yielded. A caller that
        stops early must close the iterator (`contextlib.closing`); then no thread is left. Options and errors are
        those of `encode_image`; wrong options are raised at once. With skipped images the indices of the others are a
        list; a function for `on_error` is called before the batch is yielded, and "skip" gives one SkippedWarning at
        the end.
        """
        self._check_open()
        self.manifest.check_modality("image")
        dim = check_truncate_dim(truncate_dim, self.manifest)
        check_batch_size(batch_size)
        check_on_error(on_error)
        find_task(self.manifest, task, "image")
        prepare = partial(self._prepare_image, task, max_pixels)
        return self._iter_images(check_images(images), prepare, dim, batch_size, on_error)

    def _iter_images(
        self,
        images: Sequence[ImageInput],
        prepare: Callable[[ImageInput, str], Item],
        dim: int,
        batch_size: int | None,
        on_error: OnError,
    ) -> Generator[tuple[Sequence[int], Vectors]]:
        batches = list(self._policy.plan_images(len(images), batch_size))
        size = self.manifest.need_image().size_px

        def stage(image: ImageInput, label: str, row: Pixels) -> Item:
            item = prepare(image, label)
            ((name, pixels),) = item.arrays.items()
            row[...] = pixels
            return replace(item, arrays={name: row})

        streamed = partial(stream_images, images, batches, stage, (size, size, 3), self._threads, on_error)
        if batches and self._device.kind == "cuda":  # page-locked, and kept for the next call
            session = self._graphs.session(FIRST_GRAPH["image"])
            streamed = partial(streamed, allocate=session.allocate, recycle=session.recycle)
        with contextlib.closing(streamed()) as ahead:
            for indices, items in ahead:
                yield indices, self.run_items(items, dim, batch_size=len(items))

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

    def run_batch(self, items: Sequence[Item]) -> Vectors | list[Item]:
        """Run items of one kind as one batch: their unit vectors (B, dim), or the items of the next graph.

        This is a single step of `run_items`, for programs that queue items themselves.
        """
        return self._runner.run_batch(items, self.manifest.embedding_dim)

    def run_graph(self, graph: str, feed: Arrays, *, adapter: str | None = None) -> dict[str, NDArray[Any]]:
        """Every output of a graph, by name, for arrays in its own form, by the names of its inputs.

        Nothing is checked, cut or normalised. Raises DeviceError for arrays that the graph cannot take.
        """
        return self._run_graph(graph, feed, adapter)

    def ask(self, modality: Modality, inputs: Sequence[Any], tasks: Sequence[str | None]) -> Vectors:
        """Unit vectors of texts or images, each with its own task; `edgeclip.bundle.selftest` asks so."""
        return self.run_items(self.prepare_inputs(modality, inputs, tasks))

    def prepare_inputs(self, modality: Modality, inputs: Sequence[Any], tasks: Sequence[str | None]) -> list[Item]:
        """Texts or images as items, each with its own task."""
        items: list[Item] = []
        for index, (one, task) in enumerate(zip(inputs, tasks, strict=True)):
            if modality == "text":
                items += self.prepare_texts(one, task=task).items
            else:
                items.append(self.prepare_image(one, task=task, label=f"image {index}"))
        return items

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

    def _prepare_image(self, task: str | None, max_pixels: int | None, image: ImageInput, label: str) -> Item:
        return self.prepare_image(image, task=task, max_pixels=max_pixels, label=label)

    def _run_graph(self, graph: str, feed: Arrays, adapter: str | None) -> dict[str, NDArray[Any]]:
        return self._graphs.session(graph).run(feed, adapter=adapter)

    def _verify_graph(self, graph: str) -> None:
        self._graphs.session(graph).files.verify()

    def _check_open(self) -> None:
        self._graphs.check_open()


def _reopen(kind: type[Encoder], folder: str, options: dict[str, Any]) -> Encoder:
    return kind.open(folder, **options)
