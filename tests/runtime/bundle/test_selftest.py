"""A bundle proves itself where it runs: a graph that answers otherwise than the checkpoint did is an error."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.bundle.selftest import TOLERANCE, Repeated, least_cosine, repeat_proof, run_selftest
from edgeclip.errors import BundleError, DeviceError, EdgeclipError, InputError
from edgeclip.inputs.square import preprocess_image
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import TARGETS, Manifest, Modality, Target
from tests.scenes.damage import replace_graph, reseal

DIM = 64
GRAPHS = ("text", "vision")


def selftest(encoder: Encoder, folder: Path) -> tuple[Repeated, ...]:
    """The results of a bundle's self-test, run by an Encoder."""
    return run_selftest(encoder.manifest, encoder.ask, folder, device=encoder.device)


def proof(encoder: Encoder, folder: Path) -> tuple[Repeated, ...]:
    """The results of a bundle's proof, run by an Encoder."""
    return repeat_proof(encoder.manifest, encoder.run_graph, folder, device=encoder.device)


def refusal(folder: Path, kind: type[EdgeclipError], test: Callable[..., object] = selftest) -> str:
    """The one line that a bundle's test ends with."""
    with Encoder.open(folder, device="cpu") as encoder, pytest.raises(kind) as caught:
        test(encoder, folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("target", TARGETS)
def test_every_targets_bundle_passes_on_the_cpu(bundles: dict[Target, Path], target: Target) -> None:
    with Encoder.open(bundles[target], device="cpu") as encoder:
        results = selftest(encoder, bundles[target])
    assert [(result.modality, result.samples) for result in results] == [("text", 6), ("image", 2)]
    for result in results:
        assert 1 - 1e-5 < result.worst_cosine < 1 + 1e-5
        assert 0 <= result.largest_difference <= TOLERANCE["fp32"]
        assert result.recorded_cosine == pytest.approx(1)


def test_its_answers_are_those_of_different_inputs(bundle: Path) -> None:
    """And more than two of them, so that a constant would be seen."""
    with np.load(bundle / Manifest.read(bundle).selftest) as arrays:
        for name in ("text_embeds", "image_embeds"):
            distances = np.abs(arrays[name][1:] - arrays[name][:1]).max(axis=1)
            assert distances.min() > 1e-2
        assert all(arrays[f"image_{index}"].shape[0] != arrays[f"image_{index}"].shape[1] for index in range(2))


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_that_answers_everything_alike(copied_bundle: Path, graph: str) -> None:
    replace_graph(copied_bundle, graph, scale=np.zeros(DIM), offset=np.full(DIM, DIM**-0.5))
    message = refusal(copied_bundle, DeviceError)
    assert message == f"self-test: the {graph} graph on cpu gives one constant vector for different inputs"


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_graph_that_answers_nan(copied_bundle: Path, graph: str, number: float) -> None:
    replace_graph(copied_bundle, graph, scale=np.zeros(DIM), offset=np.full(DIM, number))
    message = refusal(copied_bundle, DeviceError)
    assert message.startswith(f"the {graph} graph answered with NaN or infinity; its files are as exported")


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_that_answers_wrongly(copied_bundle: Path, graph: str) -> None:
    scale, offset = np.random.default_rng(0).normal(size=(2, DIM))
    replace_graph(copied_bundle, graph, scale=scale * 1e-2, offset=offset, is_unit=True)
    message = refusal(copied_bundle, DeviceError)
    assert message.startswith(f"self-test: the {graph} graph on cpu differs from the checkpoint by ")
    assert "allowed at fp32 is 5e-06" in message


def test_a_graph_that_fails(copied_bundle: Path) -> None:
    replace_graph(copied_bundle, "vision", scale=np.ones(DIM), offset=np.zeros(DIM), shape=(7, DIM))
    assert refusal(copied_bundle, DeviceError).startswith("the vision graph failed on cpu")


def test_the_smallest_known_mistake_is_seen(copied_bundle: Path) -> None:
    """A difference of 1e-5, a tenth of what tanh for erf in GELU makes."""
    edit(copied_bundle, lambda arrays: arrays["text_embeds"].__setitem__((3, 5), arrays["text_embeds"][3, 5] + 1e-5))
    assert "the text graph on cpu differs from the checkpoint by 1.0e-05" in refusal(copied_bundle, DeviceError)


def test_a_tokenizer_that_is_not_what_it_was_is_seen(copied_bundle: Path) -> None:
    """The graphs are asked as a user asks them, from str."""
    path = copied_bundle / "tokenizer.json"
    pipeline = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(pipeline | {"pre_tokenizer": None}), encoding="utf-8")
    reseal(copied_bundle)
    assert "the text graph on cpu differs from the checkpoint" in refusal(copied_bundle, DeviceError)


def test_a_resize_that_is_not_what_it_was_is_seen(copied_bundle: Path) -> None:
    reseal(copied_bundle, image=replace(Manifest.read(copied_bundle).need_image(), resize_mode="squash"))
    assert "the vision graph on cpu differs from the checkpoint" in refusal(copied_bundle, DeviceError)


def test_it_holds_its_inputs_as_the_runtime_prepares_them(bundle: Path) -> None:
    """Those that another precision is measured with, where there is neither Pillow nor this runtime."""
    manifest = Manifest.read(bundle)
    with np.load(bundle / manifest.selftest) as arrays:
        tokenizer = TextTokenizer(bundle / manifest.need_text().file, manifest.need_text())
        rows = tokenizer.encode([str(text) for text in arrays["texts"]], None).rows
        for index, row in enumerate(rows):
            np.testing.assert_array_equal(arrays[f"input_ids_{index}"], row[None])
        for index, pixels in enumerate(arrays["pixel_values"]):
            np.testing.assert_array_equal(
                preprocess_image(arrays[f"image_{index}"], manifest.need_image(), label="image"), pixels
            )


@pytest.mark.parametrize(
    ("recorded", "least"), [(0.99, 0.98), (0.5, 0.0), (1.0, 1 - 1e-5), (1.0000002, 1 - 1e-5), (0.999999, 1 - 1e-5)]
)
def test_a_loss_may_be_twice_what_was_recorded_or_harmless(recorded: float, least: float) -> None:
    assert least_cosine(recorded) == pytest.approx(least, abs=1e-12)


def test_an_int8_bundle_repeats_what_was_recorded(int8_bundle: Path) -> None:
    with Encoder.open(int8_bundle, device="cpu") as encoder:
        found = (*selftest(encoder, int8_bundle), *proof(encoder, int8_bundle))
    assert [(one.modality, one.against, one.data, one.samples) for one in found] == [
        ("text", "fp32 checkpoint", "self-test", 6),
        ("image", "fp32 checkpoint", "self-test", 2),
        ("text", "fp32 bundle", "made-up inputs", 32),
        ("image", "fp32 bundle", "made-up inputs", 8),
    ]
    for one in found:
        assert 0.99 < one.worst_cosine < 0.99999
        assert one.worst_cosine == pytest.approx(one.recorded_cosine, abs=1e-6)
        assert one.largest_difference > 1e-4


def test_an_fp32_bundle_has_no_proof_to_repeat(bundle: Path, encoder: Encoder) -> None:
    assert proof(encoder, bundle) == ()


def rerecord(folder: Path, modality: Modality, against: str, **changes: Any) -> None:
    """Change what the manifest says of one measurement."""
    measured = [
        replace(one, **changes) if (one.modality, one.against) == (modality, against) else one
        for one in Manifest.read(folder).measured
    ]
    reseal(folder, measured=tuple(measured))


@pytest.mark.parametrize(
    ("against", "test", "name"),
    [("fp32 checkpoint", selftest, "self-test"), ("fp32 bundle", proof, "proof")],
)
def test_a_device_that_loses_more_than_twice_as_much(
    copied_int8: Path, against: str, test: Callable[..., object], name: str
) -> None:
    """As a kernel that saturates would. Three quarters of the loss recorded pass, a third does not."""
    recorded = min(
        one.worst_cosine
        for one in Manifest.read(copied_int8).measured
        if (one.against, one.modality) == (against, "text")
    )
    rerecord(copied_int8, "text", against, worst_cosine=1 - 0.75 * (1 - recorded))
    with Encoder.open(copied_int8, device="cpu") as encoder:
        test(encoder, copied_int8)
    rerecord(copied_int8, "text", against, worst_cosine=1 - (1 - recorded) / 3)
    message = refusal(copied_int8, DeviceError, test)
    assert message == (
        f"{name}: the text graph on cpu has a worst cosine of {recorded:.6f} to the {against}, wanted "
        f"{1 - 2 / 3 * (1 - recorded):.6f} or more: {1 - (1 - recorded) / 3:.6f} was measured when it was written; "
        "another device or onnxruntime version may do better"
    )


@pytest.mark.parametrize("graph", GRAPHS)
def test_an_int8_graph_that_answers_wrongly(copied_int8: Path, graph: str) -> None:
    scale, offset = np.random.default_rng(0).normal(size=(2, DIM))
    replace_graph(copied_int8, graph, scale=scale * 1e-2, offset=offset, is_unit=True)
    for test, name in ((selftest, "self-test"), (proof, "proof")):
        assert refusal(copied_int8, DeviceError, test).startswith(f"{name}: the {graph} graph on cpu has a worst")
    replace_graph(copied_int8, graph, scale=np.zeros(DIM), offset=np.full(DIM, DIM**-0.5))
    for test in (selftest, proof):
        assert refusal(copied_int8, DeviceError, test).endswith("gives one constant vector for different inputs")


@pytest.mark.parametrize("test", [selftest, proof])
def test_a_narrowed_graph_without_a_record(copied_int8: Path, test: Callable[..., object]) -> None:
    for against in ("fp32 checkpoint", "fp32 bundle"):
        rerecord(copied_int8, "text", against, data="something else")
    assert "the text graph on cpu is int8, and the manifest does not say what it gave when written" in refusal(
        copied_int8, BundleError, test
    )


def test_only_what_is_narrowed_is_proved_again(copied_int8: Path) -> None:
    graphs = Manifest.read(copied_int8).graphs
    reseal(copied_int8, graphs={**graphs, "text": replace(graphs["text"], precision="fp32")})
    with Encoder.open(copied_int8, device="cpu") as encoder:
        assert [one.modality for one in proof(encoder, copied_int8)] == ["image"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda arrays: arrays.pop("input_ids_3"), "cannot be read"),
        (lambda arrays: arrays.pop("pixel_values"), "cannot be read"),
        (lambda arrays: arrays.update(text_embeds=arrays["text_embeds"][:, :5]), "(32, 5) answers of texts"),
        (
            lambda arrays: arrays.update(pixel_values=arrays["pixel_values"][:3]),
            "(8, 64) answers of images",
        ),
        (lambda arrays: arrays.update(image_embeds=np.zeros((0, 64), np.float32)), "(0, 64) answers of images"),
    ],
)
def test_a_proof_with_something_missing(
    copied_int8: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    edit(copied_int8, change, "proof.npz")
    message = refusal(copied_int8, BundleError, proof)
    assert message.startswith(f"{copied_int8 / 'proof.npz'}: ") and told in message


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "selftest.npz") -> None:
    """Rewrite the self-test, or the proof, with something changed in it."""
    path = folder / name
    with np.load(path) as arrays:
        changed = dict(arrays)
    change(changed)
    np.savez(path, **changed)
    reseal(folder)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + b"\x00" * 100])
def test_a_self_test_that_is_none(copied_bundle: Path, content: bytes) -> None:
    (copied_bundle / "selftest.npz").write_bytes(content)
    reseal(copied_bundle)
    assert refusal(copied_bundle, BundleError).startswith(f"{copied_bundle / 'selftest.npz'}: cannot be read (")


def test_a_self_test_cut_short(copied_bundle: Path) -> None:
    path = copied_bundle / "selftest.npz"
    whole = path.read_bytes()
    for size in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        reseal(copied_bundle)
        assert "selftest.npz: cannot be read (" in refusal(copied_bundle, BundleError)


class Trap:
    """Unpickling one fails the test: whoever can write a bundle could run anything."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return pytest.fail, ("it was unpickled",)


def test_pickled_objects_are_not_read(copied_bundle: Path) -> None:
    edit(copied_bundle, lambda arrays: arrays.update(texts=np.array([Trap()] * 5, dtype=object)))
    assert "selftest.npz: cannot be read (" in refusal(copied_bundle, BundleError)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    (copied_bundle / "selftest.npz").write_bytes(buffer.getvalue())
    reseal(copied_bundle)
    assert "selftest.npz: cannot be read (" in refusal(copied_bundle, BundleError)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda arrays: arrays.pop("texts"), BundleError, "cannot be read"),
        (lambda arrays: arrays.pop("image_1"), BundleError, "cannot be read"),
        (lambda arrays: arrays.update(texts=arrays["texts"][:4]), BundleError, "(6, 64) answers of texts"),
        (
            lambda arrays: arrays.update(text_embeds=arrays["text_embeds"][:, :32]),
            BundleError,
            "(6, 32) answers of texts for 6 inputs",
        ),
        (
            lambda arrays: arrays.update(image_embeds=arrays["image_embeds"][:0]),
            BundleError,
            "(0, 64) answers of images for 0 inputs",
        ),
        (lambda arrays: arrays.update(image_0=np.zeros((4, 4))), InputError, "image 0: found a (4, 4) array"),
    ],
)
def test_a_self_test_with_something_missing(
    copied_bundle: Path, change: Callable[[dict[str, Any]], object], kind: type[EdgeclipError], told: str
) -> None:
    edit(copied_bundle, change)
    assert told in refusal(copied_bundle, kind)
