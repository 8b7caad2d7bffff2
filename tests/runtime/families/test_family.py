"""Rows of one buffer become a batch without a copy, all others a new array; the list of families is closed."""

import ctypes
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine.cuda.memory import HostMemory
from edgeclip.errors import BundleError, InputError
from edgeclip.families import FAMILIES, find_family, open_family
from edgeclip.families.family import refuse_max_pixels, stack
from edgeclip.manifest import Manifest
from tests.scenes.damage import reseal

SHAPE = (2, 5, 3)


def counted(dtype: Any = np.uint8, count: int = 6) -> NDArray[Any]:
    """An array that owns its memory, every element another number."""
    return np.arange(count * 30).astype(dtype).reshape(count, *SHAPE).copy()


def page_locked() -> NDArray[Any]:
    """A buffer as a lane allocates it: bytes that something else owns, viewed as pixels."""
    return HostMemory().host(6 * 30).view(np.uint8).reshape(6, *SHAPE)


def foreign() -> NDArray[Any]:
    """A buffer whose memory no array owns, as page-locked memory of CUDA is."""
    return np.frombuffer((ctypes.c_uint8 * 180)(), np.uint8).reshape(6, *SHAPE)


@pytest.mark.parametrize("make", [counted, page_locked, foreign, lambda: counted(np.int64), lambda: counted()[1:]])
@pytest.mark.parametrize(("start", "stop"), [(0, 6), (0, 1), (2, 5), (4, 5)])
def test_neighbouring_rows_of_one_buffer_are_not_copied(
    make: Callable[[], NDArray[Any]], start: int, stop: int
) -> None:
    buffer = make()
    stop = min(stop, len(buffer))
    batch = stack([buffer[index] for index in range(start, stop)])
    assert batch.dtype == buffer.dtype and batch.flags.c_contiguous
    np.testing.assert_array_equal(batch, buffer[start:stop])
    assert np.shares_memory(batch, buffer)
    batch[...] = 0
    assert not buffer[start:stop].any()


def test_a_batch_of_a_lanes_memory_is_still_the_lanes() -> None:
    """Else it would be copied once more into a slot."""
    buffer = page_locked()
    assert HostMemory().owns(stack([buffer[1], buffer[2]]))
    assert HostMemory().owns(stack([buffer[1]]))


def two_buffers() -> list[NDArray[Any]]:
    return [counted()[0], counted()[1]]


@pytest.mark.parametrize(
    "rows",
    [
        lambda: [counted()[0].copy(), counted()[1].copy()],
        two_buffers,
        lambda: list(counted()[::2]),
        lambda: list(counted()[::-1]),
        lambda: [(buffer := counted())[0], buffer[0]],
        lambda: [(buffer := counted())[0], buffer[2], buffer[1]],
        lambda: [(buffer := counted())[0], buffer[1], counted()[2]],
        lambda: list(np.asfortranarray(counted())),
        lambda: list(counted().swapaxes(1, 2)),
    ],
    ids=[
        "own memory",
        "two buffers",
        "every other row",
        "backwards",
        "one row twice",
        "another order",
        "the last one elsewhere",
        "columns",
        "turned",
    ],
)
def test_all_other_rows_are_copied(rows: Callable[[], list[NDArray[Any]]]) -> None:
    arrays = rows()
    batch = stack(arrays)
    np.testing.assert_array_equal(batch, np.array(arrays))
    assert not any(np.shares_memory(batch, array) for array in arrays)


def test_rows_of_two_shapes_are_no_batch() -> None:
    """Though they lie one behind the other in one buffer."""
    buffer = np.zeros(8, np.int64)
    with pytest.raises(ValueError, match="same shape"):
        stack([buffer[:4], buffer[4:6]])


@pytest.mark.parametrize("max_pixels", [1, 0, 10**9])
def test_a_limit_of_pixels_is_refused_where_all_images_get_one_size(encoder: Encoder, max_pixels: int) -> None:
    refuse_max_pixels(None)
    with pytest.raises(InputError, match=f"^max_pixels is {max_pixels}: this model resizes every image to one size"):
        refuse_max_pixels(max_pixels)
    pixels = np.zeros((4, 4, 3), np.uint8)
    for images in (pixels, [pixels, pixels]):
        with pytest.raises(InputError, match=f"^max_pixels is {max_pixels}: "):
            encoder.encode_image(images, max_pixels=max_pixels)


def test_every_family_is_found_by_its_name() -> None:
    assert "jina_clip" in FAMILIES
    assert all(find_family(name) is family for name, family in FAMILIES.items())


@pytest.mark.parametrize("name", ["", "jina-clip", "Jina_clip", "jina_embeddings_v9"])
def test_an_unknown_family_is_one_line(encoder: Encoder, name: str) -> None:
    """It names those that this version runs."""
    wanted = f"a bundle of the family {name!r}; this edgeclip runs {', '.join(FAMILIES)}"
    for call in (
        lambda: find_family(name),
        lambda: open_family(dataclasses.replace(encoder.manifest, family=name), pytest.fail),
    ):
        with pytest.raises(BundleError) as caught:
            call()
        assert str(caught.value) == wanted


def test_a_bundle_of_an_unknown_family_does_not_open(copied_bundle: Path) -> None:
    reseal(copied_bundle, family="jina_embeddings_v9")
    with pytest.raises(BundleError, match=f"^{copied_bundle}: a bundle of the family 'jina_embeddings_v9'; "):
        Encoder.open(copied_bundle, device="cpu")
    assert Manifest.read(copied_bundle).family == "jina_embeddings_v9"
