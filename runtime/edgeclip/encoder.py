"""The encoder: every step from a user's text or image to a unit vector. To read the code, start here.

    text  -> instruction prefix -> token ids -> batches of one length -> text graph   -> cut, normalise
    image -> RGB -> resize, crop -> uint8 pixels -> batches           -> vision graph -> cut, normalise

Pooling, LoRA, mean and std, and the first normalisation are inside the graphs (`edgeclip_export`).
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
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
from edgeclip.engine.providers import Plan
from edgeclip.engine.session import TowerSession, import_onnxruntime, plan_tower
from edgeclip.engine.towers import Towers
from edgeclip.engine.unit_vectors import Vectors
from edgeclip.errors import InputError, TruncationWarning, UnprovedWarning
from edgeclip.families.jina_clip import preprocess_image, prompt
from edgeclip.inputs.checks import check_batch_size, check_images, check_texts, check_truncate_dim
from edgeclip.inputs.image_stream import EncodedImages, OnError, SkippedImage, check_on_error, stream_images
from edgeclip.inputs.images import ImageInput, is_image
from edgeclip.inputs.tokenization import TokenizedTexts, check_max_length
from edgeclip.manifest import TOWERS, Manifest, TowerName
from edgeclip.progress import ProgressBar, is_wanted

_MOST_THREADS = 1024


class Encoder:
    """A bundle, opened on a device. `Encoder.open` makes one; it is a context manager.

    On the CPU a tower is loaded when it is first used, and the tokenizer with the first text, so a program that only
    searches by text never loads the vision tower. Any number of threads may call one Encoder. One thread may close it
    while others encode: calls in progress finish, later ones raise an error that says it is closed. After a fork an
    Encoder on the CPU loads its towers again in the child; on other devices the child gets an error. A pickled or
    copied Encoder opens its bundle again.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: Device, threads: int) -> None:
        self.manifest = manifest
        self._folder, self._device, self._threads = folder, device, threads
        self._policy = BatchPolicy.choose(device.kind, manifest, "throughput")
        self._towers = Towers(folder, manifest, device, threads)
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
        many threads decode images while the tower computes. A quantised tower without a proof of what that cost gives
        an UnprovedWarning.

        `selftest` runs the bundle's self-test before anything else (`edgeclip.bundle.selftest.run_selftest`). None
        runs it on every device but the CPU: drivers and compiled kernels can be wrong without an error, and a GPU
        needs little time for it, while a CPU would load both towers and compute two images first, which takes
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
            for tower in () if is_lazy else TOWERS:
                encoder._session(tower)
            if not is_lazy if selftest is None else selftest:
                run_selftest(encoder, folder)
        except BaseException:
            encoder.close()
            raise
        return encoder

    @property
    def device(self) -> str:
        """The device that runs the towers: "cpu", "cuda:0", "tensorrt:0", "openvino:CPU"."""
        return str(self._device)

    @property
    def folder(self) -> Path:
        """The folder that the bundle was opened from."""
        return self._folder

    @property
    def threads(self) -> int:
        """The number of threads that a tower computes with on the CPU."""
        return self._threads

    def plan(self, tower: TowerName) -> Plan:
        """The providers, their options and the session entries that onnxruntime runs a tower with.

        On CUDA the stream that graphs are captured on is left out, because its number differs in each process.
        """
        return plan_tower(tower, self._device, self._threads, self.manifest)

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

        `task` prepends the model's instruction of that name. `truncate_dim` keeps the first `truncate_dim`
        dimensions, then normalises. `max_length` is in tokens, the opening and closing one included (None: the
        model's limit); longer texts are cut and counted in a TruncationWarning. `batch_size` is the most texts in one
        batch. `progress=None` shows a bar when stderr is a terminal.

        Raises InputError for an input that is not a text and for an unknown option.
        """
        self._check_open()
        is_single = isinstance(texts, str)
        dim = check_truncate_dim(truncate_dim, self.manifest)
        check_batch_size(batch_size)
        limit = check_max_length(max_length, self.manifest.tokenizer)
        prompt("", task, self.manifest.tokenizer.instructions)  # before the tower begins to load
        checked = check_texts(texts)
        if checked and self._towers.tokenizer is None:
            self._towers.load_ahead("text")
        tokenized = self.tokenize(checked, task=task, max_length=limit)
        rows = tokenized.rows
        if cut := len(tokenized.cut):
            warning = TruncationWarning(f"{cut} of {len(rows)} texts were cut to {limit} tokens", cut=cut)
            warnings.warn(warning, stacklevel=2)
        vectors = np.empty((len(rows), dim), dtype=np.float32)
        with ProgressBar("texts", len(rows), is_shown=is_wanted(progress)) as bar:
            for batch in self._policy.plan_texts(rows, batch_size):
                vectors[list(batch.indices)] = self._run("text", batch.input_ids, dim)
                bar.advance(len(batch.indices))
        return vectors[0] if is_single else vectors

    @overload
    def encode_image(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> Vectors: ...
    @overload
    def encode_image(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        on_error: Literal["skip"] | Callable[[SkippedImage], None],
    ) -> EncodedImages: ...
    def encode_image(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        on_error: OnError = "raise",
    ) -> Vectors | EncodedImages:
        """Unit vectors of images: (dim,) for one image, (N, dim) float32 for several, in the order of the images.

        An image is a path, the bytes of a file, a "data:image/...;base64," string, a PIL image, or an RGB array
        (height, width, 3) uint8. URLs are not fetched. Options as in `encode_text`; a batch has at most 32 images,
        whatever `batch_size` is.

        An image that cannot be read is an InputError that names it. With `on_error="skip"` it is left out, and the
        result is an EncodedImages: the vectors, the index of each one's image, and which images were skipped and why.
        A function for `on_error` skips too, and is called with each SkippedImage as it is found, in order.
        """
        self._check_open()
        is_single = is_image(images)
        dim = check_truncate_dim(truncate_dim, self.manifest)
        check_batch_size(batch_size)
        check_on_error(on_error)
        items = check_images(images)
        if len(items) == 1 and on_error == "raise":  # nothing to do meanwhile
            pixels = self.preprocess(items[0], label="image" if is_single else "image 0")
            vectors = self._run("vision", pixels[None], dim)
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

            found = self._iter_images(items, dim, batch_size, on_error if on_error == "raise" else skip)
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
        truncate_dim: int | None = None,
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
        dim = check_truncate_dim(truncate_dim, self.manifest)
        check_batch_size(batch_size)
        check_on_error(on_error)
        return self._iter_images(check_images(images), dim, batch_size, on_error)

    def _iter_images(
        self, images: Sequence[ImageInput], dim: int, batch_size: int | None, on_error: OnError
    ) -> Generator[tuple[Sequence[int], Vectors]]:
        batches = list(self._policy.plan_images(len(images), batch_size))
        size = self.manifest.image.size_px
        streamed = partial(stream_images, images, batches, self.preprocess, size, self._threads, on_error)
        if batches and self._device.kind == "cuda":  # page-locked, and kept for the next call
            session = self._session("vision")
            streamed = partial(streamed, allocate=session.allocate, recycle=session.recycle)
        with contextlib.closing(streamed()) as ahead:
            for indices, pixels in ahead:
                yield indices, self._run("vision", pixels, dim)

    def tokenize(
        self, texts: str | Iterable[str], *, task: str | None = None, max_length: int | None = None
    ) -> TokenizedTexts:
        """The token ids of each text as the text tower takes them, (T,) int64, and the indices of texts that were
        cut.

        This is the first step of `encode_text`, for programs that form batches themselves; it raises the same errors.
        """
        instructions = self.manifest.tokenizer.instructions
        prompt("", task, instructions)  # an unknown task is one without texts, too
        checked = check_texts(texts)
        prompts = [prompt(text, task, instructions) for text in checked]
        return self._towers.parse_tokenizer().encode(prompts, max_length)

    def count_token_ids(self) -> int:
        """The size of the range of token ids: one more than the highest id that the tokenizer gives."""
        return self._towers.parse_tokenizer().count_ids()

    def preprocess(self, image: ImageInput, *, label: str = "image") -> NDArray[np.uint8]:
        """The pixels of an image as the vision tower takes them: (size_px, size_px, 3) uint8.

        This is the first step of `encode_image`, for programs that form batches themselves. Any number of threads may
        call it at once. Raises InputError, whose message calls the image `label`.
        """
        return preprocess_image(image, self.manifest.image, label=label)

    def run_tower(self, tower: TowerName, batch: NDArray[Any]) -> Vectors:
        """Unit vectors (B, dim) of inputs in the graph's own form: ids (B, T) int64, or pixels (B, S, S, 3) uint8.

        Nothing is tokenised, padded or resized. Raises DeviceError for inputs that the graph cannot take.
        """
        return self._run(tower, batch, self.manifest.embedding_dim)

    @property
    def overwritten_files(self) -> tuple[str, ...]:
        """Names of files of loaded towers that were changed in place since they were opened. No file is read."""
        return self._towers.overwritten

    def verify_files(self) -> None:
        """Read changed files of loaded towers; raise BundleError for one whose bytes are not those that were
        exported.
        """
        self._towers.verify_files()

    def close(self) -> None:
        """Free the towers and the tokenizer. Closing twice is harmless; encoding afterwards is an InputError."""
        self._towers.close()

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

    def _run(self, tower: TowerName, batch: NDArray[Any], dim: int) -> Vectors:
        return self._towers.run(tower, batch, dim)

    def _check_open(self) -> None:
        self._towers.check_open()

    def _session(self, tower: TowerName) -> TowerSession:
        return self._towers.session(tower)


def _reopen(kind: type[Encoder], folder: str, options: dict[str, Any]) -> Encoder:
    return kind.open(folder, **options)
