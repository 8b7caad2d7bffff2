"""Decode images ahead of the vision graph (`edgeclip.inputs.prefetch`), and skip those that cannot be read.

A skipped image has no vector. A row of zeros or NaN in its place would be found by a search or spread through a mean.
The indices say which images the rows belong to.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError, SkippedWarning
from edgeclip.inputs.images import ImageInput, shown_path
from edgeclip.inputs.prefetch import Pixels, stage_images


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedImage:
    """A skipped image: its index in the input, and why it cannot be read."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImages:
    """The vectors of several images, of which some may have been skipped.

    `vectors` (K, dim) float32 has a row for each image that could be read and none for the others; row k belongs to
    the image of index `indices[k]`, (K,) int64.
    """

    vectors: NDArray[np.float32]
    indices: NDArray[np.int64]
    skipped: tuple[SkippedImage, ...]


_Prepared = TypeVar("_Prepared")
OnError = Literal["raise", "skip"] | Callable[[SkippedImage], None]


def check_on_error(on_error: object) -> None:
    """InputError for a value of `on_error` that is neither "raise" nor "skip" nor a function."""
    if on_error not in ("raise", "skip") and not callable(on_error):
        raise InputError(f'on_error is {on_error!r}, wanted "raise", "skip" or a function of a SkippedImage')


def stream_images(
    images: Sequence[ImageInput],
    batches: Sequence[range],
    prepare: Callable[[ImageInput, str, Pixels], _Prepared],
    shape: tuple[int, ...],
    threads: int,
    on_error: OnError,
    **buffers: Any,
) -> Generator[tuple[Sequence[int], list[_Prepared]]]:
    """Yield for each batch the indices of its readable images, and what was prepared of them.

    `prepare(image, label, row)` writes the pixels of one image into a row of this `shape`, and returns what is
    yielded of it; `buffers` are options of `stage_images`. An image that cannot be read raises its error, or is left
    out: then a function for `on_error` is called with it before its batch is yielded, and "skip" gives one
    SkippedWarning at the end. A batch without readable images is not yielded.
    """
    skipped: list[SkippedImage] = []
    skip = on_error if callable(on_error) else skipped.append
    reasons: dict[int, str] = {}  # of images that were prepared and not yet skipped
    prepare_at = _preparing(images, prepare, None if on_error == "raise" else reasons)
    with contextlib.closing(stage_images(batches, prepare_at, shape, threads, **buffers)) as staged:
        for batch, items in staged:
            for index in batch:
                if index in reasons:
                    skip(SkippedImage(index=index, reason=reasons.pop(index)))
            kept = [(index, item) for index, item in zip(batch, items, strict=True) if item is not None]
            if len(kept) == len(batch):
                yield batch, [item for _, item in kept]
            elif kept:
                yield [index for index, _ in kept], [item for _, item in kept]
    if skipped:
        first = f"image {skipped[0].index}: {skipped[0].reason}"
        message = f"{len(skipped)} of {len(images)} images were skipped; the first is {first}"
        warnings.warn(SkippedWarning(message, skipped=tuple(one.index for one in skipped)), stacklevel=3)


def _preparing(
    images: Sequence[ImageInput],
    prepare: Callable[[ImageInput, str, Pixels], _Prepared],
    reasons: dict[int, str] | None,
) -> Callable[[int, Pixels], _Prepared | None]:
    """A function that prepares an image by its index, for several threads at once.

    With `reasons`, an image that cannot be read gives None, and the reason is written there.
    """
    loading = threading.Lock()

    def prepare_at(index: int, row: Pixels) -> _Prepared | None:
        image, label = images[index], f"image {index}"
        if hasattr(image, "load"):
            # A PIL image reads its file when first used and may stand in the list twice: Pillow loads one in one
            # thread alone. `prepare` reports what fails here.
            with loading, contextlib.suppress(Exception):
                image.load()
        try:
            return prepare(image, label, row)
        except (InputError, MemoryError) as error:
            if reasons is None:
                raise
            reasons[index] = _reason(error, label, image)
            return None

    return prepare_at


def _reason(error: Exception, label: str, image: ImageInput) -> str:
    """The message without the image's label and path at its beginning."""
    text = str(error).removeprefix(label)
    if isinstance(image, str | os.PathLike):
        text = text.removeprefix(f" ({shown_path(os.fsdecode(image))})")
    return text.removeprefix(": ")
