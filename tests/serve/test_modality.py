"""A service of one modality loads the graphs of that alone, and texts are ready before an image's graph is loaded."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.errors import InputError
from edgeclip.manifest import Modality
from tests.scenes.serving import serving, troubling, until_ready, wait_for

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
INPUTS: dict[Modality, Any] = {"text": "a red bicycle", "image": {"image": GIF}}
OTHER: dict[Modality, Modality] = {"text": "image", "image": "text"}


def embed(url: str, given: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"input": [given]}, timeout=60)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_one_modality_is_served_without_the_other_ones_graph(bundle: Path, modality: Modality) -> None:
    with Encoder.open(bundle) as whole, serving(bundle, whole) as url:
        wanted = embed(url, INPUTS[modality])
    with Encoder.open(bundle, modality=modality) as encoder, serving(bundle, encoder) as url:
        until_ready(url)
        (model,) = httpx.get(f"{url}/v1/models").json()["data"]
        assert model["modalities"] == [modality]
        found = embed(url, INPUTS[modality])
        assert found.json()["data"] == wanted.json()["data"]
        assert found.headers["edgeclip-bundle"] == wanted.headers["edgeclip-bundle"]
        refused = embed(url, INPUTS[OTHER[modality]])
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "modality_not_supported")
        assert httpx.get(f"{url}/health/ready", params={"modality": modality}).status_code == 200
        assert httpx.get(f"{url}/health/ready", params={"modality": OTHER[modality]}).status_code == 400
        assert set(encoder._graphs.sessions) == set(whole.manifest.graphs_of(modality))


def test_tasks_of_other_models_mean_what_they_mean_to_the_whole_bundle(bundle: Path) -> None:
    body = {"input": ["a red bicycle"], "task": "separation"}
    with Encoder.open(bundle, modality="text") as encoder, serving(bundle, encoder) as url:
        assert httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).status_code == 200


def test_images_may_need_the_graph_of_texts(v4_bundle: Path) -> None:
    task = "retrieval.passage"
    with Encoder.open(v4_bundle) as whole:
        text, image = whole.encode_text("a page", task=task), whole.encode_image(PICTURE, task=task)
    with Encoder.open(v4_bundle, modality="text") as encoder:
        assert (encoder.modalities, set(encoder.manifest.graphs)) == (("text",), {"text"})
        np.testing.assert_array_equal(encoder.encode_text("a page", task=task), text)
        with pytest.raises(InputError, match="takes no images; it takes texts"):
            encoder.encode_image(PICTURE, task=task)
    with Encoder.open(v4_bundle, modality="image") as encoder:
        assert (encoder.modalities, set(encoder.manifest.graphs)) == (("image",), {"text", "vision"})
        np.testing.assert_array_equal(encoder.encode_image(PICTURE, task=task), image)


def test_a_modality_that_is_none_or_not_the_bundle_s_is_an_error(bundle: Path) -> None:
    with pytest.raises(InputError, match="wanted None or one of text, image"):
        Encoder.open(bundle, modality="audio")  # type: ignore[arg-type]
    with Encoder.open(bundle, modality="text") as encoder, pytest.raises(InputError, match="takes no images"):
        encoder.manifest.only("image")


def test_texts_are_ready_while_images_are_not(bundle: Path) -> None:
    with troubling(bundle) as encoder, serving(bundle, encoder, ready_s=600) as url:
        encoder.may_run.clear()
        of_texts = {"modality": "text"}
        assert httpx.get(f"{url}/health/ready", params=of_texts, timeout=60).status_code == 503

        def hold_images(graph: str, vectors: Any) -> Any:
            if graph == "vision":
                encoder.may_run.clear()
                assert encoder.may_run.wait(60)
            return vectors

        encoder.spoil = hold_images
        encoder.may_run.set()
        wait_for(lambda: httpx.get(f"{url}/health/ready", params=of_texts, timeout=60).status_code == 200)
        answer = httpx.get(f"{url}/health/ready", timeout=60)
        assert (answer.status_code, answer.json()["ready"]) == (503, ["text"])
        assert httpx.get(f"{url}/health/ready", params={"modality": "image"}, timeout=60).status_code == 503
        encoder.spoil = lambda graph, vectors: vectors
        encoder.may_run.set()
        until_ready(url)
        assert httpx.get(f"{url}/health/ready", params={"modality": "image"}, timeout=60).status_code == 200


def test_texts_are_not_ready_where_their_vectors_are_wrong(bundle: Path) -> None:
    with troubling(bundle) as encoder, serving(bundle, encoder, ready_s=0.01) as url:
        until_ready(url)
        encoder.spoil = lambda graph, vectors: np.full_like(vectors, np.nan) if graph == "text" else vectors
        of_texts = {"modality": "text"}
        wait_for(lambda: httpx.get(f"{url}/health/ready", params=of_texts, timeout=60).status_code == 503)
