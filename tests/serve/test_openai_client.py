"""The clients that people have, unmodified but for the address: OpenAI's package, and what Jina's users send."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from edgeclip import Encoder
from tests.conftest import DATA
from tests.scenes.serving import serving

openai = pytest.importorskip("openai", reason="the client is not installed")

GRAY = DATA / "images" / "gray.jpg"
SAME = 5e-6
KEY = "sk-one-two-three"


@pytest.fixture(scope="module")
def url(bundle: Path, encoder: Encoder) -> Iterator[str]:
    with serving(bundle, encoder, api_keys=(KEY,), max_items=100) as running:
        yield running


@pytest.fixture(scope="module")
def client(url: str) -> Iterator["openai.OpenAI"]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as opened:
        yield opened


def test_openai_embeds(client: "openai.OpenAI", encoder: Encoder) -> None:
    """It asks for base64 when nothing is said, and decodes it."""
    wanted = encoder.encode_text(["a", "b"])
    for options in ({}, {"encoding_format": "float"}):
        found = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"], **options)
        assert np.abs(np.array([entry.embedding for entry in found.data]) - wanted).max() <= SAME
    short = client.embeddings.create(model="m", input="a", dimensions=16)
    assert np.abs(np.array(short.data[0].embedding) - encoder.encode_text("a", truncate_dim=16)).max() <= SAME
    assert short.usage.total_tokens == short.usage.prompt_tokens == encoder.prepare_texts("a").items[0].tokens


def test_openai_embeds_many_at_once(url: str, encoder: Encoder) -> None:
    """Over its asynchronous client, whose requests share connections."""
    texts = [f"text {number}" for number in range(12)]

    async def ask() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            answers = await asyncio.gather(*(client.embeddings.create(model="m", input=text) for text in texts))
        return [answer.data[0].embedding for answer in answers]

    assert np.abs(np.array(asyncio.run(ask())) - encoder.encode_text(texts)).max() <= SAME


def test_openai_lists_models(client: "openai.OpenAI") -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(model.id).id == model.id


def test_openai_understands_the_refusals(client: "openai.OpenAI", url: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="m", input=[])
    assert (caught.value.param, caught.value.code) == ("input", "invalid_value")
    for ids in ([1, 2], [[1, 2], [3]]):
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as caught:
            client.embeddings.create(model="m", input=ids)
        assert caught.value.code == "token_ids_not_allowed"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong-key", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.embeddings.create(model="m", input="a")


def post(url: str, document: dict[str, object]) -> list[object]:
    """As langchain-community and llama-index do: a list sorted by index, or the `detail` of an error."""
    headers = {"Authorization": f"Bearer {KEY}", "Accept-Encoding": "identity", "Content-type": "application/json"}
    answer = httpx.post(f"{url}/v1/embeddings", json=document, headers=headers, timeout=60).json()
    if "data" not in answer:
        raise RuntimeError(answer["detail"])
    return [entry["embedding"] for entry in sorted(answer["data"], key=lambda entry: entry["index"])]


def test_langchain_and_llama_index(url: str, encoder: Encoder) -> None:
    texts = encoder.encode_text(["a", "b"])
    image = {"bytes": base64.b64encode(GRAY.read_bytes()).decode()}
    found = post(url, {"input": ["a", "b"], "model": "jina-embeddings-v2-base-en"})
    assert np.abs(np.array(found) - texts).max() <= SAME
    found = post(url, {"input": [image], "model": "jina-clip-v1"})
    assert np.abs(np.array(found) - encoder.encode_image([GRAY])).max() <= SAME
    bits = (texts > 0).astype(int).tolist()
    for kind, offset in (("ubinary", 0), ("binary", 128)):
        packed = post(url, {"input": ["a", "b"], "model": "jina-clip-v2", "encoding_type": kind})
        assert [np.unpackbits((np.array(row) + offset).astype("uint8")).tolist() for row in packed] == bits
    with pytest.raises(RuntimeError, match="task: wanted one of retrieval.query, retrieval.passage"):
        post(url, {"input": ["a"], "model": "jina-clip-v2", "task": "code.query"})


def test_langchain_js(url: str, encoder: Encoder) -> None:
    """@langchain/community 1.1.29 sends images as strings or objects, always a task, and spaces for line breaks."""
    file = base64.encodebytes(GRAY.read_bytes()).decode().replace("\n", " ")
    given: list[object] = ["a", file, {"text": "b"}, {"image": base64.b64encode(GRAY.read_bytes()).decode()}]
    request: dict[str, object] = {"model": "jina-clip-v2", "dimensions": 32, "normalized": True}
    found = post(url, {**request, "input": given, "task": "retrieval.passage"})
    texts, image = encoder.encode_text(["a", "b"], truncate_dim=32), encoder.encode_image(GRAY, truncate_dim=32)
    assert np.abs(np.array(found) - np.stack([texts[0], image, texts[1], image])).max() <= SAME
    found = post(url, {**request, "input": [file], "task": "retrieval.query"})
    assert np.abs(np.array(found) - image).max() <= SAME
    with pytest.raises(RuntimeError, match="the URL of an image file in place of a text"):
        post(url, {**request, "input": ["https://example.com/a.png"], "task": "retrieval.passage"})
