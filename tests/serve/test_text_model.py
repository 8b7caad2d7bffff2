"""A model of texts alone, whose tasks are adapters: what it cannot do is refused by name and not offered."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from edgeclip import Encoder
from tests.scenes.serving import serving, until_ready
from tests.scenes.text_bundle import DIMS, TASKS, make_text_bundle
from tests.scenes.web_page import opened

if TYPE_CHECKING:
    from tests.scenes.browser import Browser

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.fixture(scope="module")
def texts_only(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    folder = make_text_bundle(bundle, tmp_path_factory.mktemp("texts") / "bundle")
    with Encoder.open(folder, device="cpu") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def url(texts_only: Encoder) -> Iterator[str]:
    with serving(texts_only.folder, texts_only, allow_token_ids=True) as running:
        until_ready(running)
        yield running


def ask(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"input": ["a red bicycle", "ein Fahrrad"], **fields})


def vectors(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]], np.float32)


def refusal(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 400
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize("task", [*TASKS, None])
def test_a_task_is_its_adapter_and_its_prompt(url: str, texts_only: Encoder, task: str | None) -> None:
    wanted = texts_only.encode_text(["a red bicycle", "ein Fahrrad"], task=task)
    assert np.abs(vectors(ask(url, task=task)) - wanted).max() < 1e-6


def test_tasks_differ(texts_only: Encoder) -> None:
    """Else the tests above would pass with any adapter."""
    rows = [texts_only.encode_text("a red bicycle", task=task) for task in (*TASKS, None)]
    assert max(float(a @ b) for i, a in enumerate(rows) for b in rows[:i]) < 0.99


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("query", "retrieval.query"),
        ("search_document", "retrieval.passage"),
        ("classification", "classification"),
        ("clustering", "separation"),
    ],
)
def test_input_types_mean_the_model_s_tasks(url: str, kind: str, task: str) -> None:
    assert np.array_equal(vectors(ask(url, input_type=kind)), vectors(ask(url, task=task)))


def test_a_task_that_another_model_has_is_refused(url: str) -> None:
    """Without its adapter the vectors would be of another space, and nobody would see it."""
    error = refusal(ask(url, task="clustering"))
    assert error["param"] == "task" and error["message"] == f"task: wanted one of {', '.join(TASKS)}"


def test_token_ids_take_an_adapter_and_no_prompt(url: str, texts_only: Encoder) -> None:
    ids = texts_only.prepare_texts("a red bicycle").items[0].arrays["input_ids"].tolist()
    wanted = texts_only.encode_text(["a red bicycle"], task="separation")
    assert np.abs(vectors(ask(url, input=ids, task="separation")) - wanted).max() < 1e-6
    assert refusal(ask(url, input=ids, task="retrieval.query"))["param"] == "task"


@pytest.mark.parametrize("given", [{"image": PIXEL}, {"text": PIXEL}, PIXEL, {"url": "https://x.org/a.png"}])
def test_images_are_refused_in_one_line(url: str, given: object) -> None:
    error = refusal(ask(url, input=["a", given]))
    assert error["code"] == "modality_not_supported" and error["param"] == "input[1]"
    assert error["message"] == "input[1]: found an image, and this model takes texts only"


@pytest.mark.parametrize("dim", DIMS)
def test_dimensions_are_those_of_the_list(url: str, texts_only: Encoder, dim: int) -> None:
    found = vectors(ask(url, dimensions=dim))
    assert np.abs(found - texts_only.encode_text(["a red bicycle", "ein Fahrrad"], truncate_dim=dim)).max() < 1e-6


def test_other_dimensions_are_refused(url: str) -> None:
    for dim in (1, 17, 63):
        error = refusal(ask(url, dimensions=dim))
        assert error["message"] == "dimensions: wanted one of 16, 32, 64: this model takes no other"


def test_the_model_says_what_it_can_do(url: str) -> None:
    (model,) = httpx.get(f"{url}/v1/models").json()["data"]
    assert (model["id"], model["owned_by"], model["modalities"]) == ("texts", "made-up", ["text"])
    assert model["tasks"] == list(TASKS) and not model["task_required"]
    assert model["task_details"]["separation"] == {"prompt": "", "adapter": "separation", "modalities": ["text"]}
    assert model["tasks_without_instruction"] == []
    single = {"dim": 64, "matryoshka_dims": [16, 32, 64], "is_strict": True}
    assert model["spaces"] == {"single": single, "multi": None}


def test_the_document_says_what_it_can_do(url: str) -> None:
    schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
    fields = schemas["EmbeddingRequest"]["properties"]
    assert fields["task"]["enum"] == [*TASKS, None]
    assert 16 in fields["dimensions"]["anyOf"][0]["enum"] and "images" not in fields
    assert "image" not in str(fields["input"])


def test_there_is_no_lane_for_images(url: str) -> None:
    metrics = httpx.get(f"{url}/metrics").text
    assert 'edgeclip_queue_depth{graph="text"}' in metrics and "vision" not in metrics


def test_a_model_that_needs_a_task_names_its_tasks(bundle: Path, tmp_path: Path) -> None:
    folder = make_text_bundle(bundle, tmp_path / "bundle", task_required=True)
    with Encoder.open(folder, device="cpu") as encoder, serving(folder, encoder) as url:
        until_ready(url)
        error = refusal(ask(url))
        assert error["code"] == "missing_required_parameter" and error["param"] == "task"
        assert error["message"] == f"task: this model needs a task for texts, one of {', '.join(TASKS)}"
        assert vectors(ask(url, task="separation")).shape == (2, 64)
        assert httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]["EmbeddingRequest"]["allOf"]


def test_the_page_offers_no_pictures(browser: "Browser", url: str) -> None:
    page = opened(browser, url)
    page.wait("!document.getElementById('no-pictures').hidden")
    for hidden in ("drop", "search", "welcome", "examples", "intro"):
        assert page.run(f"getComputedStyle(document.getElementById('{hidden}')).display") == "none"
    assert "takes no pictures" in page.run("document.getElementById('no-pictures').textContent")
    assert not browser.errors
