"""`edgeclip serve`, asked by clients of langchain, langchain-openai, llama-index and haystack and by schemathesis.

Nothing of the clients is changed but the host, and tiktoken's table, which would be downloaded. Skipped where they
are not installed: `.ci/clients` runs these in an environment of its own.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgeclip import Encoder
from tests.conftest import DATA
from tests.scenes.serving import until_ready

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported
pytest.importorskip(
    "haystack_integrations.components.embedders.jina", reason="the clients are not installed: .ci/clients"
)
pytest.importorskip("langchain_community", reason="the clients are not installed: .ci/clients")
pytest.importorskip("langchain_openai", reason="the clients are not installed: .ci/clients")
pytest.importorskip("llama_index.embeddings.jinaai", reason="the clients are not installed: .ci/clients")
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")

JINA = "https://api.jina.ai"
KEY = "jina_one-two-three"
GRAY, COLOUR = DATA / "images" / "gray.jpg", DATA / "images" / "rgb_odd.png"
TEXTS = ["a red circle", "ein blaues Quadrat", "<pad> three"]
# JSON's floats, and texts that the service batches as it likes.
SAME = 5e-6
# Cases of each operation, beside those that schemathesis derives from the schema. Measured: 12 s of one core.
EXAMPLES = 40
SEED = "20"


@pytest.fixture(scope="module")
def url(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as README starts one, with a key; it must have logged nothing amiss when all is done."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY, encoding="utf-8")
    command = [sys.executable, "-m", "edgeclip", "serve", str(bundle), "--port", "0", "--api-keys", str(keys)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("EDGECLIP_")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "serving on http://127.0.0.1:" in line
            running = line.partition("serving on ")[2].partition(",")[0]
            until_ready(running)
            yield running
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == 0
    assert [line for line in rest.splitlines() if " INFO " not in line] == []


@pytest.fixture
def langchain(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    from langchain_community.embeddings import jina

    assert jina.JINA_API_URL.startswith(JINA)
    monkeypatch.setattr(jina, "JINA_API_URL", jina.JINA_API_URL.replace(JINA, url))
    return jina.JinaEmbeddings


def llama_index(url: str, **options: Any) -> Any:
    from llama_index.embeddings.jinaai import JinaEmbedding

    client = JinaEmbedding(**{"api_key": KEY, "model": "jina-clip-v2", **options})
    assert client._api.api_url.startswith(JINA)
    client._api.api_url = client._api.api_url.replace(JINA, url)
    return client


def worst(found: Any, wanted: Any) -> float:
    assert np.shape(found) == np.shape(wanted)
    return float(np.abs(np.asarray(found) - wanted).max())


def test_langchain_embeds(langchain: Any, encoder: Encoder) -> None:
    client = langchain(jina_api_key=KEY, model_name="jina-clip-v2")
    assert worst(client.embed_documents(TEXTS), encoder.encode_text(TEXTS)) <= SAME
    assert worst(client.embed_query(TEXTS[1]), encoder.encode_text(TEXTS[1])) <= SAME
    found = client.embed_images([str(GRAY), str(COLOUR)])
    assert worst(found, encoder.encode_image([GRAY, COLOUR])) <= SAME


def test_langchain_searches(langchain: Any, encoder: Encoder) -> None:
    """Its store finds with it what the vectors say, and all of them are unit vectors to it."""
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore.from_texts(TEXTS, embedding=langchain(jina_api_key=KEY))
    found = store.similarity_search_with_score("a circle", k=len(TEXTS))
    scores = encoder.encode_text(TEXTS) @ encoder.encode_text("a circle")
    assert [document.page_content for document, _ in found] == [TEXTS[row] for row in np.argsort(-scores)]
    assert worst([score for _, score in found], np.sort(scores)[::-1]) <= SAME


def test_langchain_shows_what_was_wrong(langchain: Any) -> None:
    with pytest.raises(RuntimeError, match="a valid API key is needed"):
        langchain(jina_api_key="jina_wrong").embed_query("a")
    with pytest.raises(RuntimeError, match="input: it is empty"):
        langchain(jina_api_key=KEY).embed_documents([])
    with pytest.raises(RuntimeError, match="URLs are not fetched here; send the image as base64"):
        langchain(jina_api_key=KEY).embed_images(["https://example.com/a.png"])


@pytest.fixture
def langchain_openai(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """OpenAIEmbeddings at its defaults. Its tokenizer has a token for each byte in place of the table of OpenAI's."""
    import tiktoken.registry
    from langchain_openai import OpenAIEmbeddings

    ranks = {bytes([byte]): byte for byte in range(256)}
    table = tiktoken.Encoding("cl100k_base", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", table)
    return partial(OpenAIEmbeddings, base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def test_langchain_openai_is_refused_while_it_sends_token_ids(langchain_openai: Any) -> None:
    """Its default sends the ids of OpenAI's tokenizer; the error names the option that sends text."""
    import openai

    client = langchain_openai(model="jina-clip-v2")
    for ask in (lambda: client.embed_documents(TEXTS), lambda: client.embed_query(TEXTS[0])):
        with pytest.raises(openai.BadRequestError, match="set check_embedding_ctx_length=False") as caught:
            ask()
        assert caught.value.code == "token_ids_not_allowed"

    async def ask_and_close() -> None:
        try:
            await client.aembed_documents(TEXTS)
        finally:
            await client.async_client._client.close()

    with pytest.raises(openai.BadRequestError, match="set check_embedding_ctx_length=False"):
        asyncio.run(ask_and_close())


def test_langchain_openai_embeds_text(langchain_openai: Any, encoder: Encoder) -> None:
    client = langchain_openai(model="jina-clip-v2", check_embedding_ctx_length=False)
    assert worst(client.embed_documents(TEXTS), encoder.encode_text(TEXTS)) <= SAME
    assert worst(client.embed_query(TEXTS[1]), encoder.encode_text(TEXTS[1])) <= SAME
    short = langchain_openai(model="text-embedding-3-small", check_embedding_ctx_length=False, dimensions=16)
    assert worst(short.embed_documents(TEXTS), encoder.encode_text(TEXTS, truncate_dim=16)) <= SAME


def test_llama_index_embeds(url: str, encoder: Encoder) -> None:
    client = llama_index(url)
    wanted = encoder.encode_text(TEXTS)
    assert worst(client.get_text_embedding(TEXTS[0]), wanted[0]) <= SAME
    assert worst(client.get_text_embedding_batch(TEXTS), wanted) <= SAME
    assert worst(client.get_query_embedding(TEXTS[1]), wanted[1]) <= SAME
    pictures = encoder.encode_image([GRAY, COLOUR])
    assert worst(client.get_image_embedding(str(GRAY)), pictures[0]) <= SAME
    assert worst(client.get_image_embedding_batch([str(GRAY), str(COLOUR)]), pictures) <= SAME


def test_llama_index_embeds_without_waiting(url: str, encoder: Encoder) -> None:
    """Over aiohttp, where the other calls go over requests."""
    client = llama_index(url, embed_batch_size=2)

    async def ask() -> tuple[Any, Any, Any]:
        texts = client.aget_text_embedding_batch(TEXTS)
        pictures = client.aget_image_embedding_batch([str(GRAY), str(COLOUR)])
        return await asyncio.gather(texts, client.aget_query_embedding(TEXTS[1]), pictures)

    texts, query, pictures = asyncio.run(ask())
    assert worst(texts, encoder.encode_text(TEXTS)) <= SAME
    assert worst(query, encoder.encode_text(TEXTS[1])) <= SAME
    assert worst(pictures, encoder.encode_image([GRAY, COLOUR])) <= SAME


def test_llama_index_has_its_options(url: str, encoder: Encoder) -> None:
    task = next(iter(encoder.manifest.tasks))
    client = llama_index(url, dimensions=16, task=task)
    assert worst(client.get_query_embedding("a"), encoder.encode_text("a", task=task, truncate_dim=16)) <= SAME
    client = llama_index(url, task="retrieval.passage")
    assert worst(client.get_query_embedding("a"), encoder.encode_text("a")) <= SAME
    bits = encoder.encode_text(TEXTS) > 0
    for kind in ("binary", "ubinary"):
        client = llama_index(url, encoding_documents=kind, encoding_queries=kind)
        assert np.array_equal(client.get_text_embedding_batch(TEXTS), bits)
        assert np.array_equal(client.get_query_embedding(TEXTS[0]), bits[0])


def test_llama_index_shows_what_was_wrong(url: str) -> None:
    with pytest.raises(RuntimeError, match="a valid API key is needed"):
        llama_index(url, api_key="jina_wrong").get_query_embedding("a")
    with pytest.raises(RuntimeError, match="task: wanted one of"):
        llama_index(url, task="code.query").get_query_embedding("a")
    with pytest.raises(RuntimeError, match="late_chunking: this model cannot do it"):
        llama_index(url, late_chunking=True).get_query_embedding("a")


def test_haystack_embeds(url: str, encoder: Encoder) -> None:
    """Its embedder of images, at its defaults for jina-clip-v2, sends data URIs as plain strings, five at a time."""
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.embedders.jina import JinaDocumentImageEmbedder, JinaTextEmbedder

    where = {"api_key": Secret.from_token(KEY), "base_url": f"{url}/v1/embeddings"}
    embedder = JinaDocumentImageEmbedder(**where)
    assert embedder.model_name == "jina-clip-v2"
    paths = [GRAY, COLOUR, GRAY, COLOUR, COLOUR, GRAY]
    documents = [Document(content="what it shows", meta={"file_path": str(path)}) for path in paths]
    wanted = encoder.encode_image(paths)
    for found in (embedder.run(documents), asyncio.run(embedder.run_async(documents))):
        assert worst([document.embedding for document in found["documents"]], wanted) <= SAME
    text = JinaTextEmbedder(model="jina-clip-v2", **where).run(TEXTS[1])
    assert worst(text["embedding"], encoder.encode_text(TEXTS[1])) <= SAME
    with pytest.raises(RuntimeError, match="dimensions: wanted a whole number from 1 to"):
        JinaDocumentImageEmbedder(**where, embedding_dimension=5000).run(documents)


def test_schemathesis_finds_nothing(url: str, tmp_path: Path) -> None:
    """Every check but one: no schema can say that a base64 string must hold a picture, so a 400 for it may stand."""
    command = [
        *(str(SCHEMATHESIS), "run", f"{url}/openapi.json", "--checks", "all"),
        *("--exclude-checks", "positive_data_acceptance", "--max-examples", str(EXAMPLES), "--seed", SEED),
        *("--generation-database", "none", "--header", f"Authorization: Bearer {KEY}"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = httpx.get(f"{url}/metrics").text.splitlines()
    statuses = {line.partition('status="')[2][:3] for line in counted if line.startswith("edgeclip_requests_total")}
    assert {"200", "400", "401", "405"} <= statuses and not {one for one in statuses if one >= "500"}
