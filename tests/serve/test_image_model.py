"""A model of images alone: texts are refused by their place, and nothing of texts is offered."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from edgeclip import Encoder, Manifest
from tests.conftest import DATA
from tests.scenes.serving import serving, until_ready

GRAY = DATA / "images" / "gray.jpg"


@pytest.fixture(scope="module")
def images_only(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    """The golden bundle without its texts."""
    folder = tmp_path_factory.mktemp("images")
    manifest = Manifest.read(bundle)
    kept = tuple(file for file in manifest.files if not file.name.startswith(("text", "tokenizer")))
    for file in kept:
        shutil.copyfile(bundle / file.name, folder / file.name)
    graphs = {"vision": manifest.graphs["vision"]}
    measured = tuple(one for one in manifest.measured if one.modality == "image")
    changed = dataclasses.replace(manifest, text=None, tasks={}, graphs=graphs, files=kept, measured=measured)
    (folder / "manifest.json").write_text(changed.to_json(), encoding="utf-8")
    with Encoder.open(folder, device="cpu") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def url(images_only: Encoder) -> Iterator[str]:
    with serving(images_only.folder, images_only) as running:
        until_ready(running)
        yield running


def image() -> str:
    import base64

    return base64.b64encode(GRAY.read_bytes()).decode()


def test_images_get_the_encoder_s_vectors(url: str, images_only: Encoder) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": [{"image": image()}]}, timeout=60)
    found = np.array(answer.json()["data"][0]["embedding"], np.float32)
    assert np.abs(found - images_only.encode_image(GRAY)).max() < 1e-6


@pytest.mark.parametrize("given", ["a red bicycle", {"text": "a"}])
def test_texts_are_refused_in_one_line(url: str, given: object) -> None:
    error = httpx.post(f"{url}/v1/embeddings", json={"input": [{"image": image()}, given]}).json()["error"]
    assert (error["code"], error["param"]) == ("modality_not_supported", "input[1]")
    assert error["message"] == "input[1]: found a text, and this model takes images only"


def test_the_model_and_the_document_say_what_it_takes(url: str) -> None:
    (model,) = httpx.get(f"{url}/v1/models").json()["data"]
    assert model["modalities"] == ["image"] and model["tasks"] == [] and "max_length" not in model
    document = httpx.get(f"{url}/openapi.json").json()
    fields = document["components"]["schemas"]["EmbeddingRequest"]["properties"]
    assert "texts" not in fields and "images" in fields and "characters" not in str(fields["input"])
    example = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert httpx.post(f"{url}/v1/embeddings", json=example, timeout=60).status_code == 200
