"""Large requests of the service: they keep no small one waiting, end with their clients, and have their limits."""

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeclip.serve.http.request_body import parse_aside
from tests.conftest import DATA
from tests.scenes.serving import Troubled, serving, troubling, until_ready, wait_for
from tests.serve.api.test_request import LIMITS

GRAY = DATA / "images" / "gray.jpg"


@pytest.fixture
def troubled(bundle: Path) -> Iterator[Troubled]:
    with troubling(bundle) as encoder:
        yield encoder


def hold_long_texts(troubled: Troubled, gate: threading.Semaphore) -> list[str]:
    """The first letters of texts that are tokenised in a thread, as they get there; each waits at the gate."""
    asked: list[str] = []
    tokenize = troubled.family.texts

    def held(texts: list[str], *options: Any) -> Any:
        if sum(map(len, texts)) > 1000:
            asked.append(texts[0][0])
            assert gate.acquire(timeout=60)
        return tokenize(texts, *options)

    troubled.family.texts = held  # type: ignore[method-assign,assignment]
    return asked


# Four slices, for each text has more than half of a slice's letters; but hardly a token, so that the graph is quick.
LARGE, PAGE = ["x" + " " * 150_000] * 4, "page " * 400


def test_the_largest_requests_keep_nobody_waiting(bundle: Path, troubled: Troubled) -> None:
    """Two of them hold both threads: a word is answered meanwhile, and a page between their slices."""
    gate = threading.Semaphore(0)
    with serving(bundle, troubled, ready_s=600) as url:
        until_ready(url)
        asked = hold_long_texts(troubled, gate)
        statuses: list[int] = []

        def ask(given: Any) -> threading.Thread:
            def post() -> None:
                statuses.append(httpx.post(f"{url}/v1/embeddings", json={"input": given}, timeout=60).status_code)

            thread = threading.Thread(target=post)
            thread.start()
            return thread

        asking = [ask(LARGE), ask(LARGE)]
        wait_for(lambda: asked == ["x", "x"])
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "word"}, timeout=60).status_code == 200
        asking.append(ask(PAGE))
        wait_for(lambda: "edgeclip_requests_in_progress 4.0\n" in httpx.get(f"{url}/metrics").text)
        time.sleep(0.1)
        gate.release(100)
        for thread in asking:
            thread.join()
    assert statuses == [200] * 3
    assert sorted(asked) == ["p"] + ["x"] * 8
    assert asked.index("p") <= 6


def test_a_client_that_leaves_is_not_tokenised_to_the_end(bundle: Path, troubled: Troubled) -> None:
    gate = threading.Semaphore(0)
    with serving(bundle, troubled, ready_s=600) as url:
        until_ready(url)
        asked = hold_long_texts(troubled, gate)
        with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{url}/v1/embeddings", json={"input": LARGE}, timeout=0.5)
        wait_for(lambda: "edgeclip_requests_in_progress 1.0\n" in httpx.get(f"{url}/metrics").text)
        gate.release(100)
        assert httpx.post(f"{url}/v1/embeddings", json={"input": PAGE}, timeout=60).status_code == 200
    assert asked == ["x", "p"]


@pytest.mark.parametrize("body", [b'{"input": "%b"}', b'{"input": ["a", "%b\\ud83d"]}', b'{"input": "%b'])
def test_a_long_body_is_parsed_and_its_fault_looked_for_beside_the_event_loop(body: bytes) -> None:
    async def is_done_at_once(size: int) -> bool:
        task = asyncio.create_task(parse_aside(bytearray(body % (b"a" * size)), LIMITS))
        await asyncio.sleep(0)
        is_done = task.done()
        await asyncio.gather(task, return_exceptions=True)
        return is_done

    assert asyncio.run(is_done_at_once(10))
    assert not asyncio.run(is_done_at_once(65_536))


def test_a_million_names_or_lists_are_refused_before_they_are_parsed(bundle: Path, troubled: Troubled) -> None:
    """Parsing held the event loop for a second, and every answer with it. As many commas in texts are taken."""
    many = 400_000
    with serving(bundle, troubled, ready_s=600) as url, httpx.Client(base_url=url, timeout=60) as client:
        until_ready(url)
        for body in (
            b'{"input": "a",%b}' % b",".join(b'"k%d":1' % index for index in range(many)),
            b'{"input": [%b]}' % b",".join([b"[]"] * many),
            b'{"input": [%b]}' % b",".join([b'"a"'] * many),
        ):
            answer = client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
            assert "17408 values and names, for at most 2048 inputs" in answer.json()["detail"]
        for ids in ([5] * many, [[1, 2]] * 20_000):  # told with the option of the client that sends them
            answer = client.post("/v1/embeddings", json={"input": ids})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "token_ids_not_allowed")
            assert "check_embedding_ctx_length=False" in answer.json()["detail"]
        texts = [","] * 1000 + ["a,b,c," * 5000] * 2
        assert client.post("/v1/embeddings", json={"input": texts, "truncate": True}).status_code == 200


def test_images_that_cannot_be_done_in_time_are_refused(bundle: Path, troubled: Troubled) -> None:
    """As soon as one such request has shown it, for clients ask again by themselves; and only for a while."""

    def slow(graph: str, vectors: Any) -> Any:
        time.sleep(0.1 * len(vectors) if graph == "vision" else 0)
        return vectors

    image = {"image": base64.b64encode(GRAY.read_bytes()).decode()}
    with serving(bundle, troubled, request_timeout_s=2.0, ready_s=600) as url, httpx.Client(timeout=60) as client:
        until_ready(url)
        troubled.spoil = slow

        def ask(images: int) -> httpx.Response:
            return client.post(f"{url}/v1/embeddings", json={"input": [image] * images})

        answer = ask(40)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert "and an image takes 0." in answer.json()["detail"]
        answer = ask(40)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "array_above_max_length")
        most = int(answer.json()["detail"].partition("at most ")[2].split()[0])
        assert 1 <= most < 40
        assert ask(max(1, most // 2)).status_code == 200
        troubled.spoil = lambda graph, vectors: vectors
        time.sleep(2.1)
        assert ask(40).status_code == 200
