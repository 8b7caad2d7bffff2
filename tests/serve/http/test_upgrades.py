"""Clients that ask for another protocol are answered in HTTP/1.1."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgeclip import Encoder
from tests.scenes.raw_http import GET, refusal, talk
from tests.scenes.serving import serving, until_ready

UPGRADE = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


@pytest.fixture(scope="module")
def url(bundle: Path, encoder: Encoder) -> Iterator[str]:
    with serving(bundle, encoder, ready_s=600) as url:
        until_ready(url)
        yield url
        assert 'status="500"' not in httpx.get(f"{url}/metrics").text


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"TLS/1.3"])
def test_an_upgrade_is_not_taken(url: str, upgrade: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The request is answered as if it had not asked, and its body is read."""
    for head, body in (
        (b"GET /health/live HTTP/1.1\r\n", b""),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 14\r\n", b'{"input": "a"}'),
        (b"POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", b'e\r\n{"input": "a"}\r\n0\r\n\r\n'),
    ):
        assert talk(url, head + UPGRADE % upgrade + b"\r\n" + body).startswith(b"HTTP/1.1 200 ")
    assert caplog.records == []


def test_an_upgrade_does_not_hide_the_next_request(url: str) -> None:
    first = GET.replace(b"\r\n\r\n", b"\r\n" + UPGRADE.replace(b", close", b"") % b"h2c" + b"\r\n")
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert talk(url, first + first + last).count(b"HTTP/1.1 200 ") == 3


def test_curl_that_offers_http_2_is_answered(url: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--http2", "--silent", "--show-error", "--max-time", "20", f"{url}/v1/embeddings"]
    given = ["--header", "Content-Type: application/json", "--data", '{"input": ["a", "b"]}']
    answer = json.loads(subprocess.run([*command, *given], check=True, capture_output=True).stdout)
    assert len(answer["data"]) == 2


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
  public static void main(String[] given) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (int i = 0; i < 2; i++) {
      HttpRequest request = HttpRequest.newBuilder(URI.create(given[0]))
          .header("Content-Type", "application/json")
          .POST(HttpRequest.BodyPublishers.ofString("{\\"input\\": \\"a\\"}")).build();
      System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
    }
  }
}
"""


def test_java_at_its_defaults_is_answered(url: str, tmp_path: Path) -> None:
    """Its HttpClient asks for h2c with every request to a plain address; the second uses the connection again."""
    if shutil.which("javac") is None:
        pytest.skip("no JDK is installed")
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    done = subprocess.run(["java", source, f"{url}/v1/embeddings"], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["200", "200"], done.stderr


def test_http_2_without_asking_is_refused_in_words(url: str) -> None:
    found = talk(url, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
    assert refusal(found) == (400, "invalid_http") and b"neither TLS nor HTTP/2 is spoken" in found
