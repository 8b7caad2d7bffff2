"""The whole way, checkpoint to vector, equals the official code's answers: every task and none, both layouts.

`e2e` holds what it gave for sentences, `text` for ids. The graph has no mask, so of a padded batch each row is asked
alone, without its padding; of the rows whose mask hides something inside a text, none can be asked.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

from edgeclip import Encoder, InputError, Manifest, TruncationWarning
from edgeclip.families.family import Item
from edgeclip.manifest import TARGETS, Target
from edgeclip_export import export_checkpoint
from tests.conftest import made_once
from tests.scenes.v3_goldens import (
    CONTROLS,
    E2E,
    INDEX,
    NORMALISED,
    OFFICIAL,
    SENTENCES,
    TASKS,
    TEXT,
    copy_converted,
    largest_difference,
    unit,
)

ANY_TASK = (*TASKS, None)
CASES = [
    name
    for name in TEXT.files
    if name.endswith(".features") and name.partition(".")[0] in ("mixed", "nopad", "single", "long")
]


@pytest.fixture(scope="module", params=TARGETS)
def opened(request: pytest.FixtureRequest, shared: Path) -> Iterator[Encoder]:
    """The official layout's bundle for each target, run on the CPU."""
    target: Target = request.param
    folder = made_once(shared / "v3" / target, lambda out: export_checkpoint(OFFICIAL, out, target=target))
    with Encoder.open(folder, device="cpu", selftest=True) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def official(shared: Path) -> Iterator[Encoder]:
    with Encoder.open(made_once(shared / "v3" / "cpu", lambda out: export_checkpoint(OFFICIAL, out))) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    folder = tmp_path_factory.mktemp("converted")
    found = []
    export_checkpoint(
        copy_converted(folder / "model"), folder / "bundle", progress=lambda what, done, total: found.append(what)
    )
    assert "found the converted layout, a base and 5 PEFT folders" in found
    with Encoder.open(folder / "bundle", device="cpu", selftest=True) as encoder:
        yield encoder


@pytest.mark.parametrize("case", CASES)
def test_ids_give_the_references_vectors(opened: Encoder, case: str) -> None:
    batch, _, name = case.removesuffix(".features").partition(".")
    task = None if name == "none" else name
    for row, (ids, wanted) in enumerate(rows(batch, task)):
        assert largest_difference(run(opened, ids, task), wanted) <= NORMALISED, row


@pytest.mark.parametrize("task", ANY_TASK)
def test_sentences_give_the_references_vectors(opened: Encoder, task: str | None) -> None:
    assert largest_difference(encode(opened, task=task), E2E[f"encode.{task or 'none'}"]) <= NORMALISED


@pytest.mark.parametrize("task", ANY_TASK)
def test_the_converted_layout_gives_the_references_vectors(converted: Encoder, task: str | None) -> None:
    assert largest_difference(encode(converted, task=task), E2E[f"encode.{task or 'none'}"]) <= NORMALISED


def test_both_layouts_give_one_bundle(official: Encoder, converted: Encoder) -> None:
    for name in (*(facts.file for facts in official.manifest.adapters.values()), "text.onnx_data", "text.onnx"):
        assert official.manifest.file(name).sha256 == converted.manifest.file(name).sha256


@pytest.mark.parametrize("dim", [8, 24, 48, 72])
def test_a_dimension_of_the_list_gives_the_references_vectors(official: Encoder, dim: int) -> None:
    found = encode(official, task="retrieval.query", truncate_dim=dim)
    assert largest_difference(found, E2E[f"encode.retrieval.query.trunc{dim}"]) <= NORMALISED


@pytest.mark.parametrize("length", [20, 512])
def test_a_max_length_gives_the_references_vectors(official: Encoder, length: int) -> None:
    found = encode(official, task="retrieval.passage", max_length=length)
    assert largest_difference(found, E2E[f"encode.retrieval.passage.max{length}"]) <= NORMALISED


def test_one_sentence_gives_one_vector(official: Encoder) -> None:
    wanted = E2E["encode.retrieval.query.single"]
    index = int(np.abs(E2E["encode.retrieval.query"] - wanted).max(axis=1).argmin())
    found = official.encode_text(SENTENCES[index], task="retrieval.query")
    assert largest_difference(found, wanted) <= NORMALISED


@pytest.mark.parametrize("task", TASKS)
def test_token_ids_are_the_references_cut_at_its_limit(official: Encoder, task: str) -> None:
    """The prompt, literal special tokens and the cut of a text of more than 1000 tokens among them."""
    prepared = official.prepare_texts(SENTENCES, task=task)
    assert [list(item.arrays["input_ids"]) for item in prepared.items] == INDEX["input_ids"][task]
    assert max(len(ids) for ids in INDEX["input_ids"][task]) == official.manifest.need_text().max_length == 1060
    assert len(prepared.cut) == sum(len(ids) == 1060 for ids in INDEX["input_ids"][task])


@pytest.mark.parametrize("task", ["text-matching", None])
def test_a_padding_token_inside_a_text_counts_as_any_other(official: Encoder, task: str | None) -> None:
    ids, mask = TEXT["interior.input_ids"][0], TEXT["interior.attention_mask"][0]
    assert (ids == 1).any() and mask.all()
    wanted = unit(TEXT[f"interior.{task or 'none'}.features"][0])
    assert largest_difference(run(official, ids, task), wanted) <= NORMALISED


CONTROL_CASES = [name for name in CONTROLS.files if name.startswith("mixed.")]


@pytest.mark.parametrize("name", CONTROL_CASES)
def test_each_mistake_is_seen_to_fail(official: Encoder, name: str) -> None:
    """What an implementation with one mistake gives is held against ours by the same bound, and does not pass."""
    task = name.removeprefix("mixed.").rpartition(".")[0]
    found = np.stack([run(official, ids, task) for ids, _ in rows("mixed", task)])
    assert largest_difference(found, unit(CONTROLS[name])) > 3 * NORMALISED


def test_a_mask_made_of_the_ids_is_seen_to_fail(official: Encoder) -> None:
    (name,) = set(CONTROLS.files) - set(CONTROL_CASES)
    found = run(official, TEXT["interior.input_ids"][0], "text-matching")
    assert largest_difference(found, unit(CONTROLS[name][0])) > 3 * NORMALISED


def test_a_forgotten_prompt_is_seen_to_fail(official: Encoder) -> None:
    prepared = official.prepare_texts(SENTENCES, task=None)
    found = np.stack([run(official, item.arrays["input_ids"], "retrieval.query") for item in prepared.items])
    assert largest_difference(found, E2E["st.task_only"]) <= NORMALISED
    assert largest_difference(found, E2E["encode.retrieval.query"]) > 0.1


def test_a_batch_of_several_tasks_is_one_adapter_for_each_row(official: Encoder) -> None:
    """The reference's adapter_mask; here items of different adapters are in different batches."""
    asked = zip(TEXT["mixed_tasks.adapter_index"], rows("mixed", None), strict=True)
    items = [
        Item(graph="text", arrays={"input_ids": ids}, tokens=len(ids), alike=len(ids), adapter=TASKS[int(index)])
        for index, (ids, _) in asked
    ]
    wanted = unit(TEXT["mixed_tasks.features"])
    assert largest_difference(official.run_items(items), wanted) <= NORMALISED


def test_what_the_model_does_not_have_is_refused(official: Encoder) -> None:
    assert (official.modalities, official.tasks) == (("text",), TASKS)
    with pytest.raises(InputError, match="takes no images"):
        official.encode_image("cat.png")
    with pytest.raises(InputError, match="task is 'query', wanted None or one that the model knows: 'text-matching'"):
        official.encode_text("a", task="query")
    with pytest.raises(InputError, match="truncate_dim is 9, wanted one of 8, 24, 48, 72, 96"):
        official.encode_text("a", task="retrieval.query", truncate_dim=9)


@pytest.mark.parametrize("task", ["retrieval.query", "separation"])
def test_one_merged_task_is_a_plain_bundle_of_that_task_alone(tmp_path: Path, task: str) -> None:
    manifest = export_checkpoint(OFFICIAL, tmp_path / "bundle", task=task)
    assert (tuple(manifest.tasks), manifest.task_required, manifest.adapters) == ((task,), True, {})
    assert [one.name for one in manifest.graphs["text"].inputs] == ["input_ids"]
    with Encoder.open(tmp_path / "bundle", device="cpu", selftest=True) as encoder:
        assert largest_difference(encode(encoder, task=task), E2E[f"encode.{task}"]) <= NORMALISED
        with pytest.raises(InputError, match="needs a task"):
            encoder.encode_text("a")


def test_the_manifest_says_what_the_checkpoint_has(official: Encoder) -> None:
    manifest = Manifest.read(official.folder)
    assert (manifest.family, manifest.image, manifest.task_required) == ("jina_embeddings_v3", None, False)
    assert (manifest.spaces.single.dim, manifest.spaces.single.is_strict) == (96, True)
    assert manifest.spaces.single.matryoshka_dims == (8, 24, 48, 72, 96)
    assert manifest.tasks["retrieval.query"].prompt == "Represent the query for retrieving evidence documents: "
    assert [(task.adapter, task.modalities) for task in manifest.tasks.values()] == [(t, ("text",)) for t in TASKS]
    assert [(one.file, one.graph, one.rank) for one in manifest.adapters.values()] == [
        (f"{task}.adapter.npz", "text", 3) for task in TASKS
    ]
    (measured,) = manifest.measured
    assert (measured.modality, measured.space, measured.samples) == ("text", "single", 6 + 3 * 5)


def test_order_base_and_scale_are_the_files(tmp_path: Path, official: Encoder) -> None:
    """The banks in another order, alpha doubled with half of every B, give the same vectors; another base others."""
    folder = shutil.copytree(OFFICIAL, tmp_path / "model", copy_function=shutil.copyfile)
    order = [3, 0, 4, 2, 1]
    edit_config(folder, lora_adaptations=[TASKS[index] for index in order], lora_alpha=4)
    weights = read_bf16(folder / "model.safetensors")
    for name, tensor in weights.items():
        if "lora_" in name:
            weights[name] = np.ascontiguousarray(tensor[order]) / (2 if name.endswith("lora_B") else 1)
    save_file(weights, folder / "model.safetensors")
    export_checkpoint(folder, tmp_path / "bundle")
    with Encoder.open(tmp_path / "bundle", device="cpu") as encoder:
        assert encoder.tasks == tuple(TASKS[index] for index in order)
        for task in TASKS:
            assert largest_difference(encode(encoder, task=task), E2E[f"encode.{task}"]) <= NORMALISED
    edit_config(folder, rotary_emb_base=20000.0)
    export_checkpoint(folder, tmp_path / "other")
    with Encoder.open(tmp_path / "other", device="cpu") as encoder:
        assert largest_difference(encode(encoder, task=None), E2E["encode.none"]) > 1e-3


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read_bf16(path: Path) -> dict[str, np.ndarray]:
    """As fp32; numpy has no bfloat16."""
    return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}


def rows(batch: str, task: str | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The ids of each row of a batch without its padding, and the reference's unit vector."""
    ids, masks = TEXT[f"{batch}.input_ids"], TEXT[f"{batch}.attention_mask"]
    for row, mask, features in zip(ids, masks, TEXT[f"{batch}.{task or 'none'}.features"], strict=True):
        yield row[: int(mask.sum())], unit(features)


def run(encoder: Encoder, ids: np.ndarray, task: str | None) -> np.ndarray:
    feed = {"input_ids": ids[None].astype(np.int64)}
    vectors: np.ndarray = encoder.run_graph("text", feed, adapter=task)["text_embeds"][0]
    return vectors


def encode(encoder: Encoder, **options: object) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        return encoder.encode_text(SENTENCES, **options)  # type: ignore[arg-type]
