"""Check what callers pass as texts, images and options; refuse what Python would silently read as something else."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeclip.errors import InputError
from edgeclip.inputs.images import ImageInput, is_image
from edgeclip.manifest import Manifest


def check_texts(texts: str | Iterable[str]) -> list[str]:
    """The texts as a list; InputError for an input that is not texts."""
    if isinstance(texts, str):
        texts = [texts]
    _refuse_collection(texts, "texts")
    is_scalar = isinstance(texts, np.ndarray) and texts.ndim == 0  # says it is iterable, and is not
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable) or is_scalar:
        raise InputError(f"texts must be a str or a sequence of str, found {type(texts).__name__}")
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise InputError(f"text {index} is {type(text).__name__}, wanted str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text {index} holds a lone surrogate, so it is no Unicode text") from error
    return checked


def check_images(images: Any) -> Sequence[ImageInput]:
    """The images as a sequence, also for a single image. A sequence that makes its items on demand stays as it is."""
    if is_image(images):
        return [images]
    _refuse_collection(images, "images")
    if isinstance(images, Sequence) and not isinstance(images, list):
        return images
    if isinstance(images, Iterable) and not hasattr(images, "read"):  # a file would give its lines
        return list(images)
    return [images]  # what it is instead is said where it is decoded


def check_batch_size(batch_size: int | None) -> None:
    """InputError for a batch size that is no positive int."""
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise InputError(f"batch_size is {batch_size!r}, wanted a positive int")


def check_truncate_dim(truncate_dim: int | None, manifest: Manifest) -> int:
    """The number of dimensions to keep, the full dimension for None.

    InputError unless it is an int from 1 to the full dimension, or one of the list where the model takes no other.
    """
    space = manifest.spaces.single
    if truncate_dim is None:
        return space.dim
    listed = sorted({*space.matryoshka_dims, space.dim})
    if space.is_strict and (type(truncate_dim) is not int or truncate_dim not in listed):
        dims = ", ".join(map(str, listed))
        raise InputError(f"truncate_dim is {truncate_dim!r}, wanted one of {dims}: this model takes no other")
    if type(truncate_dim) is not int or not 1 <= truncate_dim <= space.dim:
        dims = ", ".join(map(str, space.matryoshka_dims))
        wanted = f"an int from 1 to {space.dim} (the model was trained for {dims})"
        raise InputError(f"truncate_dim is {truncate_dim!r}, wanted {wanted}")
    return truncate_dim


def _refuse_collection(values: object, what: str) -> None:
    """InputError for collections that iterate over something else, or in no order; imports no library for that."""
    kind = type(values)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if hasattr(kind, "columns") or hasattr(kind, "column_names"):
        raise InputError(f"{what} are a {name}, a table; pass one of its columns, as table['{what[:-1]}']")
    if isinstance(values, Mapping):
        raise InputError(
            f"{what} are a {name}, of which only the keys would be read; pass list(it) for them, or list(it.values())"
        )
    if isinstance(values, set | frozenset):
        raise InputError(f"{what} are a {name}, which has no order to give vectors in; pass sorted(it)")
