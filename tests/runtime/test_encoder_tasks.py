"""Tasks with adapters, required tasks, strict dimensions, one modality alone: what an Encoder takes and refuses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.errors import UnprovedWarning
from edgeclip.families.family import Item
from edgeclip.manifest import Manifest, SingleSpace, Spaces
from tests.scenes.adapted_graph import TASKS, adapt, answer
from tests.scenes.damage import reseal
from tests.scenes.encoder_inputs import DIM, FILE, SAME, TEXTS, largest_difference, refusal


@pytest.fixture
def folder(copied_bundle: Path) -> Path:
    """A bundle whose text graph takes adapters."""
    adapt(copied_bundle)
    return copied_bundle


def wanted(items: tuple[Item, ...], adapter: str | None) -> NDArray[Any]:
    """The vectors of items, one by one, in numpy."""
    return np.concatenate(
        [answer({"input_ids": item.arrays["input_ids"][None]}, adapter)["text_embeds"] for item in items]
    )


@pytest.mark.parametrize("task", [None, *TASKS])
def test_a_task_is_its_prompt_and_its_adapter(folder: Path, task: str | None) -> None:
    facts = TASKS[task] if task else None
    prompt, adapter = (facts.prompt, facts.adapter) if facts else ("", None)
    with Encoder.open(folder, device="cpu") as encoder:
        assert encoder.tasks == tuple(TASKS)
        found = encoder.encode_text(TEXTS, task=task)
        items = encoder.prepare_texts([prompt + text for text in TEXTS]).items
        assert largest_difference(found, wanted(items, adapter)) <= SAME
        assert largest_difference(encoder.encode_text(TEXTS[0], task=task), found[0]) <= SAME
        others = [other for other in (None, *TASKS) if other != task]
        for other in others:
            assert np.abs(encoder.encode_text(TEXTS, task=other) - found).max() > 1e-2


def test_items_of_several_tasks_run_together(folder: Path) -> None:
    """In their order; none gets another's adapter."""
    with Encoder.open(folder, device="cpu") as encoder:
        tasks = [None, *TASKS] * 3
        texts = (TEXTS * 2)[: len(tasks)]
        items = [encoder.prepare_texts(text, task=task).items[0] for text, task in zip(texts, tasks, strict=True)]
        alone = np.stack([encoder.encode_text(text, task=task) for text, task in zip(texts, tasks, strict=True)])
        assert largest_difference(encoder.run_items(items), alone) <= SAME
        assert largest_difference(encoder.ask("text", texts, tasks)["single"], alone) <= SAME


@pytest.mark.parametrize("call", ["encode_text", "prepare_texts"])
def test_a_required_task_is_never_a_default(folder: Path, call: str) -> None:
    reseal(folder, task_required=True)
    with Encoder.open(folder, device="cpu") as encoder:
        names = "'retrieval.query', 'retrieval.passage', 'text-matching'"
        encode: Callable[..., object] = getattr(encoder, call)
        for texts in ("a", ["a", "b"], []):
            assert refusal(lambda texts=texts: encode(texts)) == f"this model needs a task, one of {names}"
            told = refusal(lambda texts=texts: encode(texts, task="x"))
            assert told == f"task is 'x', wanted one that the model knows: {names}"
        assert encoder.encode_text("a", task="text-matching").shape == (DIM,)
        for images in (FILE, [FILE, FILE], []):
            wanted = "this model needs a task, one of 'retrieval.passage'"
            assert refusal(lambda images=images: encoder.encode_image(images)) == wanted
            assert refusal(lambda images=images: encoder.iter_images(images)) == wanted
        assert encoder.encode_image(FILE, task="retrieval.passage").shape == (DIM,)


@pytest.mark.parametrize("images", [FILE, [FILE, FILE], []])
def test_a_task_of_texts_alone_is_refused_for_images(folder: Path, images: Any) -> None:
    with Encoder.open(folder, device="cpu") as encoder:
        wanted = "task is 'text-matching', wanted None or one that the model knows: 'retrieval.passage'"
        assert refusal(lambda: encoder.encode_image(images, task="text-matching")) == wanted
        assert refusal(lambda: encoder.iter_images(images, task="text-matching")) == wanted


@pytest.fixture
def strict_bundle(copied_bundle: Path) -> Path:
    """A bundle that is cut to 8 or to 32 dimensions and to no other."""
    single = SingleSpace(dim=DIM, matryoshka_dims=(8, 32), is_strict=True)
    reseal(copied_bundle, spaces=Spaces(single=single, multi=None))
    return copied_bundle


@pytest.mark.parametrize("dim", [1, 7, 16, 63, 65, 0, True, "8", 8.0])
def test_strict_dimensions_are_the_listed_ones(strict_bundle: Path, dim: Any) -> None:
    with Encoder.open(strict_bundle, device="cpu") as encoder:
        told = f"truncate_dim is {dim!r}, wanted one of 8, 32, 64: this model takes no other"
        for call in (encoder.encode_text, encoder.encode_image, encoder.iter_images):
            assert refusal(lambda call=call: call([], truncate_dim=dim)) == told


def test_strict_dimensions_are_taken(strict_bundle: Path, encoder: Encoder) -> None:
    with Encoder.open(strict_bundle, device="cpu") as opened:
        for dim in (8, 32, 64, None):
            wanted = encoder.encode_text(TEXTS, truncate_dim=dim)
            assert largest_difference(opened.encode_text(TEXTS, truncate_dim=dim), wanted) <= SAME


@pytest.fixture
def half_bundle(copied_bundle: Path, request: pytest.FixtureRequest) -> Path:
    """A bundle that takes inputs of one modality alone, and holds nothing of the other."""
    gone, graph = {"text": ("image", "vision"), "image": ("text", "text")}[request.param]
    manifest = Manifest.read(copied_bundle)
    left = {name: facts for name, facts in manifest.graphs.items() if name != graph}
    unused = {f"{graph}.onnx", f"{graph}.onnx_data"} | ({"tokenizer.json"} if gone == "text" else set())
    with np.load(copied_bundle / manifest.selftest) as arrays:
        theirs = ("image", "pixel") if gone == "image" else ("text", "task", "input_ids")
        kept = {name: arrays[name] for name in arrays.files if not name.startswith(theirs)}
    np.savez(copied_bundle / manifest.selftest, **kept)
    for name in unused:
        (copied_bundle / name).unlink()
    halved = dataclasses.replace(
        manifest,
        graphs=left,
        files=tuple(file for file in manifest.files if file.name not in unused),
        measured=tuple(one for one in manifest.measured if one.modality != gone),
        tasks={} if gone == "text" else manifest.tasks,
        **{gone: None},  # type: ignore[arg-type]
    )
    (copied_bundle / "manifest.json").write_text(halved.to_json(), encoding="utf-8")
    reseal(copied_bundle)
    return copied_bundle


@pytest.mark.parametrize("half_bundle", ["text"], indirect=True)
def test_a_bundle_of_texts_alone(half_bundle: Path, encoder: Encoder) -> None:
    """It opens, passes its self-test and encodes texts; images are an error at once."""
    with Encoder.open(half_bundle, device="cpu", selftest=True) as texts:
        assert texts.modalities == ("text",)
        assert largest_difference(texts.encode_text(TEXTS), encoder.encode_text(TEXTS)) <= SAME
        for call in (
            lambda: texts.encode_image(FILE),
            lambda: texts.encode_image([]),
            lambda: texts.iter_images([FILE]),
            lambda: texts.prepare_image(FILE),
        ):
            assert refusal(call) == "this bundle (model) takes no images; it takes texts"


@pytest.mark.parametrize("half_bundle", ["image"], indirect=True)
def test_a_bundle_of_images_alone(half_bundle: Path, encoder: Encoder) -> None:
    with Encoder.open(half_bundle, device="cpu", selftest=True) as images:
        assert images.modalities == ("image",)
        assert largest_difference(images.encode_image(FILE), encoder.encode_image(FILE)) <= SAME
        for call in (lambda: images.encode_text("a"), lambda: images.encode_text([])):
            assert refusal(call) == "this bundle (model) takes no texts; it takes images"


def test_a_proof_is_asked_of_every_narrowed_graph(folder: Path) -> None:
    graphs = Manifest.read(folder).graphs
    reseal(folder, graphs={**graphs, "text": dataclasses.replace(graphs["text"], precision="int8")})
    with pytest.warns(UnprovedWarning, match=r"what the text graph \(int8\) lost"):
        Encoder.open(folder, device="cpu").close()
