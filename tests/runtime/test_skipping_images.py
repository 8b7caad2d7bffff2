"""An image that cannot be read costs its own vector and no other, where that is asked for; nothing is misread."""

import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip import EncodedImages, Encoder, InputError, SkippedImage, SkippedWarning
from tests.conftest import DATA

# The same work in other company; measured 3e-7.
SAME = 5e-6
GOOD = sorted((DATA / "images").glob("rgb_*.png"))[:4]


@pytest.fixture
def mixed(tmp_path: Path) -> list[Any]:
    """Images of every form, good at 1, 3, 5 and 7: a file cut short, nothing, no path, a URL between them."""
    (tmp_path / "cut.png").write_bytes(GOOD[0].read_bytes()[:200])
    pixels = np.asarray(Image.open(GOOD[2]).convert("RGB"))
    return [
        tmp_path / "cut.png",
        GOOD[0],
        b"",
        GOOD[1].read_bytes(),
        str(tmp_path / "no"),
        pixels,
        "https://x/y",
        GOOD[3],
    ]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 8])
def test_skipped_images_have_no_vector_and_the_others_theirs(
    encoder: Encoder, mixed: list[Any], tmp_path: Path, batch_size: int | None
) -> None:
    found = encoder.encode_image(mixed, batch_size=batch_size, on_error="skip")
    assert isinstance(found, EncodedImages) and found.indices.tolist() == [1, 3, 5, 7]
    assert np.abs(found.vectors - encoder.encode_image(GOOD)).max() <= SAME
    reasons = {one.index: one.reason for one in found.skipped}
    assert list(reasons) == [0, 2, 4, 6]
    assert reasons[0].startswith("is damaged or cut short (") and reasons[2] == "is empty (0 bytes)"
    assert reasons[4] == "no such file" and reasons[6].startswith("URLs are not fetched")


def test_the_default_raises(encoder: Encoder, mixed: list[Any]) -> None:
    with pytest.raises(InputError, match="^image 1: is empty"):
        encoder.encode_image(mixed[1:])
    with pytest.raises(InputError, match="^image 1: is empty"):
        list(encoder.iter_images(mixed[1:], batch_size=8, on_error="raise"))


def test_a_function_is_called_in_order_before_later_vectors(encoder: Encoder, mixed: list[Any]) -> None:
    seen: list[int] = []
    for indices, vectors in encoder.iter_images(mixed, batch_size=3, on_error=lambda one: seen.append(one.index)):
        assert len(indices) == len(vectors)
        seen.extend(indices)
    assert seen == [0, 2, 1, 4, 3, 5, 6, 7]


def test_a_function_may_stop_it(encoder: Encoder, mixed: list[Any]) -> None:
    def stop(image: SkippedImage) -> None:
        raise KeyError(image.index)

    with pytest.raises(KeyError, match="0"):
        encoder.encode_image(mixed, on_error=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgeclip-images")]


def test_a_stream_warns_once_at_its_end(encoder: Encoder, mixed: list[Any]) -> None:
    stream = encoder.iter_images(mixed, on_error="skip")
    assert next(stream)[0] == range(1, 2)
    with pytest.warns(
        SkippedWarning, match="^4 of 8 images were skipped; the first is image 0: is damaged"
    ) as caught:
        assert [list(indices) for indices, _ in stream] == [[3], [5], [7]]
    assert [warning.message.skipped for warning in caught] == [(0, 2, 4, 6)]  # type: ignore[union-attr]


@pytest.mark.parametrize("images", [[], [b""], b""], ids=["none", "one", "single"])
def test_where_nothing_is_left_there_are_no_rows(encoder: Encoder, images: Any) -> None:
    found = encoder.encode_image(images, truncate_dim=8, on_error="skip")
    assert found.vectors.shape == (0, 8) and len(found.indices) == 0
    assert len(found.skipped) == (images != [])


def test_what_is_no_way_to_treat_errors_is_refused(encoder: Encoder) -> None:
    for on_error in ("ignore", None, 3):
        with pytest.raises(InputError, match='wanted "raise", "skip" or a function'):
            encoder.encode_image(GOOD, on_error=on_error)  # type: ignore[call-overload]


def test_arrays_and_columns_of_paths_are_lists_of_paths(encoder: Encoder) -> None:
    """Whatever holds them: objects, str of one width, one path in an array of no axes, a Series, a lazy sequence."""
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    names = list(map(str, GOOD))
    wanted = encoder.encode_image(GOOD)
    forms = [np.array(names), np.array(names, dtype=object), np.array(GOOD, dtype=object), tuple(names)]
    forms += [pandas.Series(names), pandas.Index(names), polars.Series(names), pandas.DataFrame({"a": names})["a"]]
    forms += [dict.fromkeys(names).keys(), (name for name in names)]
    for form in forms:
        np.testing.assert_array_equal(encoder.encode_image(form), wanted)
    np.testing.assert_array_equal(encoder.encode_image(np.array(names[0])), wanted[0])  # type: ignore[arg-type]
    texts = ["a", "b"]
    for form in (np.array(texts), np.array(texts, dtype=object), pandas.Series(texts), polars.Series(texts)):
        np.testing.assert_array_equal(encoder.encode_text(form), encoder.encode_text(texts))


def test_tables_and_what_has_no_order_are_refused(encoder: Encoder) -> None:
    """A table iterates over its columns' names, a dict over its keys, a set in another order every time."""
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    column = {"path": list(map(str, GOOD))}
    tables = [pandas.DataFrame(column), polars.DataFrame(column), polars.LazyFrame(column)]
    if pyarrow := sys.modules.get("pyarrow"):
        tables.append(pyarrow.table(column))
    for encode, what in (
        (encoder.encode_image, "images"),
        (encoder.encode_text, "texts"),
        (encoder.iter_images, "images"),
    ):
        for table in tables:
            with pytest.raises(
                InputError, match=f"^{what} are a .*Frame|Table, a table; pass one of its columns, as"
            ):
                encode(table)
        mappings: list[Any] = [column, {"text": None}, dict.fromkeys(GOOD), {}]
        for mapping in mappings:
            with pytest.raises(InputError, match=f"^{what} are a dict, of which only the keys would be read"):
                encode(mapping)
        with pytest.raises(InputError, match=f"^{what} are a set, which has no order"):
            encode(set(column["path"]))


def test_arrays_that_hold_no_paths_are_refused(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="pass files as a list of bytes, for numpy cuts zeros"):
        encoder.encode_image(np.array([path.read_bytes()[:50] for path in GOOD]))
    with pytest.raises(InputError, match="pass paths in a list, or in an array of one axis"):
        encoder.encode_image(np.array([[str(path)] for path in GOOD]))
    with pytest.raises(InputError, match="text 0 is ndarray, wanted str"):
        encoder.encode_text(np.array([["a"], ["b"]]))


def test_no_library_of_tables_is_imported(bundle: Path) -> None:
    program = "import sys, edgeclip; assert not {'pandas', 'polars', 'pyarrow', 'PIL'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_warnings_as_errors_stop_no_picture(encoder: Encoder, tmp_path: Path) -> None:
    """Pillow's own about a picture's size and its broken EXIF."""
    picture = Image.new("RGB", (100, 80), (9, 99, 199))
    picture.save(tmp_path / "exif.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\xff\xff\0\0")
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 100 * 80 - 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            vectors = encoder.encode_image([tmp_path / "exif.jpg"] * 3)
    finally:
        Image.MAX_IMAGE_PIXELS = before
    assert np.abs(vectors - encoder.encode_image(tmp_path / "exif.jpg")).max() <= SAME
