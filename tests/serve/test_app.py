"""The service over HTTP: its answers are the encoder's, its refusals are OpenAI's, whatever is sent."""

import base64
import json
import logging
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.serve.api.request_fields import FIELDS
from edgeclip.serve.images.fetch import FetchPolicy, fetch
from tests.conftest import DATA
from tests.scenes.serving import serving

GRAY, ODD = (DATA / "images" / name for name in ("gray.jpg", "rgb_odd.png"))
# The same input in another batch. Measured: 2e-7.
SAME = 5e-6


@pytest.fixture(scope="module")
def url(bundle: Path, encoder: Encoder) -> Iterator[str]:
    limits = {"max_items": 8, "max_images": 3, "max_text_chars": 200_000, "max_body_bytes": 300_000}
    with serving(bundle, encoder, max_image_bytes=100_000, max_image_pixels=100_000, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as opened:
        yield opened


def embed(client: httpx.Client, given: object, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/embeddings", json={"model": "jina-clip-v2", "input": given, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(document: dict[str, Any]) -> np.ndarray:
    assert [entry["index"] for entry in document["data"]] == list(range(len(document["data"])))
    return np.array([entry["embedding"] for entry in document["data"]], np.float32)


def refusal(answer: httpx.Response) -> tuple[int, dict[str, Any]]:
    document = answer.json()
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["detail"] == document["error"]["message"]
    return answer.status_code, document["error"]


def as_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_texts_and_images_in_their_order(client: httpx.Client, encoder: Encoder) -> None:
    uri = f"data:image/jpeg;base64,{as_base64(GRAY)}"
    items = [{"image": as_base64(ODD)}, "海滩 🚲", {"url": uri}, {"text": "b"}, {"bytes": as_base64(GRAY)}]
    found = embed(client, items)
    images, texts = encoder.encode_image([ODD, GRAY, GRAY]), encoder.encode_text(["海滩 🚲", "b"])
    wanted = np.stack([images[0], texts[0], images[1], texts[1], images[2]])
    assert np.abs(vectors(found) - wanted).max() <= SAME
    assert found["model"] == "jina-clip-v2"


def test_an_image_that_is_sent_as_a_string_is_embedded_as_an_image(client: httpx.Client, encoder: Encoder) -> None:
    """Bare base64 and data URIs of every kind, in a plain string or as a text, beside real texts."""
    image, lines = as_base64(ODD), base64.encodebytes(ODD.read_bytes()).decode()
    texts = encoder.encode_text(["data: the new oil", "iVBORw0KGgo"])
    wanted = encoder.encode_image(ODD)
    tokens = sum(item.tokens for item in encoder.prepare_texts(["data: the new oil", "iVBORw0KGgo"]).items)
    for string in (image, lines, f"data:;base64,{image}", f" DATA:image/PNG;base64,{image}",
                   f"data:application/octet-stream;base64,{lines}"):  # fmt: skip
        for item in (string, {"text": string}):
            found = embed(client, ["data: the new oil", item, {"text": "iVBORw0KGgo"}])
            assert np.abs(vectors(found) - np.stack([texts[0], wanted, texts[1]])).max() <= SAME
            assert found["usage"]["total_tokens"] == tokens + 4000
    status, error = refusal(client.post("/v1/embeddings", json={"input": [image] * 4}))
    assert (status, error["code"]) == (400, "array_above_max_length") and "4 images" in error["message"]
    jpeg2000 = base64.b64encode(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)).decode()
    status, error = refusal(client.post("/v1/embeddings", json={"input": ["a", jpeg2000]}))
    assert (status, error["param"], error["code"]) == (400, "input[1]", "invalid_image")


def test_token_ids_are_refused_unless_the_service_allows_them(
    client: httpx.Client, bundle: Path, encoder: Encoder
) -> None:
    """Ids of another model's tokenizer would give vectors of other words."""
    row = encoder.prepare_texts("a red bicycle").items[0].arrays["input_ids"].tolist()
    status, error = refusal(client.post("/v1/embeddings", json={"input": row}))
    assert (status, error["param"], error["code"]) == (400, "input", "token_ids_not_allowed")
    assert "token ids" not in json.dumps(client.get("/openapi.json").json()["components"])
    with serving(bundle, encoder, allow_token_ids=True) as url, httpx.Client(base_url=url, timeout=60) as allowed:
        found = embed(allowed, [row[1:-1], row])
        assert "token ids" in json.dumps(allowed.get("/openapi.json").json()["components"])
    assert np.abs(vectors(found) - encoder.encode_text("a red bicycle")).max() <= SAME
    assert found["usage"]["total_tokens"] == 2 * len(row)


def test_dimensions_and_task(client: httpx.Client, encoder: Encoder) -> None:
    found = embed(client, "a", dimensions="16", task="retrieval.query")
    wanted = encoder.encode_text(["a"], task="retrieval.query", truncate_dim=16)
    assert np.abs(vectors(found) - wanted).max() <= SAME
    raw = vectors(embed(client, "a", dimensions=16, normalized=False))
    assert np.abs(raw - encoder.encode_text(["a"])[:, :16]).max() <= SAME


def test_usage_counts_tokens_and_tiles(client: httpx.Client, encoder: Encoder) -> None:
    texts = ["a", "a red bicycle"]
    tokens = sum(item.tokens for item in encoder.prepare_texts(texts).items)
    assert embed(client, texts)["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert embed(client, [*texts, {"image": as_base64(GRAY)}])["usage"]["total_tokens"] == tokens + 4000


def test_a_text_that_is_cut_is_reported_or_refused(client: httpx.Client, encoder: Encoder) -> None:
    """It is an error unless a cut is asked for, as Jina documents it; one of 8192 tokens is none."""
    long = "sheep " * 9000
    found = embed(client, ["a", long], truncate=True)
    assert [entry.get("truncated") for entry in found["data"]] == [None, True]
    assert found["usage"]["total_tokens"] == 8192 + encoder.prepare_texts("a").items[0].tokens
    assert embed(client, long, truncate="END")["data"][0]["truncated"] is True
    for fields in ({}, {"truncate": False}, {"truncate": None}, {"truncate": "START"}, {"truncation": False}):
        status, error = refusal(client.post("/v1/embeddings", json={"input": ["a", long], **fields}))
        assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "input[1]")
        assert 'longer than 8192 tokens; shorten, or send "truncate": true' in error["message"]


def test_tasks_of_the_hosted_api_are_taken_and_told(client: httpx.Client, encoder: Encoder) -> None:
    """A task without an instruction gives the bare text's vector; /v1/models and the document tell which they are."""
    (entry,) = client.get("/v1/models").json()["data"]
    bare = vectors(embed(client, "a"))
    for task in entry["tasks_without_instruction"]:
        assert np.abs(vectors(embed(client, "a", task=task)) - bare).max() <= SAME
    assert "retrieval.passage" in entry["tasks_without_instruction"] and entry["tasks"] == ["retrieval.query"]
    query = encoder.encode_text(["a"], task="retrieval.query")
    assert np.abs(vectors(embed(client, "a", input_type="search_query")) - query).max() <= SAME
    task = client.get("/openapi.json").json()["components"]["schemas"]["EmbeddingRequest"]["properties"]["task"]
    assert task["enum"] == [*entry["tasks"], *entry["tasks_without_instruction"], None]
    assert "has an instruction for: retrieval.query." in task["description"]


def test_the_document_describes_every_field_and_its_default(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()["components"]["schemas"]["EmbeddingRequest"]
    assert set(schema["properties"]) == FIELDS
    assert schema["properties"]["truncate"]["default"] is False


def test_the_release_notes_example(bundle: Path, encoder: Encoder) -> None:
    """With a web server of our own, which the judge of addresses is told to take for public."""

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ODD.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    policy = FetchPolicy(is_allowed=True, allow_http=True, max_bytes=10**6, timeout_s=5, max_redirects=0)
    reach = partial(fetch, policy=policy, is_reachable=lambda *_: True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as pictures:
        Thread(target=pictures.serve_forever).start()
        picture = f"http://127.0.0.1:{pictures.server_port}/beach1.jpg"
        with serving(bundle, encoder, fetch=reach) as url:
            data = {
                "model": "jina-clip-v2",
                "dimensions": "48",
                "input": [{"text": "A beautiful sunset over the beach"}, {"url": picture}, {"image": picture}],
            }
            headers = {"Content-Type": "application/json", "Authorization": "Bearer jina_anything"}
            answer = httpx.post(f"{url}/v1/embeddings", headers=headers, content=json.dumps(data))
        pictures.shutdown()
    text, image, again = vectors(answer.json())
    assert abs(text @ image - encoder.encode_text(data["input"][0]["text"], truncate_dim=48)
               @ encoder.encode_image(ODD, truncate_dim=48)) <= SAME  # fmt: skip
    np.testing.assert_array_equal(image, again)


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        ({"input": ["a"] * 9}, 400, "array_above_max_length"),
        ({"input": [{"image": "AAAA"}] * 4}, 400, "array_above_max_length"),
        ({"input": "a" * 200_001}, 400, "string_above_max_length"),
        ({"input": {"image": "A" * 133_340}}, 413, "image_too_large"),
        ({"input": {"image": "????"}}, 400, "invalid_base64"),
        ({"input": {"image": "aaaa" + chr(252)}}, 400, "invalid_base64"),
        ({"input": {"image": "AAAA"}}, 400, "invalid_image"),
        ({"input": {"url": "https://example.org/a.png"}}, 400, "url_not_fetched"),
        ({"input": []}, 400, "invalid_value"),
        ({"input": [10**9]}, 400, "token_ids_not_allowed"),
        ({}, 400, "missing_required_parameter"),
        ({"input": "a", "dimension": 3}, 400, "unknown_parameter"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_refusals(client: httpx.Client, document: object, status: int, code: str) -> None:
    found, error = refusal(client.post("/v1/embeddings", json=document))
    assert (found, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert str(Path.home()) not in error["message"]


def test_a_body_of_one_byte_too_many(client: httpx.Client) -> None:
    """By its header, and, where that does not say, as soon as it is read."""
    body = b'{"input": "a"}'.ljust(300_000)
    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/embeddings", content=body, headers=headers).status_code == 200
    for content in (body + b" ", iter([body, b" "])):
        status, error = refusal(client.post("/v1/embeddings", content=content, headers=headers))
        assert (status, error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b'{"input": NaN}', b"\xff", b"[" * 1000, b'{"input": "\\ud800"}']
)
def test_what_is_no_json(client: httpx.Client, body: bytes) -> None:
    status, _ = refusal(client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"}))
    assert status == 400


def test_other_media_types_paths_and_methods(client: httpx.Client) -> None:
    content = b'{"input": "a"}'
    assert client.post("/v1/embeddings", content=content).status_code == 200
    for headers in ({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
        assert refusal(client.post("/v1/embeddings", content=content, headers=headers))[0] == 415
    assert refusal(client.get("/v1/embeddings"))[0] == 405
    assert refusal(client.get("/nowhere"))[0] == 404
    assert refusal(client.get("/web/..%2fapp.py"))[0] == 404
    assert refusal(client.get("/docs/..%2f__init__.py"))[0] == 404


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/health/live", "/metrics", "/v1/models"])
def test_head_is_get_without_its_body(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == client.get(path).headers["content-type"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/", {"GET", "HEAD"}), ("/v1/models", {"GET", "HEAD"}), ("/v1/embeddings", {"POST"})],
)
def test_what_a_path_does_not_take_is_told_with_what_it_takes(
    client: httpx.Client, path: str, allowed: set[str]
) -> None:
    for method in ("DELETE", "PUT", "TRACE", "BREW"):
        answer = client.request(method, path)
        if method == "BREW":  # no method that HTTP knows
            assert refusal(answer)[0] in (400, 405)
            continue
        assert refusal(answer)[0] == 405
        assert set(answer.headers["allow"].split(", ")) == allowed
    answer = client.options(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert refusal(client.options("/nowhere"))[0] == 404


def test_models(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [entry["object"] for entry in listed] == ["model"]
    name = listed[0]["id"]
    assert client.get(f"/v1/models/{name}").json() == listed[0]
    assert refusal(client.get("/v1/models/other"))[1]["code"] == "model_not_found"


def test_a_checked_model_is_the_only_one(bundle: Path, encoder: Encoder) -> None:
    with serving(bundle, encoder, model_name="jina-clip-v2", is_model_checked=True) as url:
        for model, status in (("jina-clip-v2", 200), ("text-embedding-3-small", 404), (None, 200)):
            answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a", "model": model})
            assert answer.status_code == status


def test_keys_guard_v1_alone(bundle: Path, encoder: Encoder) -> None:
    with serving(bundle, encoder, api_keys=("one-two-three",)) as url:
        for path in ("/health/live", "/metrics", "/openapi.json", "/docs"):
            assert httpx.get(url + path).status_code == 200
        for headers in ({}, {"Authorization": "Bearer one-two-thre"}):
            answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, headers=headers)
            assert refusal(answer) == (401, {
                "message": 'a valid API key is needed: "Authorization: Bearer KEY"',
                "type": "authentication_error", "param": None, "code": "invalid_api_key",
            })  # fmt: skip
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer one-two-three"}).status_code == 200


def test_cors_is_off_until_an_origin_is_named(client: httpx.Client, bundle: Path, encoder: Encoder) -> None:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/embeddings", headers=headers).headers
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=headers).headers
    with serving(bundle, encoder, cors_origins=("https://a.example",)) as url:
        answer = httpx.options(f"{url}/v1/embeddings", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        headers["Origin"] = "https://b.example"
        assert "access-control-allow-origin" not in httpx.get(f"{url}/v1/models", headers=headers).headers


def test_the_documents_work_offline(client: httpx.Client) -> None:
    """Everything that /docs loads is on this server, and its policy forbids the rest."""
    page = client.get("/docs")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe-inline" not in page.headers["content-security-policy"].partition("style-src")[0]
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js", "favicon.png"):
        assert f"docs/{name}" in page.text
        assert client.get(f"/docs/{name}").status_code == 200
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{model}",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    for path, may_load in (("/v1/embeddings", "'none'"), ("/docs", "'self'"), ("/", "'self'"), ("/web/", "'none'")):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert policy.startswith(f"default-src {may_load};") and "frame-ancestors 'none'" in policy


def test_metrics_tell_what_was_done(client: httpx.Client) -> None:
    embed(client, ["a", {"image": as_base64(GRAY)}])
    client.post("/v1/embeddings", json={})
    client.get("/nowhere/at/all")
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    for name in (
        'edgeclip_requests_total{method="POST",route="/v1/embeddings",status="200"}',
        'edgeclip_errors_total{code="missing_required_parameter",status="400"}',
        'edgeclip_requests_total{method="GET",route="unknown",status="404"}',
        'edgeclip_inputs_total{kind="image"}',
        'edgeclip_tokens_total{kind="text"}',
        'edgeclip_batch_size_count{graph="vision"}',
        'edgeclip_queue_wait_seconds_count{graph="text"}',
        'edgeclip_stage_seconds_count{stage="tokenize"}',
    ):
        assert float(lines[name]) >= 1, name
    assert float(lines['edgeclip_queue_depth{graph="text"}']) == 0
    assert "edgeclip_pending_bytes" in lines


def test_no_log_and_no_error_holds_an_input(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "my-secret-text"
    documents: list[dict[str, Any]] = [
        {"input": secret},
        {"input": {"url": f"https://{secret}/"}},
        {"input": {"image": secret}},
        {"input": secret, "task": secret},
        {"input": secret, "dimensions": secret},
        {"input": {secret: 1}},
    ]
    for document in documents:
        assert secret not in client.post("/v1/embeddings", json=document).text
    assert secret not in client.get(f"/{secret}?q={secret}").text
    client.post("/v1/embeddings", content=b'{"input": "' + secret.encode())
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("edgeclip")]
    assert len(ours) >= len(documents)
    assert not any(secret in line for line in ours)
