"""A task is one that the model has for that modality; where the model needs one, none is an error."""

import dataclasses
from typing import Any

import pytest

from edgeclip import Encoder
from edgeclip.errors import InputError
from edgeclip.families.tasks import are_languages, find_task, list_tasks
from edgeclip.manifest import AdapterFacts, FileFacts, Manifest, Modality, TaskFacts

QUERY = TaskFacts(prompt="Query: ", adapter=None, modalities=("text",))
PASSAGE = TaskFacts(prompt="", adapter="lora", modalities=("text", "image"))
POSTER = TaskFacts(prompt="", adapter="lora", modalities=("image",))
TASKS = {"query": QUERY, "passage": PASSAGE, "poster": POSTER}
LORA = AdapterFacts(file="lora.npz", graph="text", rank=1)


@pytest.fixture
def manifest(encoder: Encoder) -> Manifest:
    files = (*encoder.manifest.files, FileFacts(name="lora.npz", size_bytes=1, sha256="0"))
    return dataclasses.replace(encoder.manifest, tasks=TASKS, adapters={"lora": LORA}, files=files)


def refusal(manifest: Manifest, task: Any, modality: Modality) -> str:
    with pytest.raises(InputError) as caught:
        find_task(manifest, task, modality)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("is_required", [True, False])
def test_a_task_is_found_for_its_modalities(manifest: Manifest, is_required: bool) -> None:
    manifest = dataclasses.replace(manifest, task_required=is_required)
    assert find_task(manifest, "query", "text") == QUERY
    assert find_task(manifest, "passage", "text") == find_task(manifest, "passage", "image") == PASSAGE
    assert find_task(manifest, "poster", "image") == POSTER


def test_no_task_is_no_prompt_and_no_adapter(manifest: Manifest) -> None:
    for modality in manifest.modalities:
        found = find_task(manifest, None, modality)
        assert (found.prompt, found.adapter) == ("", None)


@pytest.mark.parametrize("task", ["Query", "", "poster", 3, True, ["query"], {"query"}, b"query"])
def test_an_unknown_task_is_told_those_of_its_modality(manifest: Manifest, task: Any) -> None:
    """A task that is for images alone is unknown to texts."""
    assert refusal(manifest, task, "text") == (
        f"task is {task!r}, wanted None or one that the model knows: 'query', 'passage'"
    )
    required = dataclasses.replace(manifest, task_required=True)
    assert refusal(required, task, "text") == f"task is {task!r}, wanted one that the model knows: 'query', 'passage'"


def test_a_task_of_texts_is_none_of_images(manifest: Manifest) -> None:
    wanted = "task is 'query', wanted None or one that the model knows: 'passage', 'poster'"
    assert refusal(manifest, "query", "image") == wanted


def test_a_required_task_is_asked_for(manifest: Manifest) -> None:
    required = dataclasses.replace(manifest, task_required=True)
    assert refusal(required, None, "text") == "this model needs a task, one of 'query', 'passage'"
    assert refusal(required, None, "image") == "this model needs a task, one of 'passage', 'poster'"


def test_a_modality_without_tasks_needs_none(manifest: Manifest) -> None:
    """Though the other one does."""
    required = dataclasses.replace(manifest, task_required=True, tasks={"query": QUERY})
    assert find_task(required, None, "image").adapter is None
    told = refusal(required, "query", "image")
    assert told.endswith("none, this model has no tasks for images")
    none = dataclasses.replace(manifest, tasks={})
    wanted = "task is 'query', wanted None or one that the model knows: none, this model has no tasks for texts"
    assert refusal(none, "query", "text") == wanted


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (None, "aa_00, aa_01, aa_02, aa_03, aa_04, aa_05, aa_06, aa_07, aa_08, aa_09, aa_10, aa_11 and 10"),
        ("DE", "deu_Latn and 21"),
        ("deu-Latn", "deu_Latn and 21"),
        ("de_DE", "deu_Latn and 21"),
        ("zzz", "aa_00, aa_01, aa_02, aa_03, aa_04, aa_05, aa_06, aa_07, aa_08, aa_09, aa_10, aa_11 and 10"),
    ],
)
def test_of_many_tasks_those_like_the_one_that_was_asked_for_are_named(asked: str | None, shown: str) -> None:
    names = [*(f"aa_{number:02}" for number in range(20)), "deu_Latn", "eng_Latn"]
    assert list_tasks(names, asked) == f"{shown} more (`edgeclip inspect` lists them)"
    assert list_tasks(names[-2:], asked, show=repr) == "'deu_Latn', 'eng_Latn'"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [(("eng_Latn", "zho_Hans"), True), (("eng_Latn", "retrieval.query"), False), (("eng_latn",), False), ((), False)],
)
def test_tasks_are_languages_where_all_are_codes(names: tuple[str, ...], wanted: bool) -> None:
    assert are_languages(names) is wanted


def test_a_missing_language_is_asked_for_as_one(manifest: Manifest) -> None:
    spoken = {code: TaskFacts(prompt=code, adapter=None, modalities=("text",)) for code in ("eng_Latn", "deu_Latn")}
    languages = dataclasses.replace(manifest, tasks=spoken, adapters={}, task_required=True)
    assert refusal(languages, None, "text") == (
        "this model needs a task, the code of a text's language, one of 'eng_Latn', 'deu_Latn'"
    )
    assert find_task(languages, None, "image").prompt == ""
