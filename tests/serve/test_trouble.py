"""The service when things go wrong: slow graphs, broken ones, clients that leave, too much work, the end."""

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgeclip import BundleError, DeviceError, Encoder
from edgeclip.serve.run import serve
from edgeclip.serve.settings import Settings
from tests.conftest import DATA
from tests.scenes.command import Captured, refusal
from tests.scenes.damage import flip_byte
from tests.scenes.serving import Troubled, depth, serving, troubling, until_ready, wait_for

GRAY = DATA / "images" / "gray.jpg"


@pytest.fixture
def troubled(bundle: Path) -> Iterator[Troubled]:
    with troubling(bundle) as encoder:
        yield encoder


def test_readiness_runs_the_self_test_on_the_graphs(bundle: Path, troubled: Troubled) -> None:
    """All of it first, then one input of each graph at a time."""
    with serving(bundle, troubled, ready_s=1.0) as url:
        until_ready(url)
        assert sorted(troubled.batches) == [("text", 1)] * 6 + [("vision", 1)] * 2
        troubled.batches.clear()
        time.sleep(1.1)
        assert httpx.get(f"{url}/health/ready").json() == {"status": "ok"}
        wait_for(lambda: len(troubled.batches) == 2)
        assert sorted(troubled.batches) == [("text", 1), ("vision", 1)]


def test_readiness_holds_for_a_while(bundle: Path, troubled: Troubled) -> None:
    with serving(bundle, troubled, ready_s=600) as url:
        until_ready(url)
        troubled.batches.clear()
        for _ in range(5):
            assert httpx.get(f"{url}/health/ready").status_code == 200
        assert troubled.batches == []


def is_red(url: str, told: str) -> bool:
    answer = httpx.get(f"{url}/health/ready")
    return answer.status_code == 503 and told in answer.json()["reason"]


def test_a_device_that_answers_wrongly_is_red(bundle: Path, troubled: Troubled) -> None:
    """One constant vector, a wrong one, NaN; and green again when it has come to its senses."""

    def nan(graph: str, vectors: Any) -> Any:
        raise DeviceError(f"the {graph} graph of /some/where/model.onnx answered with NaN")

    with serving(bundle, troubled, ready_s=0.01) as url:
        until_ready(url)
        for spoil, told in (
            (lambda graph, vectors: np.roll(vectors, 1, axis=1), "differs from the checkpoint"),
            (nan, "answered with NaN"),
        ):
            troubled.spoil = spoil
            wait_for(lambda told=told: is_red(url, told))
            assert "/some/where" not in httpx.get(f"{url}/health/ready").text
            assert httpx.get(f"{url}/health/live").status_code == 200
            troubled.spoil = lambda graph, vectors: vectors
            until_ready(url)


def test_a_wedged_graph_is_red_at_once(bundle: Path, troubled: Troubled) -> None:
    with serving(bundle, troubled, wedged_s=0.2, ready_s=600) as url:
        until_ready(url)
        troubled.may_run.clear()
        with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=0.4)
        assert is_red(url, "the text graph does not come back")
        assert httpx.get(f"{url}/health/live").status_code == 200
        troubled.may_run.set()
        until_ready(url)


def test_a_failing_graph_is_503_and_not_the_end(
    bundle: Path, troubled: Troubled, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(graph: str, vectors: Any) -> Any:
        raise DeviceError("the kernel of /some/where/model.onnx failed")

    with serving(bundle, troubled, ready_s=600) as url:
        until_ready(url)
        troubled.spoil = fail
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "my-secret"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "device_error")
        troubled.spoil = lambda graph, vectors: vectors
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
    assert "the text graph failed: the kernel of <path> failed" in caplog.text
    assert "/some/where" not in answer.text + caplog.text


def test_a_bug_is_500_in_shape(bundle: Path, troubled: Troubled, caplog: pytest.LogCaptureFixture) -> None:
    """And tells neither the client nor the log what it was working on."""

    def tokenize(*_: object, **__: object) -> None:
        raise ZeroDivisionError("my-secret in /some/where")

    caplog.set_level(logging.INFO)
    with serving(bundle, troubled) as url:
        until_ready(url)
        troubled.family.texts = tokenize  # type: ignore[method-assign, assignment]
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a"})
        del troubled.family.texts
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 1 and told[0].startswith(f"a request failed: ZeroDivisionError at {Path(__file__).name}:")
    assert not any(word in answer.text + told[0] for word in ("my-secret", "/some/where"))


def test_a_full_queue_is_429(bundle: Path, troubled: Troubled) -> None:
    with serving(bundle, troubled, max_items=4, max_queued_texts=4, ready_s=600) as url:
        until_ready(url)
        troubled.may_run.clear()

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                posts = [
                    asyncio.create_task(client.post("/v1/embeddings", json={"input": ["a", "b c"]})) for _ in range(8)
                ]
                while sum(post.done() for post in posts) < 5:
                    await asyncio.sleep(0.01)
                troubled.may_run.set()
                return await asyncio.gather(*posts)

        answers = asyncio.run(crowd())
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 5 and {answer.status_code for answer in answers} == {200, 429}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert refused[0].json()["error"]["type"] == "rate_limit_error"


def test_large_requests_at_once_are_429(bundle: Path, troubled: Troubled) -> None:
    with serving(bundle, troubled, max_body_bytes=220_000, max_pending_bytes=220_000, ready_s=600) as url:
        until_ready(url)
        troubled.may_run.clear()
        body = json.dumps({"input": "a"}).ljust(210_000).encode()

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                posts = [asyncio.create_task(client.post("/v1/embeddings", content=body)) for _ in range(3)]
                while sum(post.done() for post in posts) < 2:
                    await asyncio.sleep(0.01)
                troubled.may_run.set()
                return await asyncio.gather(*posts)

        assert sorted(answer.status_code for answer in asyncio.run(crowd())) == [200, 429, 429]
        assert httpx.post(f"{url}/v1/embeddings", content=body).status_code == 200


def test_too_many_images_in_progress_are_429(bundle: Path, troubled: Troubled) -> None:
    import base64

    image = {"image": base64.b64encode(GRAY.read_bytes()).decode()}
    with serving(bundle, troubled, max_images=2, max_queued_images=2, ready_s=600) as url:
        until_ready(url)
        troubled.may_run.clear()

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                posts = [
                    asyncio.create_task(client.post("/v1/embeddings", json={"input": [image] * 2})) for _ in range(3)
                ]
                while sum(post.done() for post in posts) < 2:
                    await asyncio.sleep(0.01)
                troubled.may_run.set()
                return await asyncio.gather(*posts)

        answers = asyncio.run(crowd())
        assert sorted(answer.status_code for answer in answers) == [200, 429, 429]
        assert httpx.post(f"{url}/v1/embeddings", json={"input": [image] * 2}).status_code == 200


def test_a_request_has_its_time(bundle: Path, troubled: Troubled) -> None:
    with serving(bundle, troubled, request_timeout_s=0.3, ready_s=600) as url:
        until_ready(url)
        troubled.may_run.clear()
        answers = [httpx.post(f"{url}/v1/embeddings", json={"input": "a"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [504, 504]
        assert depth(url) == 0
        troubled.may_run.set()
        wait_for(lambda: httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200)


def test_a_client_that_leaves_takes_its_work_along(bundle: Path, troubled: Troubled) -> None:
    with serving(bundle, troubled, ready_s=600) as url:
        until_ready(url)
        troubled.may_run.clear()
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"input": [f"text {number}" for number in range(50)]}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head + body)
            wait_for(lambda: depth(url) > 0)
        wait_for(lambda: depth(url) == 0)
        troubled.batches.clear()
        troubled.may_run.set()
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
        assert sum(size for _, size in troubled.batches) < 50


def test_a_slow_sender_is_408(bundle: Path, encoder: Encoder) -> None:
    with serving(bundle, encoder, body_timeout_s=0.3) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert client.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_what_the_end_cuts_off_is_503_in_shape(bundle: Path, troubled: Troubled) -> None:
    """A graph that does not come back in shutdown_timeout_s: its requests are told, and the end is not held up."""
    answers: list[httpx.Response] = []
    with serving(bundle, troubled, shutdown_timeout_s=1.0, ready_s=600) as url:
        until_ready(url)
        troubled.may_run.clear()
        asking = [
            threading.Thread(
                target=lambda: answers.append(httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=60))
            )
            for _ in range(3)
        ]
        for thread in asking:
            thread.start()
        wait_for(lambda: "edgeclip_requests_in_progress 4.0\n" in httpx.get(f"{url}/metrics").text)  # and this one
        began = time.monotonic()
    assert time.monotonic() - began < 15
    for thread in asking:
        thread.join()
    assert len(answers) == 3
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert answer.headers["connection"] == "close"


def test_a_self_test_that_breaks_is_red(
    bundle: Path, troubled: Troubled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it breaks with: the last verdict does not stand for ever, and no path is logged."""

    def broken(*_: object, **__: object) -> None:
        raise KeyError("/some/where")

    with serving(bundle, troubled, ready_s=0.01) as url:
        until_ready(url)
        caplog.set_level(logging.INFO)
        monkeypatch.setattr("edgeclip.serve.readiness.run_selftest", broken)
        wait_for(lambda: is_red(url, "the self-test failed: KeyError"))
        assert "/some/where" not in caplog.text
        monkeypatch.undo()
        until_ready(url)


def test_sigterm_finishes_what_was_accepted(bundle: Path) -> None:
    """In a process of its own, as a container ends it: the answer comes, then status 0."""
    command = [sys.executable, "-m", "edgeclip", "serve", str(bundle), "--port", "0"]
    texts = [f"text {number} " + "and more " * 350 for number in range(24)]
    answers: list[httpx.Response] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "serving on http://127.0.0.1:" in line
            url = line.partition("serving on ")[2].partition(",")[0]
            until_up(url)
            asking = threading.Thread(
                target=lambda: answers.append(httpx.post(f"{url}/v1/embeddings", json={"input": texts}, timeout=60))
            )
            asking.start()
            wait_for(lambda: depth(url) > 0)
            process.send_signal(signal.SIGTERM)
            asking.join()
            rest = process.stderr.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert len(answers[0].json()["data"]) == len(texts)
    assert rest.rstrip().endswith("INFO ended") and "Traceback" not in rest


def until_up(url: str) -> None:
    def is_up() -> bool:
        try:
            return httpx.get(f"{url}/health/ready", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(is_up, within_s=60)


def test_a_damaged_graph_is_told_before_anything_is_served(copied_bundle: Path) -> None:
    flip_byte(copied_bundle / "vision.onnx", 500)
    with pytest.raises(BundleError, match=r"vision\.onnx is not what was exported"):
        serve(Settings(bundle=copied_bundle, port=0))


def test_an_address_that_is_taken_is_one_line(bundle: Path, capsys: Captured) -> None:
    assert "cannot listen on 192.0.2.1 port 8000" in refusal("serve", bundle, "--host", "192.0.2.1", capsys=capsys)
    assert "cannot listen on no..such port" in refusal("serve", bundle, "--host", "no..such", capsys=capsys)


def test_no_bundle_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    assert "no such bundle" in refusal("serve", tmp_path / "x", "--port", 0, capsys=capsys)
    (tmp_path / "keys").write_text("# none\n")
    told = refusal("serve", tmp_path / "x", "--api-keys", tmp_path / "keys", capsys=capsys)
    assert "holds no API key" in told
