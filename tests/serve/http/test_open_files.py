"""A service that may open few files takes few connections, says so, and answers on them."""

import asyncio
import collections
import contextlib
import errno
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgeclip import Encoder, InputError
from edgeclip.serve.http import open_files
from edgeclip.serve.http.open_files import (
    ConnectionRoom,
    OutOfFiles,
    fetches_within_limit,
    is_out_of_files,
    plan_connections,
    room_for_connections,
)
from edgeclip.serve.settings import Settings
from tests.scenes.serving import serving, troubling, until_ready, wait_for

FEW = 64
BODY = b'{"input": "a"}'
# Without a read of the body, a read of a file, and with the graphs.
ASKED = [
    b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /docs/swagger-ui.css HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
]
# The server takes uvloop where it is there, and asyncio's own loop else: they accept differently.
START = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
if sys.argv[2] == "asyncio":
    sys.modules["uvloop"] = None
from edgeclip.cli import main
sys.exit(main(["serve", sys.argv[3], "--port", "0"]))
"""


class Process:
    """A service in a process of its own, and what it has said."""

    def __init__(self, bundle: Path, loop: str) -> None:
        command = [sys.executable, "-c", START, str(FEW), loop, str(bundle)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.reading = threading.Thread(target=self._read)
        self.reading.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += self.process.stderr
        self.process.stderr.close()

    def said(self, words: str) -> str:
        return next((line for line in self.lines if words in line), "")

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


@pytest.fixture(params=["uvloop", "asyncio"])
def process(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Process]:
    pytest.importorskip("resource")
    started = Process(bundle, request.param)
    try:
        wait_for(lambda: started.said("the self-test passed") or started.process.poll() is not None, within_s=60)
        started.url = started.said("serving on").partition("serving on ")[2].partition(",")[0]
        yield started
    finally:
        started.process.terminate()
        started.process.wait(60)
        started.reading.join()


def status_of(client: socket.socket, request: bytes) -> int:
    """The status of the answer, which is read; 0 where the connection was closed without one."""
    try:
        client.sendall(request)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        answer.read()
    except (ConnectionError, http.client.BadStatusLine):
        return 0
    return answer.status


def test_few_open_files_are_few_connections_and_no_500(process: Process) -> None:
    """As many as it said are answered, whatever they ask for; others are told or closed, and then it is as before."""
    told = process.said("connections are taken")
    assert f"{FEW} files may be open at once" in told and "4096 were wanted" in told
    taken = int(told.partition("at once: ")[2].split()[0])
    assert 8 <= taken < FEW
    with contextlib.ExitStack() as opened:
        held = [opened.enter_context(process.connect()) for _ in range(taken)]
        found = collections.Counter(
            status_of(client, ASKED[number % len(ASKED)]) for number, client in enumerate(held)
        )
        assert found == {200: taken}
        began, cpu_s = time.monotonic(), process.cpu_s()
        others = [opened.enter_context(process.connect()) for _ in range(FEW)]
        found = collections.Counter(
            status_of(client, ASKED[number % len(ASKED)]) for number, client in enumerate(others)
        )
        assert set(found) <= {0, 200, 503} and found[200] >= taken // 2  # those that rested gave way
        assert [status_of(others[-1], request) for request in ASKED] == [200] * len(ASKED)
        time.sleep(1)
        assert process.cpu_s() - cpu_s < 0.5 * (time.monotonic() - began) + 1  # it does not spin
    wait_for(lambda: httpx.get(f"{process.url}/health/live").status_code == 200)
    metrics = httpx.get(f"{process.url}/metrics").text
    assert 'status="500"' not in metrics
    assert len(process.lines) < 10 and "Traceback" not in "".join(process.lines)


def test_a_request_that_finds_no_file_left_is_503(
    bundle: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it was that could not be opened; the log says it once."""

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with troubling(bundle) as troubled, serving(bundle, troubled) as url:
        until_ready(url)
        monkeypatch.setattr("edgeclip.serve.pages.read_asset", refuse)
        for _ in range(3):
            answer = httpx.get(f"{url}/docs/swagger-ui.css")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_open_files")
            assert answer.headers["retry-after"] == "1"
    assert caplog.text.count("no more files can be opened") == 1


@pytest.mark.parametrize("wanted", [1, 16, 4096, 100_000])
@pytest.mark.parametrize("limit", [64, 256, 1024, 4096, 16_384, 1_000_000])
def test_what_is_planned_fits_into_the_limit(limit: int, wanted: int) -> None:
    room = plan_connections(wanted=wanted, limit=limit, opened=8, reserved=24)
    assert 1 <= room.served <= wanted and room.refused >= 1 and room.queued >= 8
    assert room.served + room.refused + room.queued + 8 + 24 <= limit
    assert room.served == wanted or room.served >= limit // 4


@pytest.mark.parametrize(("limit", "fetches"), [(150, 9), (256, 16), (1024, 64)])
def test_files_are_left_for_fetches_however_urls_are_allowed(
    monkeypatch: pytest.MonkeyPatch, encoder: Encoder, limit: int, fetches: int
) -> None:
    """Two for each that runs at once; none where no URL is fetched."""
    monkeypatch.setattr(open_files, "_limit", lambda: limit)
    monkeypatch.setattr(open_files, "_count_open", lambda: 8)
    settings = ({}, {"allow_urls": True}, {"url_hosts": ("http://10.1.2.3:9000",)})
    without, anywhere, listed = (
        room_for_connections(Settings(bundle=Path("-"), max_connections=1024, **each), encoder.manifest).served
        for each in settings
    )
    assert fetches_within_limit() == fetches
    assert listed == anywhere < without
    assert without - listed >= fetches


def test_without_a_limit_the_settings_hold() -> None:
    assert plan_connections(wanted=4096, limit=None, opened=8, reserved=24) == ConnectionRoom(served=4096)


def test_too_few_files_for_one_connection_are_an_error() -> None:
    with pytest.raises(InputError, match=r"40 files may be open at once, wanted 49 at least; raise the limit"):
        plan_connections(wanted=9, limit=40, opened=8, reserved=24)
    assert plan_connections(wanted=9, limit=49, opened=8, reserved=24).served == 1


def test_the_reason_is_found_behind_other_errors() -> None:
    reason = OSError(errno.EMFILE, "Too many open files")
    try:
        try:
            raise reason
        except OSError as error:
            raise ValueError("no image") from error
    except ValueError as error:
        assert is_out_of_files(error)
    assert not is_out_of_files(OSError(errno.ENOENT, "no such file")) and not is_out_of_files(None)


def test_what_cannot_be_accepted_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio calls the loop's exception handler for each, once a second; its own prints a traceback."""
    loop = asyncio.new_event_loop()
    try:
        OutOfFiles().watch(loop)
        for number in (errno.EMFILE, errno.ENFILE, errno.EMFILE):
            loop.call_exception_handler({"message": "accept", "exception": OSError(number, "too many")})
        assert len(caplog.records) == 1 and "no more files can be opened" in caplog.text
        assert "Traceback" not in caplog.text
        loop.call_exception_handler({"message": "another", "exception": ValueError("x")})
        assert "another" in caplog.text
    finally:
        loop.close()
