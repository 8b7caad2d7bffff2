"""A line for each request that says what happened and nothing of what was sent; an id that comes back."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeclip import Encoder
from edgeclip.serve.http.access_log import LOGGER, AccessLog, request_id
from tests.scenes.serving import serving, wait_for

KEY = "sk-one-two-three"
SECRET = "my-secret-text"
OFFERED = "X-Request-ID"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


@pytest.fixture(autouse=True)
def _listening(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        yield


def test_both_are_off_until_asked_for(bundle: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    with serving(bundle, encoder) as url:
        for answer in (httpx.get(f"{url}/nowhere", headers={OFFERED: "mine"}), httpx.get(f"{url}/v1/models")):
            assert OFFERED not in answer.headers and "request_id" not in answer.text
    assert lines(caplog) == []


def test_a_line_says_what_happened(bundle: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps({"input": [SECRET, "b"]}).encode()
    headers = {OFFERED: "mine-1", "Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with serving(bundle, encoder, access_log=True, access_log_format="json", api_keys=(KEY,)) as url:
        answer = httpx.post(f"{url}/v1/embeddings/?q={SECRET}", content=body, headers=headers)
        assert answer.headers[OFFERED] == "mine-1" and "request_id" not in answer.json()
        wait_for(lambda: lines(caplog))
        line = json.loads(lines(caplog)[0])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
        assert 0 < line.pop("ms") < 60_000
        assert line == {
            "method": "POST", "path": "/v1/embeddings/", "status": 200, "bytes_in": len(body),
            "bytes_out": len(answer.content), "items": 2, "request_id": "mine-1",
        }  # fmt: skip
        refused = httpx.post(f"{url}/v1/embeddings", content=body)
        wait_for(lambda: len(lines(caplog)) == 2)
    line = json.loads(lines(caplog)[1])
    assert (line["status"], line["items"]) == (401, 0)
    assert line["request_id"] == refused.headers[OFFERED] == refused.json()["request_id"]
    assert re.fullmatch("[0-9a-f]{32}", line["request_id"])
    assert not any(word in "".join(lines(caplog)) for word in (SECRET, KEY, "127.0.0.1"))


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://shop.example", 200), ("https://stranger.example", 400)],
    ids=["known", "stranger"],
)
def test_a_preflight_is_a_request_like_any_other(
    bundle: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture, origin: str, status: int
) -> None:
    """It has a line, an id, security headers and a count, and asks for no key."""
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST", OFFERED: "mine"}
    settings: dict[str, Any] = {"access_log": True, "cors_origins": ("https://shop.example",), "api_keys": (KEY,)}
    with serving(bundle, encoder, **settings) as url:
        answer = httpx.options(f"{url}/v1/embeddings", headers=preflight)
        assert answer.status_code == status
        wait_for(lambda: lines(caplog))
        counted = f'edgeclip_requests_total{{method="OPTIONS",route="unknown",status="{status}"}} 1.0'
        assert counted in httpx.get(f"{url}/metrics").text
    assert f" OPTIONS /v1/embeddings {status} " in lines(caplog)[0] and lines(caplog)[0].endswith("request_id=mine")
    assert answer.headers[OFFERED] == "mine"
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and "Content-Security-Policy" in answer.headers


def test_text_lines_and_addresses_where_they_are_asked_for(
    bundle: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(bundle, encoder, access_log=True, access_log_clients=True) as url:
        httpx.get(f"{url}/health/live", headers={OFFERED: "mine"})
        wait_for(lambda: lines(caplog))
    words = lines(caplog)[0].split(" ")
    assert words[1:4] == ["GET", "/health/live", "200"] and words[4].startswith("ms=")
    assert words[5:] == ["bytes_in=0", "bytes_out=15", "items=0", "request_id=mine", "client=127.0.0.1"]


def test_ids_alone_need_no_log(bundle: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    with serving(bundle, encoder, request_id=True) as url:
        answer = httpx.get(f"{url}/nowhere", headers={OFFERED: "mine"})
    assert answer.headers[OFFERED] == answer.json()["request_id"] == "mine"
    assert lines(caplog) == []


def test_a_bug_s_line_names_the_request(bundle: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(url: str, *, take: Any) -> bytes:
        raise ZeroDivisionError(SECRET)

    with serving(bundle, encoder, request_id=True, fetch=broken) as url:
        document = {"input": {"url": "https://example.org/a.png"}}
        answer = httpx.post(f"{url}/v1/embeddings", json=document, headers={OFFERED: "mine"})
    assert (answer.status_code, answer.json()["request_id"]) == (500, "mine")
    assert f"request mine failed: ZeroDivisionError at {Path(__file__).name}:" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("sent", ["a", "x" * 128, "{12-34}", "a/b:c=d", "é".encode().hex()])
def test_a_short_printable_id_is_kept(sent: str) -> None:
    assert request_id(sent) == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 129, "a b", "a\tb", "a\nb", "a\x1b[31m", "é", "a\x00", "a\n"])
def test_any_other_id_is_replaced_by_a_new_one(sent: str | None) -> None:
    made = request_id(sent)
    assert re.fullmatch("[0-9a-f]{32}", made) and made != request_id(sent)


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_request_writes_a_line_of_its_own(form: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever stands in its path: it is one line, short, of printable ASCII, with as many fields as any other."""
    scope = {"method": "GET", "edgeclip.path": "/a", "edgeclip.request_id": "mine"}
    paths = ["/a", "/a\n2026 GET /b 200", "/a b status=200", "/\x1b[2J\u202e\u2028\udc80", '/"}{"', "/" + "x" * 5000]
    for path in paths:
        AccessLog(form, with_clients=False).write(
            {**scope, "edgeclip.path": path}, status=404, seconds=0.1, bytes_out=1
        )
    found = lines(caplog)
    assert len(found) == len(paths)
    for line in found:
        assert line.isascii() and line.isprintable() and len(line) < 500
        fields = json.loads(line) if form == "json" else line.split(" ")
        assert len(fields) == (9 if form == "json" else len(found[0].split(" ")))


def test_the_lines_go_to_stderr(bundle: Path) -> None:
    """As the command starts it: between the service's own lines, which keep their form."""
    command = [sys.executable, "-m", "edgeclip", "serve", str(bundle), "--port", "0", "--access-log"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stdout is not None
        url = process.stderr.readline().partition("serving on ")[2].partition(",")[0]
        wait_for(lambda: _is_live(url), within_s=60)
        line = process.stderr.readline()
        process.terminate()
        rest = process.stderr.read()
        assert (process.wait(30), process.stdout.read()) == (0, "")
    assert " GET /health/live 200 ms=" in line
    assert rest.rstrip().endswith("INFO ended")


def _is_live(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live").status_code == 200
    except httpx.TransportError:
        return False
