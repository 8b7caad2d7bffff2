"""A bundle proves itself where it runs: a tower that answers otherwise than the checkpoint did is an error."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.errors import BundleError, DeviceError, EdgeclipError, InputError
from edgeclip.manifest import TARGETS, Manifest, Target, TowerName
from edgeclip.selftest import TOLERANCE, run_selftest
from tests.damage import replace_graph, reseal

DIM = 64
TOWERS: tuple[TowerName, ...] = ("text", "vision")


def refusal(folder: Path, kind: type[EdgeclipError]) -> str:
    """The one line that a bundle's self-test ends with."""
    with Encoder.open(folder, device="cpu") as encoder, pytest.raises(kind) as caught:
        run_selftest(encoder, folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("target", TARGETS)
def test_every_targets_bundle_passes_on_the_cpu(bundles: dict[Target, Path], target: Target) -> None:
    with Encoder.open(bundles[target], device="cpu") as encoder:
        results = run_selftest(encoder, bundles[target])
    assert [(result.tower, result.samples) for result in results] == [("text", 6), ("vision", 2)]
    for result in results:
        assert 1 - 1e-5 < result.worst_cosine < 1 + 1e-5
        assert 0 <= result.largest_difference <= TOLERANCE["fp32"]


def test_its_answers_are_those_of_different_inputs(bundle: Path) -> None:
    """And more than two of them, so that a constant would be seen."""
    with np.load(bundle / Manifest.read(bundle).selftest) as arrays:
        for name in ("text_embeds", "image_embeds"):
            distances = np.abs(arrays[name][1:] - arrays[name][:1]).max(axis=1)
            assert distances.min() > 1e-2
        assert all(arrays[f"image_{index}"].shape[0] != arrays[f"image_{index}"].shape[1] for index in range(2))


@pytest.mark.parametrize("tower", TOWERS)
def test_a_tower_that_answers_everything_alike(copied_bundle: Path, tower: TowerName) -> None:
    replace_graph(copied_bundle, tower, scale=np.zeros(DIM), offset=np.full(DIM, DIM**-0.5))
    message = refusal(copied_bundle, DeviceError)
    assert message == f"self-test: the {tower} tower on cpu gives one constant vector for different inputs"


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_tower_that_answers_nan(copied_bundle: Path, tower: TowerName, number: float) -> None:
    replace_graph(copied_bundle, tower, scale=np.zeros(DIM), offset=np.full(DIM, number))
    message = refusal(copied_bundle, DeviceError)
    assert message == f"the {tower} graph answered with NaN or infinity; it does not run right on cpu"


@pytest.mark.parametrize("tower", TOWERS)
def test_a_tower_that_answers_wrongly(copied_bundle: Path, tower: TowerName) -> None:
    scale = np.random.default_rng(0).normal(size=DIM) * 1e-3
    replace_graph(copied_bundle, tower, scale=scale, offset=np.zeros(DIM))
    message = refusal(copied_bundle, DeviceError)
    assert message.startswith(f"self-test: the {tower} tower on cpu differs from the checkpoint by ")
    assert "allowed at fp32 is 5e-06" in message


def test_a_tower_that_fails(copied_bundle: Path) -> None:
    replace_graph(copied_bundle, "vision", scale=np.ones(DIM), offset=np.zeros(DIM), shape=(7, DIM))
    assert refusal(copied_bundle, DeviceError).startswith("the vision graph failed on cpu")


def test_the_smallest_known_mistake_is_seen(copied_bundle: Path) -> None:
    """A difference of 1e-5, a tenth of what tanh for erf in GELU makes."""
    edit(copied_bundle, lambda arrays: arrays["text_embeds"].__setitem__((3, 5), arrays["text_embeds"][3, 5] + 1e-5))
    assert "the text tower on cpu differs from the checkpoint by 1.0e-05" in refusal(copied_bundle, DeviceError)


def test_a_tokenizer_that_is_not_what_it_was_is_seen(copied_bundle: Path) -> None:
    """The towers are asked by the user's way, from str."""
    path = copied_bundle / "tokenizer.json"
    pipeline = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(pipeline | {"pre_tokenizer": None}), encoding="utf-8")
    reseal(copied_bundle)
    assert "the text tower on cpu differs from the checkpoint" in refusal(copied_bundle, DeviceError)


def test_a_resize_that_is_not_what_it_was_is_seen(copied_bundle: Path) -> None:
    reseal(copied_bundle, image=replace(Manifest.read(copied_bundle).image, resize_mode="squash"))
    assert "the vision tower on cpu differs from the checkpoint" in refusal(copied_bundle, DeviceError)


def test_a_precision_without_a_tolerance(copied_bundle: Path) -> None:
    reseal(copied_bundle, vision=replace(Manifest.read(copied_bundle).vision, precision="int4"))
    message = refusal(copied_bundle, BundleError)
    assert message == "self-test: the vision tower on cpu is int4, which this edgeclip cannot judge; upgrade it"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the self-test with something changed in it."""
    path = folder / "selftest.npz"
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
        (lambda arrays: arrays.update(texts=arrays["texts"][:4]), BundleError, "(6, 64) answers of the text tower"),
        (
            lambda arrays: arrays.update(text_embeds=arrays["text_embeds"][:, :32]),
            BundleError,
            "(6, 32) answers of the text tower for 6 inputs",
        ),
        (
            lambda arrays: arrays.update(image_embeds=arrays["image_embeds"][:0]),
            BundleError,
            "(0, 64) answers of the vision tower for 0 inputs",
        ),
        (lambda arrays: arrays.update(image_0=np.zeros((4, 4))), InputError, "image 0: found a (4, 4) array"),
    ],
)
def test_a_self_test_with_something_missing(
    copied_bundle: Path, change: Callable[[dict[str, Any]], object], kind: type[EdgeclipError], told: str
) -> None:
    edit(copied_bundle, change)
    assert told in refusal(copied_bundle, kind)
