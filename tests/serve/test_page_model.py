"""A model of pages: single and multi vectors of texts and images of any size, as the official code has them.

The bundle is the golden jina-embeddings-v4.
"""

import base64
import io
import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from edgeclip import Encoder, MultiVectors
from edgeclip.errors import InputError
from edgeclip.serve.settings import Settings
from tests.conftest import DATA
from tests.scenes.serving import depth, serving, troubling, until_ready, wait_for
from tests.scenes.web_page import add, click, left_out, opened, search

if TYPE_CHECKING:
    from tests.scenes.browser import Browser

FOLDER = DATA / "jina_embeddings_v4"
META = json.loads((FOLDER / "meta.json").read_text())
TEXT, IMAGE = np.load(FOLDER / "text.npz"), np.load(FOLDER / "image.npz")
TEXTS: list[str] = META["text"]["texts"]
PICTURES = [
    {"image": base64.b64encode((FOLDER / "pictures" / f"{index}.png").read_bytes()).decode()} for index in range(7)
]
SINGLE, MULTI = 1e-5, 2e-5
PASSAGE = "retrieval.passage"
# The words of an image's prompt.
AROUND = 13
MULTI_DIM = 16


@pytest.fixture(scope="module")
def pages(v4_bundle: Path) -> Iterator[Encoder]:
    with Encoder.open(v4_bundle, device="cpu") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def url(pages: Encoder) -> Iterator[str]:
    with serving(pages.folder, pages) as running:
        until_ready(running)
        yield running


def test_a_wrong_multi_vector_turns_readiness_red(v4_bundle: Path) -> None:
    """At the start, and in a service that was ready: its probes ask for multi vectors in their turn."""

    def swapped(graph: str, vectors: Any) -> Any:
        is_multi = isinstance(vectors, np.ndarray) and vectors.ndim == 3
        return vectors[..., ::-1] if is_multi else vectors

    with troubling(v4_bundle) as encoder, serving(v4_bundle, encoder, ready_s=0.001) as url:
        until_ready(url)
        encoder.spoil = swapped
        wait_for(lambda: httpx.get(f"{url}/health/ready").status_code == 503)
        assert "multi vectors of" in httpx.get(f"{url}/health/ready").text
    with troubling(v4_bundle) as encoder:
        encoder.spoil = swapped
        with serving(v4_bundle, encoder) as url:
            wait_for(lambda: "multi vectors of texts" in httpx.get(f"{url}/health/ready").text)
            assert httpx.get(f"{url}/health/ready").status_code == 503


def ask(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json=fields, timeout=120)


def matrices(answer: httpx.Response) -> list[NDArray[np.float32]]:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [row["index"] for row in data] == list(range(len(data)))
    assert all("embedding" not in row and row["object"] == "embedding" for row in data)
    return [np.array(row["embeddings"], np.float32) for row in data]


def refusal(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def wanted_texts(prompt: str, adapter: str) -> list[NDArray[np.float32]]:
    lengths = TEXT[f"{prompt}/attention_mask"].sum(axis=1)
    return [rows[:length] for rows, length in zip(TEXT[f"{prompt}/{adapter}/expected_multi"], lengths, strict=True)]


def assert_same(found: list[NDArray[np.float32]], wanted: list[NDArray[np.float32]]) -> None:
    assert [one.shape for one in found] == [one.shape for one in wanted]
    assert max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True)) <= MULTI


@pytest.mark.parametrize(
    ("task", "prompt", "adapter"),
    [
        ("retrieval.query", "query", "retrieval"),
        ("code.passage", "passage", "code"),
        ("text-matching", "query", "text-matching"),
    ],
)
def test_texts_have_a_vector_for_each_token(url: str, task: str, prompt: str, adapter: str) -> None:
    answer = ask(url, input=TEXTS, task=task, return_multivector=True)
    wanted = wanted_texts(prompt, adapter)
    assert_same(matrices(answer), wanted)
    tokens = sum(map(len, wanted))
    assert answer.json()["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_texts_and_images_in_one_request(url: str) -> None:
    mixed = [PICTURES[2], TEXTS[0], PICTURES[0], TEXTS[1]]
    answer = ask(url, input=mixed, task=PASSAGE, return_multivector=True)
    texts = wanted_texts("passage", "retrieval")
    images = [IMAGE[f"{index}/retrieval/expected_multi"] for index in (2, 0)]
    wanted = [images[0], texts[0], images[1], texts[1]]
    assert_same(matrices(answer), wanted)
    assert answer.json()["usage"]["total_tokens"] == sum(map(len, wanted))


def test_single_vectors_of_the_same_inputs_at_the_same_time(url: str) -> None:
    """Batches of one space only: a text that wants one vector shares no batch with one that wants many."""

    def one(index: int) -> None:
        multi = index % 2 == 0
        answer = ask(url, input=TEXTS, task="retrieval.query", return_multivector=multi)
        if multi:
            assert_same(matrices(answer), wanted_texts("query", "retrieval"))
            return
        found = np.array([row["embedding"] for row in answer.json()["data"]], np.float32)
        assert np.abs(found - TEXT["query/retrieval/expected_single"]).max() <= SINGLE

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(32)))


@pytest.mark.parametrize("task", [PASSAGE, "code.query"])
def test_images_have_a_single_vector(url: str, task: str) -> None:
    answer = ask(url, input=PICTURES, task=task, return_multivector=False)
    adapter = task.split(".")[0]
    found = np.array([row["embedding"] for row in answer.json()["data"]], np.float32)
    wanted = np.stack([IMAGE[f"{index}/{adapter}/expected_single"] for index in range(7)])
    assert np.abs(found - wanted).max() <= SINGLE
    rows = [len(IMAGE[f"{index}/{adapter}/expected_multi"]) for index in range(7)]
    assert answer.json()["usage"]["total_tokens"] == sum(rows)
    cut = ask(url, input=PICTURES, task=task, dimensions=16)
    assert (
        np.abs(np.array([row["embedding"] for row in cut.json()["data"]]) - normalised(wanted[:, :16])).max() < 2e-5
    )


def normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize("count", [1, len(TEXTS)])
def test_every_format(url: str, count: int) -> None:
    """A short answer is written at once, a longer one sent in pieces; both hold the same."""
    given = {"task": "retrieval.query", "return_multivector": True}
    inputs = [TEXTS[0]] if count == 1 else [*TEXTS, *([PICTURES[0]] * 3), "word " * 800]
    floats = matrices(ask(url, input=inputs, **given))
    assert (sum(rows.size for rows in floats) > 16_384) == (count > 1)
    base = ask(url, input=inputs, encoding_format="base64", **given).json()["data"]
    for row, matrix in zip(base, floats, strict=True):
        assert len(row["embeddings"]) == len(matrix)
        decoded = np.stack([np.frombuffer(base64.b64decode(one), "<f4") for one in row["embeddings"]])
        assert np.array_equal(decoded, matrix)
    keyed = ask(url, input=inputs, embedding_type=["float", "ubinary", "binary"], **given).json()["data"]
    for row, matrix in zip(keyed, floats, strict=True):
        assert np.array_equal(np.array(row["embeddings"]["float"], np.float32), matrix)
        bits = np.packbits(matrix > 0, axis=1)
        assert np.array_equal(row["embeddings"]["ubinary"], bits)
        assert np.array_equal(row["embeddings"]["binary"], bits.astype(int) - 128)


def test_a_cut_text_is_marked(url: str, pages: Encoder) -> None:
    long = "word " * 3
    with serving(pages.folder, pages, max_length=6) as short:
        assert refusal(ask(short, input=long, task=PASSAGE, return_multivector=True))["param"] == "input[0]"
        answer = ask(short, input=[long], task=PASSAGE, return_multivector=True, truncate=True)
    (row,) = answer.json()["data"]
    assert row["truncated"] is True and len(row["embeddings"]) == 6
    (whole,) = matrices(ask(url, input=long, task=PASSAGE, return_multivector=True))
    assert np.abs(np.array(row["embeddings"]) - whole[:6]).max() < 1e-5  # the decoder is causal


@pytest.mark.parametrize("name", ["dimensions", "output_dimension"])
def test_multi_vectors_are_not_cut(url: str, name: str) -> None:
    error = refusal(ask(url, input="a", task=PASSAGE, return_multivector=True, **{name: 16}))
    assert error["param"] == name and "multi vectors always have 16 dimensions" in error["message"]


@pytest.mark.parametrize("value", ["true", 1, [True]])
def test_the_flag_is_a_flag(url: str, value: object) -> None:
    assert refusal(ask(url, input="a", task=PASSAGE, return_multivector=value))["param"] == "return_multivector"


@pytest.mark.parametrize("given", ["a", PICTURES[0]])
@pytest.mark.parametrize("is_multi", [False, True])
def test_a_task_is_needed_for_texts_and_images(url: str, given: object, is_multi: bool) -> None:
    error = refusal(ask(url, input=[given], return_multivector=is_multi))
    assert error["code"] == "missing_required_parameter" and "retrieval.query" in error["message"]
    assert refusal(ask(url, input=[given], task="classification"))["param"] == "task"


def test_an_answer_has_so_many_vectors_at_most(pages: Encoder) -> None:
    """Texts and images count together, and the limit is named."""
    texts, images = wanted_texts("passage", "retrieval"), [len(IMAGE["0/retrieval/expected_multi"])]
    count = len(texts[0]) + images[0]
    given = {"input": [TEXTS[0], PICTURES[0]], "task": PASSAGE}
    with serving(pages.folder, pages, max_vectors=count) as url:
        assert ask(url, **given, return_multivector=True).status_code == 200
        error = refusal(ask(url, **{**given, "input": [*given["input"], "a"]}, return_multivector=True))
        assert error["code"] == "array_above_max_length" and str(count) in error["message"]
        assert (
            ask(url, **{**given, "input": [*given["input"], "a"]}).status_code == 200
        )  # single vectors do not count


def test_an_answer_holds_its_vectors_until_it_is_sent(pages: Encoder) -> None:
    """Clients that do not read cannot make the service hold more than the bytes of all requests."""
    fields: dict[str, Any] = {
        "input": ["word " * 300] * 24,
        "task": PASSAGE,
        "return_multivector": True,
        "embedding_type": ["float", "base64", "binary", "ubinary"],
    }
    limits = {"max_pending_bytes": 2 << 20, "max_body_bytes": 1 << 20, "max_vectors": 32_000}
    small = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)])
    with (
        serving(pages.folder, pages, **limits) as url,
        httpx.Client(base_url=url, timeout=120, transport=small) as slow,
    ):
        until_ready(url)
        with slow.stream("POST", "/v1/embeddings", json=fields) as held:
            assert held.status_code == 200 and "content-length" not in held.headers
            pending = next(
                float(line.rsplit(" ", 1)[1])
                for line in httpx.get(f"{url}/metrics").text.splitlines()
                if line.startswith("edgeclip_pending_bytes ")
            )
            refused = ask(url, **fields)
            assert refused.status_code == 429 and "Retry-After" in refused.headers
            assert ask(url, input="a", task=PASSAGE, return_multivector=True).status_code == 200
            rows = json.loads(held.read())["data"]
        vectors = sum(len(row["embeddings"]["float"]) for row in rows)
        assert 20_000 < vectors < 32_000 and pending >= vectors * MULTI_DIM * 4
        assert ask(url, **fields).status_code == 200


def test_settings_that_cannot_be(pages: Encoder, encoder: Encoder, bundle: Path) -> None:
    from edgeclip.serve.app import create_app

    with pytest.raises(InputError, match="max_vectors is 65536, whose 4194304 bytes are more"):
        create_app(Settings(bundle=pages.folder, max_pending_bytes=1 << 20, max_body_bytes=1 << 20), pages)
    with pytest.raises(InputError, match="from 784 on"):
        create_app(Settings(bundle=pages.folder, max_pixels=100), pages)
    with pytest.raises(InputError, match="one size"):
        create_app(Settings(bundle=bundle, max_pixels=100_000), encoder)


def test_images_are_scaled_down_to_the_pixels_of_the_setting(pages: Encoder) -> None:
    index, limit = META["image"]["max_pixels_image_index"], META["image"]["max_pixels_override"]
    with serving(pages.folder, pages, max_pixels=limit) as url:
        answer = ask(url, input=[PICTURES[index]], task=PASSAGE)
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["max_pixels"] == limit
    found = np.array(answer.json()["data"][0]["embedding"], np.float32)
    assert np.abs(found - IMAGE["maxpix/expected_single"]).max() <= SINGLE
    assert answer.json()["usage"]["total_tokens"] <= limit // 28**2 + AROUND


def test_the_model_and_the_document_say_what_it_gives(url: str) -> None:
    (model,) = httpx.get(f"{url}/v1/models").json()["data"]
    assert model["modalities"] == ["text", "image"] and model["task_required"]
    assert model["spaces"]["multi"] == {"dim": MULTI_DIM} and model["max_pixels"] == 602_112
    document = httpx.get(f"{url}/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "enum" not in schemas["EmbeddingRequest"]["properties"]["return_multivector"]
    answers = document["paths"]["/v1/embeddings"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert [one["$ref"].rsplit("/", 1)[1] for one in answers["anyOf"]] == [
        "EmbeddingResponse",
        "MultiEmbeddingResponse",
    ]
    example = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert httpx.post(f"{url}/v1/embeddings", json=example).status_code == 200


def test_a_model_without_multi_vectors_says_so(encoder: Encoder, bundle: Path) -> None:
    with serving(bundle, encoder) as url:
        error = refusal(ask(url, input="a", return_multivector=True))
        assert error["param"] == "return_multivector" and "no multi vectors" in error["message"]
        fields = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]["EmbeddingRequest"]["properties"]
        assert fields["return_multivector"]["enum"] == [False, None]


def test_the_page_finds_pages_by_questions(browser: "Browser", url: str, pages: Encoder) -> None:
    """Pictures are passages, texts queries; tasks of other adapters are not offered, for they find nothing."""
    page = opened(browser, url)
    files = [FOLDER / "pictures" / f"{index}.png" for index in (0, 2, 3)]
    add(page, files, len(files))
    offered = page.run("[...document.getElementById('task').options].map((option) => option.value)")
    assert offered == ["retrieval.query", "retrieval.passage"]
    found = dict(search(page, "what is this"))
    query = pages.encode_text_multivector("what is this", task="retrieval.query")
    documents = pages.encode_image_multivector(files, task=PASSAGE)
    assert isinstance(documents, MultiVectors)
    scores = MultiVectors.of([query]).maxsim(documents)[0]
    assert list(found) == [files[index].name for index in np.argsort(-scores)]
    assert all(abs(found[path.name] - score) < 0.0006 for path, score in zip(files, scores, strict=True))
    assert page.run("document.querySelector('#results .score').title") == "MaxSim"
    click(page, "#results button")
    click(page, "#view-similar")
    page.wait("document.querySelector('#status').textContent.includes('ranked for')")
    assert page.run("document.querySelector('#results .name').textContent") == next(iter(found))
    assert not browser.errors


def test_the_page_holds_so_many_vectors_at_most(browser: "Browser", url: str) -> None:
    """What comes after is refused before it is sent, by its name and with the reason."""
    page = opened(browser, url)
    page.run("import('./web/vectors.js').then(({ limits }) => { limits.bytes = 1000; })")
    add(page, [FOLDER / "pictures" / f"{index}.png" for index in (0, 2)], 2)
    sent = sum(one.endswith("/v1/embeddings") for one in page.requests)
    page.choose_files("#files", [FOLDER / "pictures" / "3.png"])
    page.wait("document.querySelectorAll('#left-out-names li').length === 1")
    assert left_out(page) == {"3.png": "This page holds no more vectors. Remove some pictures first."}
    assert sum(one.endswith("/v1/embeddings") for one in page.requests) == sent
    click(page, "#clear")
    page.wait("document.querySelectorAll('#results li').length === 0")
    add(page, [FOLDER / "pictures" / "3.png"], 1)


def test_pages_of_one_request_come_before_those_of_the_next(v4_bundle: Path) -> None:
    """By what pages cost in patches; by turns of single pages all requests would be answered at the end."""
    each, requests = 3, 4
    order: list[int] = []

    def note(graph: str, found: Any) -> Any:
        order.extend(item.tokens for item in (found if graph == "vision" else ()))
        return found

    with troubling(v4_bundle) as encoder, serving(v4_bundle, encoder, ready_s=600) as url:
        until_ready(url)
        encoder.spoil = note
        encoder.may_run.clear()
        with ThreadPoolExecutor(requests) as threads:
            bodies = [{"input": [PICTURES[index]] * each, "task": PASSAGE} for index in range(requests)]
            answers = [threads.submit(ask, url, **body) for body in bodies]
            wait_for(lambda: depth(url, "vision") == each * requests - 1)
            encoder.may_run.set()
            assert all(answer.result().status_code == 200 for answer in answers)
    # The first page runs before it is known who else comes; by turns the request would change with every page.
    assert sorted(Counter(order).values()) == [each] * requests
    assert sum(one != other for one, other in pairwise(order)) <= requests


def test_token_ids_begin_with_those_of_the_prompt(pages: Encoder) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "checkpoint" / "tokenizer.json"))
    ids = tokenizer.encode(f"Query: {TEXTS[0]}").ids
    with serving(pages.folder, pages, allow_token_ids=True) as url:
        given = {"task": "retrieval.query", "return_multivector": True}
        assert_same(matrices(ask(url, input=ids, **given)), wanted_texts("query", "retrieval")[:1])
        mixed = matrices(ask(url, input=[TEXTS[1], ids, PICTURES[0]], **given))
        assert_same(mixed[:2], [wanted_texts("query", "retrieval")[index] for index in (1, 0)])
        error = refusal(ask(url, input=[TEXTS[0], ids, ids[1:]], **given))
        assert error["param"] == "input[2]" and "those of the prompt 'Query: '" in error["message"]
        assert refusal(ask(url, input=ids, task=PASSAGE))["param"] == "input[0]"
        assert refusal(ask(url, input=ids))["code"] == "missing_required_parameter"


@pytest.mark.parametrize(
    ("size", "told"), [((27, 56), "wanted 28 or more a side"), ((28, 5628), "more than 200 times")]
)
def test_images_that_the_model_does_not_take(url: str, size: tuple[int, int], told: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, "PNG")
    given = {"image": base64.b64encode(buffer.getvalue()).decode()}
    error = refusal(ask(url, input=[PICTURES[0], given], task=PASSAGE))
    assert error["param"] == "input[1]" and error["code"] == "invalid_image" and told in error["message"]


def test_a_request_cannot_set_the_pixels(url: str) -> None:
    error = refusal(ask(url, input=[PICTURES[0]], task=PASSAGE, max_pixels=100_000))
    assert error["code"] == "unknown_parameter"


def test_a_text_that_spells_markers_is_a_text(url: str, pages: Encoder) -> None:
    """Its vector is the mean over all its tokens, alone and as the first of a batch of others."""
    spelled = "see <|vision_start|><|image_pad|><|vision_end|> here"
    texts = [spelled, *TEXTS[:2]]
    answer = ask(url, input=texts, task="retrieval.query")
    found = np.array([row["embedding"] for row in answer.json()["data"]], np.float32)
    assert np.abs(found[1:] - TEXT["query/retrieval/expected_single"][:2]).max() <= SINGLE
    assert np.abs(found[0] - pages.encode_text(spelled, task="retrieval.query")).max() <= SINGLE
