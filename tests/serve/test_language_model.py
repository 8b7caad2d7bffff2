"""A model whose tasks are languages: nllb-clip-siglip behind the service, and under the benchmarks of the service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from edgeclip import Encoder
from edgeclip_export import export_checkpoint
from tests.scenes.command import bench
from tests.scenes.nllb_goldens import CHECKPOINT, SAME
from tests.scenes.serving import serving, until_ready

GERMAN, RUSSIAN = "deu_Latn", "rus_Cyrl"
TEXT = "a red bicycle"


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    folder = tmp_path_factory.mktemp("nllb") / "bundle"
    export_checkpoint(CHECKPOINT, folder)
    with Encoder.open(folder, device="cpu") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def url(languages: Encoder) -> Iterator[str]:
    with serving(languages.folder, languages, allow_token_ids=True) as running:
        until_ready(running)
        yield running


def ask(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json=fields, timeout=60)


def test_token_ids_have_their_languages_code_or_none(url: str, languages: Encoder) -> None:
    """Another one than the task's is an error of the request, by its place."""
    tokenizer = Tokenizer.from_file(str(languages.folder / "tokenizer.json"))
    code, other = (tokenizer.token_to_id(name) for name in (GERMAN, RUSSIAN))
    inner = tokenizer.encode(TEXT, add_special_tokens=False).ids
    end = tokenizer.token_to_id("</s>")
    answer = ask(url, input=[TEXT, [code, *inner, end], inner], task=GERMAN)
    found = np.array([row["embedding"] for row in answer.json()["data"]], np.float32)
    assert np.abs(found - languages.encode_text(TEXT, task=GERMAN)).max() <= SAME
    refused = ask(url, input=[TEXT, [other, *inner, end]], task=GERMAN)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "input[1]", refused.text


def test_the_benchmarks_ask_with_a_language(url: str, languages: Encoder, tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    options = ["--seconds", 0.3, "--concurrency", 2, "--image-px", 64, 48, "--out", out, "--bundle", languages.folder]
    for task in ([], ["--task", RUSSIAN]):
        assert bench("service-load", url, *options, *task) == 0
        report = json.loads(out.read_text())
        assert [one["refused"] for one in report["rows"]] == [{}] * 4 and len(report["overhead"]) == 2
    assert bench("service-load", url, *options, "--task", "rus") == 1
