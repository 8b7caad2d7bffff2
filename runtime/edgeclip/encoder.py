"""The encoder: every step from a user's text or image to a unit vector. To read the code, start here.

    text  -> items: prompt, token ids    \\
                                           batches of one kind -> graph (-> the next graph) -> cut, normalise
    image -> items: RGB, resized, uint8  /

The model's family (`edgeclip.families`) makes the items, `edgeclip.engine.run` runs them, and `edgeclip.open_bundle`
holds what both need. Pooling, LoRA that was merged, mean and std, and the first normalisation are inside the graphs
(`edgeclip_export`).
"""

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar, overload

import numpy as np

from edgeclip.engine.unit_vectors import Vectors
from edgeclip.errors import TruncationWarning
from edgeclip.families.family import Item
from edgeclip.families.tasks import find_task
from edgeclip.inputs.checks import check_batch_size, check_images, check_texts, check_truncate_dim
from edgeclip.inputs.image_stream import EncodedImages, OnError, SkippedImage, check_on_error, stream_images
from edgeclip.inputs.images import ImageInput, is_image
from edgeclip.inputs.prefetch import Pixels
from edgeclip.inputs.tokenization import check_max_length
from edgeclip.manifest import FIRST_GRAPH, ImageFacts, Space
from edgeclip.multi_vectors import MultiVectors
from edgeclip.open_bundle import OpenBundle
from edgeclip.progress import ProgressBar, is_wanted


class Encoder(OpenBundle):
    """A bundle, opened on a device. `Encoder.open` makes one; it is a context manager.

    On the CPU a graph is loaded when it is first used, and the tokenizer with the first text, so a program that only
    searches by text never loads the vision graph. Any number of threads may call one Encoder. One thread may close it
    while others encode: calls in progress finish, later ones raise an error that says it is closed. After a fork an
    Encoder on the CPU loads its graphs again in the child; on other devices the child gets an error. A pickled or
    copied Encoder opens its bundle again.
    """

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
        dim = check_truncate_dim(truncate_dim, self.manifest)
        items, is_single = self._text_items(texts, task, max_length, batch_size)
        vectors = np.empty((len(items), dim), dtype=np.float32)
        for indices, found in self._run_texts(items, dim, batch_size, progress, "single"):
            vectors[indices] = found
        return vectors[0] if is_single else vectors

    @overload
    def encode_text_multivector(  # type: ignore[overload-overlap] # a str is an Iterable[str] too
        self,
        texts: str,
        *,
        task: str | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Vectors: ...
    @overload
    def encode_text_multivector(
        self,
        texts: Iterable[str],
        *,
        task: str | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> MultiVectors: ...
    def encode_text_multivector(
        self,
        texts: str | Iterable[str],
        *,
        task: str | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Vectors | MultiVectors:
        """A unit vector for each token of a text, the prompt's tokens among them.

        (T, dim) float32 for one str, MultiVectors for several, in the order of the texts. Options and errors are
        those of `encode_text`; InputError for a model without multi vectors.
        """
        dim = self.manifest.need_multi().dim
        items, is_single = self._text_items(texts, task, max_length, batch_size)
        matrices: list[Vectors] = [np.empty((0, dim), np.float32)] * len(items)
        for indices, found in self._run_texts(items, dim, batch_size, progress, "multi"):
            for index, matrix in zip(indices, found, strict=True):
                matrices[index] = matrix
        return matrices[0] if is_single else MultiVectors.of(matrices, dim=dim)

    def _text_items(
        self, texts: str | Iterable[str], task: str | None, max_length: int | None, batch_size: int | None
    ) -> tuple[Sequence[Item], bool]:
        """The texts as items, and whether it is one text; warns the caller's caller of texts that were cut."""
        self._check_open()
        facts = self.manifest.need_text()
        check_batch_size(batch_size)
        limit = check_max_length(max_length, facts)
        find_task(self.manifest, task, "text")  # before the graph begins to load
        checked = check_texts(texts)
        if checked and self._graphs.tokenizer is None:
            self._graphs.load_ahead(FIRST_GRAPH["text"])
        prepared = self._family.texts(checked, task, limit)
        if cut := len(prepared.cut):
            warning = TruncationWarning(f"{cut} of {len(checked)} texts were cut to {limit} tokens", cut=cut)
            warnings.warn(warning, stacklevel=3)
        return prepared.items, isinstance(texts, str)

    def _run_texts(
        self, items: Sequence[Item], dim: int, batch_size: int | None, progress: bool | None, space: Space
    ) -> Iterator[tuple[list[int], Vectors]]:
        with ProgressBar("texts", len(items), is_shown=is_wanted(progress)) as bar:
            for indices, found in self._runner.run(items, dim, batch_size, space=space):
                yield indices, found
                bar.advance(len(indices))

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
        dim = check_truncate_dim(truncate_dim, self.manifest)
        prepare = self._preparing(task, max_pixels, batch_size, on_error)
        checked = check_images(images)
        skipped: list[SkippedImage] = []
        indices: list[int] = []
        vectors = np.empty((len(checked), dim), dtype=np.float32)
        is_shown = is_wanted(progress) and (len(checked) != 1 or on_error != "raise")
        with ProgressBar("images", len(checked), is_shown=is_shown) as bar:

            def skip(image: SkippedImage) -> None:
                skipped.append(image)
                bar.advance()
                if callable(on_error):
                    on_error(image)

            handle = on_error if on_error == "raise" else skip
            found = self._iter_items(checked, prepare, batch_size, handle, is_single=is_image(images))
            with contextlib.closing(found):
                for batch, items in found:
                    rows = self.run_items(items, dim, batch_size=len(items))
                    vectors[len(indices) : len(indices) + len(batch)] = rows
                    indices += batch
                    bar.advance(len(batch))
        if on_error == "raise":
            return vectors[0] if is_image(images) else vectors
        kept = vectors[: len(indices)].copy()
        return EncodedImages(vectors=kept, indices=np.array(indices, dtype=np.int64), skipped=tuple(skipped))

    def encode_image_multivector(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        task: str | None = None,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Vectors | MultiVectors:
        """A unit vector for each token of an image, those of its prompt among them.

        (T, dim) float32 for one image, MultiVectors for several, in the order of the images. Options and errors are
        those of `encode_image`; InputError for a model without multi vectors.
        """
        dim = self.manifest.need_multi().dim
        prepare = self._preparing(task, max_pixels, batch_size, "raise")
        checked = check_images(images)
        matrices: list[Vectors] = []
        with ProgressBar("images", len(checked), is_shown=is_wanted(progress) and len(checked) != 1) as bar:
            found = self._iter_items(checked, prepare, batch_size, "raise", is_single=is_image(images))
            with contextlib.closing(found):
                for batch, items in found:
                    matrices += self.run_items_multi(items, batch_size=len(items))
                    bar.advance(len(batch))
        return matrices[0] if is_image(images) else MultiVectors.of(matrices, dim=dim)

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
        dim = check_truncate_dim(truncate_dim, self.manifest)
        prepare = self._preparing(task, max_pixels, batch_size, on_error)
        found = self._iter_items(check_images(images), prepare, batch_size, on_error)
        return _closing_map(lambda items: self.run_items(items, dim, batch_size=len(items)), found)

    def iter_images_multivector(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        task: str | None = None,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        on_error: OnError = "raise",
    ) -> Generator[tuple[Sequence[int], MultiVectors]]:
        """Yield the multi vectors of images batch by batch, in order, as `iter_images` yields single vectors."""
        self.manifest.need_multi()
        prepare = self._preparing(task, max_pixels, batch_size, on_error)
        found = self._iter_items(check_images(images), prepare, batch_size, on_error)
        return _closing_map(lambda items: self.run_items_multi(items, batch_size=len(items)), found)

    def _preparing(
        self, task: str | None, max_pixels: int | None, batch_size: int | None, on_error: OnError
    ) -> Callable[[ImageInput, str], Item]:
        """Check the options of a call for images; a function that makes an item of an image and its label."""
        self._check_open()
        self.manifest.check_modality("image")
        check_batch_size(batch_size)
        check_on_error(on_error)
        find_task(self.manifest, task, "image")
        return lambda image, label: self.prepare_image(image, task=task, max_pixels=max_pixels, label=label)

    def _iter_items(
        self,
        images: Sequence[ImageInput],
        prepare: Callable[[ImageInput, str], Item],
        batch_size: int | None,
        on_error: OnError,
        *,
        is_single: bool = False,
    ) -> Generator[tuple[Sequence[int], list[Item]]]:
        """Yield images as items, a batch at a time with their indices; threads prepare the next ones meanwhile."""
        if len(images) == 1 and on_error == "raise":  # nothing to do meanwhile
            yield range(1), [prepare(images[0], "image" if is_single else "image 0")]
            return
        batches = list(self._policy.plan_images(len(images), batch_size))
        facts = self.manifest.image
        shape = (facts.size_px, facts.size_px, 3) if isinstance(facts, ImageFacts) else ()

        def stage(image: ImageInput, label: str, row: Pixels) -> Item:
            item = prepare(image, label)
            if not shape:  # images of any size are not copied into one buffer
                return item
            ((name, pixels),) = item.arrays.items()
            row[...] = pixels
            return replace(item, arrays={name: row})

        streamed = partial(stream_images, images, batches, stage, shape, self._decoding_threads, on_error)
        if batches and shape and self._device.kind == "cuda":  # page-locked, and kept for the next call
            session = self._graphs.session(FIRST_GRAPH["image"])
            streamed = partial(streamed, allocate=session.allocate, recycle=session.recycle)
        with contextlib.closing(streamed()) as ahead:
            yield from ahead


_Made = TypeVar("_Made")


def _closing_map(
    make: Callable[[list[Item]], _Made], batches: Generator[tuple[Sequence[int], list[Item]]]
) -> Generator[tuple[Sequence[int], _Made]]:
    """What is made of each batch of items, with its indices; `batches` is closed in the end."""
    with contextlib.closing(batches):
        for indices, items in batches:
            yield indices, make(items)
