"""The API answers under every address that clients make of its base, and behind a prefix; nothing redirects."""

import contextlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from edgeclip import Encoder
from edgeclip.serve.http.paths import route_path
from tests.scenes.raw_http import talk
from tests.scenes.serving import serving

browser_module = pytest.importorskip("tests.scenes.browser")

KEY = "one-two-three"
ORIGIN = "https://shop.example"
# What openai's package for browsers asks for before a request.
OPENAI_HEADERS = (
    "authorization,content-type,openai-beta,openai-organization,openai-project,x-stainless-arch,x-stainless-lang,"
    "x-stainless-os,x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout,x-request-id"
)


@pytest.fixture(scope="module")
def url(bundle: Path, encoder: Encoder) -> Iterator[str]:
    with serving(bundle, encoder) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "prefix", "route"),
    [
        ("/", "", "/"),
        ("//", "", "/"),
        ("/v1/embeddings", "", "/v1/embeddings"),
        ("/v1/embeddings/", "", "/v1/embeddings"),
        ("//v1//embeddings//", "", "/v1/embeddings"),
        ("/embeddings", "", "/v1/embeddings"),
        ("/models/", "", "/v1/models"),
        ("/models/jinaai/jina-clip-v2", "", "/v1/models/jinaai/jina-clip-v2"),
        ("/health/live/", "", "/health/live"),
        ("/embeddings/other", "", "/embeddings/other"),
        ("/embed/v1/embeddings", "/embed", "/v1/embeddings"),
        ("//embed/v1/embeddings", "/embed", "/v1/embeddings"),
        ("//embed//v1//embeddings/", "/embed", "/v1/embeddings"),
        ("/ai//embed/models", "/ai/embed", "/v1/models"),
        ("//embed//", "/embed", "/"),
        ("/embed", "/embed", "/"),
        ("/embed/", "/embed", "/"),
        ("/v1/embeddings", "/embed", "/v1/embeddings"),
        ("/embeddings", "/embed", "/v1/embeddings"),
        ("/embed/embed/models", "/embed", "/embed/models"),
    ],
)
def test_which_route_a_path_means(path: str, prefix: str, route: str) -> None:
    assert route_path(path, prefix) == route


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/embeddings/", "/embeddings", "/embeddings/", "//v1/embeddings"]
)
def test_every_address_of_the_embeddings_answers_alike(url: str, path: str) -> None:
    answer = httpx.post(f"{url}{path}", json={"input": "a"}, headers={"Host": "evil.example"})
    assert answer.status_code == 200
    assert answer.json()["data"] == httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).json()["data"]
    assert httpx.get(f"{url}{path}").status_code == 405


def test_every_other_route_answers_with_a_slash_at_its_end_too(url: str) -> None:
    """Without a redirect: its target would be taken from the Host header."""
    (name,) = [model["id"] for model in httpx.get(f"{url}/models").json()["data"]]
    for path in ("/v1/models", "/models", f"/v1/models/{name}", f"/models/{name}", "/health/live", "/health/ready",
                 "/metrics", "/openapi.json", "/docs", "/docs/start.js", "/web/app.js"):  # fmt: skip
        answer = httpx.get(f"{url}{path}/", headers={"Host": "evil.example"})
        assert answer.status_code == httpx.get(f"{url}{path}").status_code, path
        assert "location" not in answer.headers and "evil.example" not in answer.text
    assert httpx.get(f"{url}/nowhere/").status_code == 404


def test_no_address_goes_round_the_key(bundle: Path, encoder: Encoder) -> None:
    with serving(bundle, encoder, api_keys=(KEY,), root_path="/embed") as url:
        for path in ("/embeddings", "/embeddings/", "//v1/embeddings", "/embed/v1/embeddings", "/embed//embeddings/",
                     "//embed/v1/embeddings",
                     "/v1%2Fembeddings", "/v1/embeddings%2F"):  # fmt: skip
            assert httpx.post(f"{url}{path}", json={"input": "a"}).status_code == 401
            with_key = httpx.post(f"{url}{path}", json={"input": "a"}, headers={"Authorization": f"Bearer {KEY}"})
            assert with_key.status_code == 200
        for path in ("/models", "/models/x", "/embed/models", "/v1//models"):
            assert httpx.get(f"{url}{path}").status_code == 401


@contextlib.contextmanager
def proxy_to(url: str, prefix: str, *, strips: bool) -> Iterator[str]:
    """The address of a proxy that answers below a prefix alone, as nginx's `location /embed/` does."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            path = self.path.removeprefix(prefix) if strips else self.path
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = httpx.request(self.command, url + path, content=body)
            self.send_response(answer.status_code)
            for name in ("content-type", "content-security-policy", "server-timing"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET  # noqa: N815 - so http.server wants it

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{prefix}"
        finally:
            server.shutdown()


def test_a_proxy_may_leave_its_prefix(bundle: Path, encoder: Encoder) -> None:
    with serving(bundle, encoder, root_path="/ai/embed") as url, proxy_to(url, "/ai/embed", strips=False) as base:
        for path in ("/v1/models", "/health/live", "/docs", "/docs/start.js", "/", "/web/app.js"):
            assert httpx.get(base + path).status_code == 200
        assert httpx.post(f"{base}/v1/embeddings", json={"input": "a"}).status_code == 200


@pytest.mark.skipif(browser_module.CHROMIUM is None, reason="no Chromium here")
def test_the_documents_and_the_page_work_behind_a_prefix(url: str, tmp_path: Path) -> None:
    """With a browser: everything is loaded from below the prefix, and "Execute" asks there too."""
    with proxy_to(url, "/ai/embed", strips=True) as base, browser_module.browsing(tmp_path) as browser:
        for path in ("/docs", "/docs/"):
            browser.requests.clear()
            browser.open(base + path)
            browser.wait("!!document.querySelector('#operations-default-models .opblock-summary-control')")
            browser.run("document.querySelector('#operations-default-models .opblock-summary-control').click()")
            browser.wait("!!document.querySelector('#operations-default-models .execute')")
            # Swagger hears no click before it has resolved the operation, which nothing on the page shows, and after
            # such a click no later one (5.17); and a click clears the answer to the one before.
            browser.run("window.nextClick = Date.now() + 3000")
            browser.wait(
                "!!document.querySelector('#operations-default-models .live-responses-table')"
                " || (Date.now() > window.nextClick && (window.nextClick = Date.now() + 10000,"
                " document.querySelector('#operations-default-models .execute').click()), false)"
            )
            assert '"tasks_without_instruction"' in browser.text("#operations-default-models .live-responses-table")
            assert f"{base}/v1/models" in browser.requests
            assert all(request.startswith((f"{base}/", "data:")) for request in browser.requests), browser.requests
        browser.open(f"{base}/")
        browser.wait("document.title.startsWith('edgeclip · ')")
        assert browser.errors == []


def test_a_page_of_another_origin_may_call_as_openai_s_package_does(bundle: Path, encoder: Encoder) -> None:
    """The preflight allows every header that the page asks for, for the named origin alone."""
    with serving(bundle, encoder, cors_origins=(ORIGIN,), api_keys=(KEY,)) as url:
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": OPENAI_HEADERS}
        answer = httpx.options(f"{url}/v1/embeddings", headers={"Origin": ORIGIN, **preflight})
        assert answer.status_code == 200
        assert set(OPENAI_HEADERS.split(",")) <= set(answer.headers["access-control-allow-headers"].split(","))
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        private = httpx.options(
            f"{url}/v1/embeddings",
            headers={"Origin": ORIGIN, "Access-Control-Request-Private-Network": "true", **preflight},
        )
        assert private.status_code == 200 and private.headers["access-control-allow-private-network"] == "true"
        stranger = httpx.options(f"{url}/v1/embeddings", headers={"Origin": "https://b.example", **preflight})
        assert "access-control-allow-origin" not in stranger.headers


def test_a_page_of_another_origin_can_read_refusals(bundle: Path, encoder: Encoder) -> None:
    """A browser shows a page nothing of an answer without these headers, so a client could tell no 401 from a 413."""
    limits = {"max_body_bytes": 1000, "max_pending_bytes": 1500}
    with serving(bundle, encoder, cors_origins=(ORIGIN,), api_keys=(KEY,), **limits) as url:
        headers = {"Origin": ORIGIN, "Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        answers = [
            httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, headers={"Origin": ORIGIN}),
            httpx.post(f"{url}/v1/embeddings", content=b"x" * 2000, headers=headers),
            httpx.post(f"{url}/v1/embeddings", json={"input": []}, headers=headers),
            httpx.get(f"{url}/v1/embeddings", headers=headers),
            httpx.get(f"{url}/nowhere", headers=headers),
        ]
        assert [answer.status_code for answer in answers] == [401, 413, 400, 405, 404]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
            assert json.loads(answer.content)["error"]["message"]


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [((ORIGIN,), ORIGIN), (("*",), "*"), ((ORIGIN, "*"), "*"), ((ORIGIN, "https://b.example"), None), ((), None)],
)
def test_a_refusal_before_there_is_a_request_can_be_read_too(
    bundle: Path, encoder: Encoder, origins: tuple[str, ...], allowed: str | None
) -> None:
    """Where one origin or all may call; with several, such a refusal does not know which of them asked."""
    with serving(bundle, encoder, cors_origins=origins, body_timeout_s=0.3) as url:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\nContent-Length: 100\r\n\r\n{{"
        answer = talk(url, head.encode()).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert re.findall("access-control-allow-origin: (.*)\r", answer) == ([allowed] if allowed else [])
