"""What a user gives becomes unit vectors in the order given, or one line that says what is wrong with it."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip import Encoder, InputError, TruncationWarning
from tests.scenes.encoder_inputs import DIM, FILE, IMAGES, PIXELS, SAME, TEXTS, largest_difference, refusal

# The length of a float32 vector of 64 elements. Measured: 1e-7.
UNIT = 1e-6


def test_one_input_gives_one_vector(encoder: Encoder) -> None:
    for vector in (encoder.encode_text("a cat"), encoder.encode_image(FILE), encoder.encode_image(PIXELS)):
        assert vector.shape == (DIM,)
        assert vector.dtype == np.float32


def test_several_inputs_give_a_matrix(encoder: Encoder) -> None:
    for vectors in (encoder.encode_text(["a cat"]), encoder.encode_image([FILE]), encoder.encode_image([PIXELS])):
        assert vectors.shape == (1, DIM)
        assert vectors.dtype == np.float32


@pytest.mark.parametrize("truncate_dim", [None, 8])
def test_no_inputs_give_an_empty_matrix(encoder: Encoder, truncate_dim: int | None) -> None:
    empty = np.empty((0, 61, 97, 3), np.uint8)
    for vectors in (
        encoder.encode_text([], truncate_dim=truncate_dim),
        encoder.encode_image([], truncate_dim=truncate_dim),
        encoder.encode_image(empty, truncate_dim=truncate_dim),
    ):
        assert vectors.shape == (0, truncate_dim or DIM)
        assert vectors.dtype == np.float32


def test_any_iterable_of_texts_is_several(encoder: Encoder) -> None:
    wanted = encoder.encode_text(TEXTS)
    several: list[Any] = [
        tuple(TEXTS),
        iter(TEXTS),
        dict.fromkeys(TEXTS).keys(),
        np.array(TEXTS),
        (text for text in TEXTS),
    ]
    for texts in several:
        assert largest_difference(encoder.encode_text(texts), wanted) == 0


def test_any_iterable_of_images_is_several(encoder: Encoder) -> None:
    wanted = encoder.encode_image(IMAGES)
    for images in (tuple(IMAGES), iter(IMAGES), (image for image in IMAGES)):
        assert largest_difference(encoder.encode_image(images), wanted) == 0


def test_an_array_of_four_axes_is_several_images(encoder: Encoder) -> None:
    batch = np.stack([PIXELS, PIXELS[::-1], 255 - PIXELS])
    assert largest_difference(encoder.encode_image(batch), encoder.encode_image(list(batch))) == 0


def test_the_order_of_texts_is_kept(encoder: Encoder) -> None:
    """Whatever order they are computed in."""
    wanted = np.stack([encoder.encode_text(text) for text in TEXTS])
    assert largest_difference(encoder.encode_text(TEXTS), wanted) <= SAME
    assert largest_difference(encoder.encode_text(TEXTS[::-1]), wanted[::-1]) <= SAME
    # The texts differ by more than the tolerance, or this would have proved nothing; the blank two are one.
    gaps = np.abs(wanted[:, None] - wanted[None]).max(axis=2)
    assert np.unique(np.argwhere(gaps < 1e-3), axis=0).shape[0] == len(TEXTS) + 2


def test_the_order_of_images_is_kept(encoder: Encoder) -> None:
    wanted = np.stack([encoder.encode_image(image) for image in IMAGES])
    assert largest_difference(encoder.encode_image(IMAGES), wanted) <= SAME
    assert largest_difference(encoder.encode_image(IMAGES[::-1]), wanted[::-1]) <= SAME
    assert np.abs(wanted[0] - wanted[1:]).max(axis=1).min() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_size_changes_no_vector(encoder: Encoder, batch_size: int) -> None:
    texts = TEXTS * 3
    found = encoder.encode_text(texts, batch_size=batch_size)
    assert largest_difference(found, encoder.encode_text(texts)) <= SAME
    found = encoder.encode_image(IMAGES, batch_size=batch_size)
    assert largest_difference(found, encoder.encode_image(IMAGES)) <= SAME


def test_company_changes_no_vector(encoder: Encoder) -> None:
    alone = encoder.encode_text("a cat")
    for company in (["a dog"], ["<pad> <pad>"], ["the red house " * 50], ["", " "]):
        assert largest_difference(encoder.encode_text([*company, "a cat", *company])[len(company)], alone) <= SAME


@pytest.mark.parametrize("truncate_dim", [None, 1, 7, 8, 63, 64])
def test_every_row_has_length_one(encoder: Encoder, truncate_dim: int | None) -> None:
    for vectors in (
        encoder.encode_text(TEXTS, truncate_dim=truncate_dim),
        encoder.encode_image(IMAGES, truncate_dim=truncate_dim),
    ):
        assert vectors.shape[1] == (truncate_dim or DIM)
        assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() <= UNIT


def test_a_vector_is_cut_first_and_normalised_then(encoder: Encoder) -> None:
    for full, cut in (
        (encoder.encode_text(TEXTS), encoder.encode_text(TEXTS, truncate_dim=16)),
        (encoder.encode_image(IMAGES), encoder.encode_image(IMAGES, truncate_dim=16)),
    ):
        head = full[:, :16]
        assert np.linalg.norm(head, axis=1).max() < 0.9
        assert largest_difference(cut, head / np.linalg.norm(head, axis=1, keepdims=True)) <= SAME


@pytest.mark.parametrize("truncate_dim", [0, -1, DIM + 1, True, "64", 3.5, np.int64(8)])
def test_a_dimension_that_is_none(encoder: Encoder, truncate_dim: Any) -> None:
    """Also where there is nothing to cut."""
    wanted = (
        f"truncate_dim is {truncate_dim!r}, wanted an int from 1 to 64 (the model was trained for 8, 16, 32, 48, 64)"
    )
    for call in (encoder.encode_text, encoder.encode_image):
        assert refusal(lambda call=call: call([], truncate_dim=truncate_dim)) == wanted


@pytest.mark.parametrize("batch_size", [0, -1, True, "2", 2.0])
def test_a_batch_size_that_is_none(encoder: Encoder, batch_size: Any) -> None:
    wanted = f"batch_size is {batch_size!r}, wanted a positive int"
    assert refusal(lambda: encoder.encode_text(TEXTS, batch_size=batch_size)) == wanted
    assert refusal(lambda: encoder.encode_image(IMAGES, batch_size=batch_size)) == wanted


def test_a_task_is_its_instruction_before_the_text(encoder: Encoder) -> None:
    instruction = encoder.manifest.tasks["retrieval.query"].prompt
    found = encoder.encode_text(["a cat", ""], task="retrieval.query")
    wanted = encoder.encode_text([instruction + "a cat", instruction])
    assert largest_difference(found, wanted) == 0
    assert largest_difference(found, encoder.encode_text(["a cat", ""])) > 1e-3


@pytest.mark.parametrize("texts", ["a cat", ["a cat"], []])
@pytest.mark.parametrize("task", ["retrieval.passage", "", "Retrieval.query", 3, ["retrieval.query"]])
def test_an_unknown_task_is_told_the_known_ones(encoder: Encoder, task: Any, texts: Any) -> None:
    message = refusal(lambda: encoder.encode_text(texts, task=task))
    assert message == f"task is {task!r}, wanted None or one that the model knows: 'retrieval.query'"


def test_a_text_is_cut_at_max_length(encoder: Encoder) -> None:
    with pytest.warns(TruncationWarning):
        cut = encoder.encode_text("the red house " * 40, max_length=7)
    with pytest.warns(TruncationWarning):
        same = encoder.encode_text("the red house " * 50, max_length=7)
    assert largest_difference(cut, same) == 0


def test_cut_texts_are_counted_where_they_were_passed(encoder: Encoder) -> None:
    texts = ["the red house " * 40, "a", "the blue cat " * 40]
    with pytest.warns(TruncationWarning) as caught:
        encoder.encode_text(texts, max_length=20)
    (warning,) = caught
    assert str(warning.message) == "2 of 3 texts were cut to 20 tokens"
    assert warning.message.cut == 2
    assert warning.filename == __file__


def test_texts_that_fit_are_not_warned_about(encoder: Encoder) -> None:
    """Warnings are errors here."""
    encoder.encode_text(TEXTS, max_length=100)


def test_the_models_limit_holds_without_a_max_length(encoder: Encoder) -> None:
    with pytest.warns(TruncationWarning, match="1 of 2 texts were cut to 8192 tokens"):
        vectors = encoder.encode_text(["a " * 10_000, "a"])
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("max_length", [0, 1, 8193, "20", 20.5, True])
def test_a_max_length_that_is_none(encoder: Encoder, max_length: Any) -> None:
    message = refusal(lambda: encoder.encode_text("a cat", max_length=max_length))
    assert message == f"max_length is {max_length!r}, wanted an int from 2 to 8192"


def test_blank_texts_have_vectors(encoder: Encoder) -> None:
    empty, space, lines = encoder.encode_text(["", " ", "\n\n"])
    assert largest_difference(empty, space) <= SAME
    assert largest_difference(empty, lines) <= SAME
    assert largest_difference(empty, encoder.encode_text("a")) > 1e-3


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (b"a cat", "bytes"),
        (bytearray(b"a cat"), "bytearray"),
        (None, "NoneType"),
        (3, "int"),
        (2.5, "float"),
        (np.array("a cat"), "ndarray"),
    ],
)
def test_what_is_neither_a_text_nor_several(encoder: Encoder, texts: Any, found: str) -> None:
    message = refusal(lambda: encoder.encode_text(texts))
    assert message == f"texts must be a str or a sequence of str, found {found}"


@pytest.mark.parametrize(
    ("wrong", "found"),
    [(b"a", "bytes"), (None, "NoneType"), (3, "int"), (["a"], "list"), (np.array(["a"]), "ndarray")],
)
def test_what_is_no_text_among_texts_is_named_by_its_place(encoder: Encoder, wrong: Any, found: str) -> None:
    assert refusal(lambda: encoder.encode_text(["a", "b", wrong])) == f"text 2 is {found}, wanted str"


def test_a_lone_surrogate_is_no_text(encoder: Encoder) -> None:
    """What os.listdir gives for a name that is not UTF-8, or a JSON escape cut in half."""
    assert "text 1 holds a lone surrogate" in refusal(lambda: encoder.encode_text(["a", "b\udcff"]))


@pytest.mark.parametrize("text", ["a\0b", "\ufeffa", "\U0001f600" * 3, "e\u0301", "\u202eabc"])
def test_odd_unicode_is_text(encoder: Encoder, text: str) -> None:
    assert encoder.encode_text(text).shape == (DIM,)


@pytest.mark.parametrize(
    "image",
    [
        str(FILE),
        FILE,
        FILE.read_bytes(),
        bytearray(FILE.read_bytes()),
        memoryview(FILE.read_bytes()),
        "data:image/png;base64," + base64.b64encode(FILE.read_bytes()).decode(),
        Image.open(io.BytesIO(FILE.read_bytes())),
        PIXELS,
        np.asfortranarray(PIXELS),
    ],
    ids=["str", "Path", "bytes", "bytearray", "memoryview", "data URI", "PIL", "array", "strided array"],
)
def test_every_form_of_an_image_gives_one_vector(encoder: Encoder, image: Any) -> None:
    wanted = encoder.encode_image([FILE])[0]
    assert largest_difference(encoder.encode_image(image), wanted) == 0


@pytest.mark.parametrize(
    "url", ["http://example.com/a.png", "https://example.com/a.png", "HTTPS://x", "s3://b/a.png"]
)
def test_urls_are_not_fetched(encoder: Encoder, url: str) -> None:
    assert "URLs are not fetched" in refusal(lambda: encoder.encode_image(url))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (None, "image 0: found None, wanted a path"),
        (3, "image 0: found int, wanted a path"),
        (open, "image 0: found builtin_function_or_method, wanted a path"),
        ("nowhere.png", "image (nowhere.png): no such file"),
        (b"", "image: is empty"),
        (b"not an image", "image: not an image"),
        (FILE.read_bytes()[:200], "image: is damaged or cut short"),
        (PIXELS[:, :, 0], "image: found a (61, 97) array of uint8, wanted uint8 RGB"),
        (PIXELS.astype(np.float32), "image: found a (61, 97, 3) array of float32, wanted uint8 RGB"),
        (PIXELS.transpose(2, 0, 1), "image: found a (3, 61, 97) array of uint8, wanted uint8 RGB"),
        (np.float32(np.nan) * PIXELS, "it holds NaN"),
        (np.stack([PIXELS] * 2)[None], "image: found a (1, 2, 61, 97, 3) array of uint8, wanted uint8 RGB"),
    ],
    ids=["None", "int", "function", "path", "empty", "bytes", "cut", "grey", "float", "planar", "NaN", "5 axes"],
)
def test_what_is_no_image(encoder: Encoder, image: Any, told: str) -> None:
    assert told in refusal(lambda: encoder.encode_image(image))


def test_an_open_file_is_told_to_pass_what_it_holds(encoder: Encoder) -> None:
    """It can be iterated, and its lines are no images."""
    with FILE.open("rb") as file:
        message = refusal(lambda: encoder.encode_image(file))
    assert "found _io.BufferedReader (pass what its read() gives)" in message
    assert "_io.BytesIO (pass what its read() gives)" in refusal(lambda: encoder.encode_image(io.BytesIO(b"x")))


@pytest.mark.parametrize(
    "broken", [b"not an image", "nowhere.png", None, [FILE], PIXELS[..., :2], np.stack([PIXELS])]
)
def test_a_broken_image_among_others_is_named_by_its_place(encoder: Encoder, broken: Any) -> None:
    assert refusal(lambda: encoder.encode_image([FILE, PIXELS, broken, FILE])).startswith("image 2")
    assert refusal(lambda: encoder.encode_image([FILE, PIXELS, broken], batch_size=8)).startswith("image 2")


def test_progress_is_drawn_only_where_it_is_seen(encoder: Encoder, capfd: pytest.CaptureFixture[str]) -> None:
    encoder.encode_text(TEXTS)
    encoder.encode_image(IMAGES)
    assert capfd.readouterr() == ("", "")


def test_the_steps_taken_apart_give_the_same_vectors(encoder: Encoder) -> None:
    prepared = encoder.prepare_texts(["a red bicycle", "dog " * 40], task="retrieval.query", max_length=30)
    assert [item.tokens for item in prepared.items][1] == 30
    assert prepared.cut == (1,)
    with pytest.warns(TruncationWarning, match="1 of 2 texts"):
        whole = encoder.encode_text(["a red bicycle", "dog " * 40], task="retrieval.query", max_length=30)
    feeds = [encoder.family.feed([item]) for item in prepared.items]
    apart = [encoder.run_graph("text", feed)["text_embeds"][0] for feed in feeds]
    np.testing.assert_allclose(apart, whole, atol=1e-6)
    np.testing.assert_allclose(encoder.run_items(prepared.items), whole, atol=1e-6)
    picture = np.random.default_rng(3).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    item = encoder.prepare_image(picture)
    pixels = encoder.run_graph("vision", encoder.family.feed([item]))["image_embeds"]
    np.testing.assert_array_equal(pixels[0], encoder.encode_image(picture))
    np.testing.assert_array_equal(encoder.run_items([item])[0], encoder.encode_image(picture))
    with pytest.raises(InputError, match="^poster"):
        encoder.prepare_image(b"no image", label="poster")
