"""An Encoder opens what it needs of a bundle, says what runs, and takes no wrong answer from it."""

import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import BundleError, DeviceError, Encoder, Manifest, UnprovedWarning, WrongVectorsError
from edgeclip.manifest import FIRST_GRAPH
from tests.scenes.damage import replace_graph, reseal
from tests.scenes.encoder_inputs import DIM, FILE, IMAGES, SAME, TEXTS, largest_difference, refusal


def test_the_device_is_what_runs(bundles: dict[str, Path]) -> None:
    for target, folder in bundles.items():
        with Encoder.open(str(folder), device="cpu") as encoder:
            assert encoder.device == "cpu"
            assert encoder.manifest == Manifest.read(folder)
            assert encoder.manifest.target == target


@pytest.mark.parametrize("device", ["gpu", None, 0])
def test_an_unknown_device_is_refused(bundle: Path, device: Any) -> None:
    assert "unknown device" in refusal(lambda: Encoder.open(bundle, device=device), DeviceError)


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**12, True, "2", 1.5])
def test_threads_that_are_none(bundle: Path, threads: Any) -> None:
    message = refusal(lambda: Encoder.open(bundle, threads=threads))
    assert message == f"threads is {threads!r}, wanted an int from 1 to 1024"


def test_leaving_the_with_block_closes(bundle: Path) -> None:
    with Encoder.open(bundle, device="cpu") as encoder:
        vector = encoder.encode_text("a")
    encoder.close()  # once more, which is harmless
    calls: list[Callable[[], object]] = [
        lambda: encoder.encode_text("a"),
        lambda: encoder.encode_text([]),
        lambda: encoder.encode_image(FILE),
        lambda: encoder.encode_image([]),
        lambda: encoder.iter_images([]),
        lambda: encoder.prepare_texts("a"),
    ]
    for call in calls:
        assert refusal(call) == "the encoder is closed; open the bundle again"
    assert vector.shape == (DIM,)


def test_closing_frees_the_tokenizer(bundle: Path) -> None:
    with Encoder.open(bundle, device="cpu") as encoder:
        tokenizer = weakref.ref(encoder._graphs.parse_tokenizer())
        assert tokenizer() is not None
    assert tokenizer() is None


@pytest.mark.parametrize("options", [{"task": "x"}, {"max_length": 1}], ids=str)
def test_a_wrong_option_loads_nothing(bundle: Path, options: dict[str, Any]) -> None:
    with Encoder.open(bundle, device="cpu") as encoder:
        refusal(lambda: encoder.encode_text("a", **options))
        assert "edgeclip-load-text" not in {thread.name for thread in threading.enumerate()}
        assert not encoder._graphs.sessions


def test_an_error_inside_the_with_block_passes_through(bundle: Path) -> None:
    with pytest.raises(KeyError, match="mine"), Encoder.open(bundle, device="cpu"):
        raise KeyError("mine")


@pytest.fixture
def half_bundle(copied_bundle: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A bundle one of whose graphs is garbage of the right size and hash."""
    path = copied_bundle / f"{request.param}.onnx"
    path.write_bytes(b"?" * path.stat().st_size)
    reseal(copied_bundle)
    return copied_bundle


@pytest.mark.parametrize("half_bundle", ["vision"], indirect=True)
def test_who_encodes_texts_never_loads_the_vision_graph(half_bundle: Path, encoder: Encoder) -> None:
    with Encoder.open(half_bundle, device="cpu") as half:
        assert largest_difference(half.encode_text(TEXTS), encoder.encode_text(TEXTS)) <= SAME
        assert "cannot load the vision graph" in refusal(lambda: half.encode_image(FILE), BundleError)


@pytest.mark.parametrize("half_bundle", ["text"], indirect=True)
def test_who_encodes_images_never_loads_the_text_graph(half_bundle: Path, encoder: Encoder) -> None:
    with Encoder.open(half_bundle, device="cpu") as half:
        assert largest_difference(half.encode_image(IMAGES), encoder.encode_image(IMAGES)) <= SAME
        assert "cannot load the text graph" in refusal(lambda: half.encode_text("a"), BundleError)


@pytest.mark.parametrize("graph", ["text", "vision"])
@pytest.mark.parametrize(
    ("offset", "kind", "told"),
    [
        (np.full(DIM, np.nan), DeviceError, "the {graph} graph answered with NaN or infinity"),
        (np.full(DIM, np.inf), DeviceError, "the {graph} graph answered with NaN or infinity"),
        (np.ones(DIM // 2), BundleError, "the {graph} graph gives (1, 32) for 1 inputs of 64 dimensions"),
        (np.ones(1), BundleError, "the {graph} graph gives (1, 1) for 1 inputs of 64 dimensions"),
    ],
    ids=["NaN", "infinity", "half", "one"],
)
def test_an_answer_that_is_no_vector_is_an_error(
    copied_bundle: Path, graph: str, offset: Any, kind: type[Exception], told: str
) -> None:
    replace_graph(copied_bundle, graph, scale=np.zeros(1), offset=offset)
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        call = {"text": lambda: encoder.encode_text("a"), "vision": lambda: encoder.encode_image(FILE)}[graph]
        assert told.format(graph=graph) in refusal(call, kind)


@pytest.mark.parametrize(
    ("offset", "dim", "told"),
    [
        (np.zeros(DIM), DIM, "a vector of length 0, wanted 1"),
        (np.zeros(DIM), 8, "a vector of length 0, wanted 1"),
        (np.ones(DIM), DIM, "a vector of length 8, wanted 1"),
        (np.full(DIM, 3e38), DIM, "NaN or infinity"),
        (np.eye(DIM)[9], 8, "a vector whose first 8 dimensions are all 0"),
    ],
    ids=["zero", "cut", "long", "overflow", "zero when cut"],
)
@pytest.mark.parametrize("graph", ["text", "vision"])
def test_a_vector_that_is_not_of_length_one_is_an_error(
    copied_bundle: Path, graph: str, offset: Any, dim: int, told: str
) -> None:
    """By every function that gives vectors; the bundle's files are right, so the device is named."""
    replace_graph(copied_bundle, graph, scale=np.zeros(1), offset=offset)
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        items = encoder.prepare_texts(["a", "b c"]).items if graph == "text" else [encoder.prepare_image(FILE)]
        calls: list[Any] = [lambda: encoder.encode_text(["a", "b c"], truncate_dim=dim)]
        if graph == "vision":
            calls = [
                lambda: encoder.encode_image(FILE, truncate_dim=dim),
                lambda: encoder.encode_image([FILE, FILE], truncate_dim=dim),
                lambda: list(encoder.iter_images([FILE, FILE], truncate_dim=dim)),
            ]
        if dim == DIM:
            calls += [lambda: encoder.run_items(items), lambda: encoder.run_batch(items[:1])]
        for call in calls:
            message = refusal(call, WrongVectorsError)
            assert f"the {graph} graph answered with {told}; its files are as exported" in message


def test_a_vector_keeps_its_length_when_it_is_cut(copied_bundle: Path) -> None:
    """However little of it lies in the dimensions that are left."""
    replace_graph(copied_bundle, "text", scale=np.zeros(1), offset=np.eye(DIM)[9] + 1e-6 * np.eye(DIM)[0])
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        assert encoder.encode_text("a", truncate_dim=8).tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_a_graph_takes_what_is_prepared_already(bundle: Path, encoder: Encoder) -> None:
    with np.load(bundle / encoder.manifest.selftest) as arrays:
        ids, pixels = arrays["input_ids_1"], arrays["pixel_values"]
        texts = encoder.run_graph("text", {"input_ids": ids})["text_embeds"]
        images = encoder.run_graph("vision", {"pixel_values": pixels})["image_embeds"]
        assert largest_difference(texts[0], arrays["text_embeds"][1]) <= SAME
        assert largest_difference(images, arrays["image_embeds"]) <= SAME
    message = refusal(lambda: encoder.run_graph("text", {"input_ids": pixels}), DeviceError)
    assert message.startswith("the text graph failed on cpu with a batch of input_ids (2, 64, 64, 3) (")


def test_a_proved_bundle_opens_in_silence(int8_bundle: Path) -> None:
    with Encoder.open(int8_bundle, device="cpu") as opened:
        assert opened.manifest.proof == "proof.npz"


@pytest.mark.parametrize("gone", [["text"], ["vision"], ["text", "vision"]], ids="-".join)
def test_a_bundle_without_proof_is_a_warning_that_names_the_graph(copied_int8: Path, gone: list[str]) -> None:
    """Its self-test is none: two images prove no retrieval."""
    measured = tuple(
        one
        for one in Manifest.read(copied_int8).measured
        if one.against == "fp32 checkpoint" or FIRST_GRAPH[one.modality] not in gone
    )
    reseal(copied_int8, measured=measured)
    with pytest.warns(UnprovedWarning) as told, Encoder.open(copied_int8, device="cpu"):
        pass
    named = " and ".join(f"the {graph} graph (int8)" for graph in gone)
    assert [str(warning.message) for warning in told] == [
        f"{copied_int8}: nobody measured what {named} lost against the fp32 bundle; make it with "
        "`edgeclip quantize`, or see with `edgeclip eval --against`"
    ]
    assert told[0].filename == __file__


def test_an_fp32_graph_needs_no_proof(copied_bundle: Path) -> None:
    reseal(copied_bundle, measured=())
    with Encoder.open(copied_bundle, device="cpu") as opened:
        assert opened.manifest.measured == ()
