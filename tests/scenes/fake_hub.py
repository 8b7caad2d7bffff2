"""A Hub on loopback: a real HTTP server that speaks the part of the Hub's protocol that huggingface_hub uses.

huggingface_hub reads its variables when it is imported, so each environment needs it imported anew.
"""

import contextlib
import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

from edgeclip_export.checkpoint import CONFIG
from tests.conftest import FILES

REPO = "someone/tiny-clip"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEXT_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
WANTED = {name: f"the {name} of {REPO}\n".encode() * 50 for name in FILES} | {CONFIG: b'{"model_type": "jina_clip"}'}
UNWANTED = {
    "pytorch_model.bin": b"a pickle",
    "modeling_clip.py": b"raise SystemExit('remote code ran')",
    "onnx/model.onnx": b"one graph for two towers",
    "README.md": b"---\nlicense: mit\n---\n",
}


class FakeHub(ThreadingHTTPServer):
    """One model repository: its branch, its files, and what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo_id = REPO
        self.head = COMMIT
        self.files = WANTED | UNWANTED
        self.refusal: tuple[int, dict[str, str]] | None = None  # what every download is answered with
        self.unknown: tuple[int, dict[str, str]] = (404, {"X-Error-Code": "RepoNotFound"})
        self.is_portal = False
        self.on_download: Callable[[], None] = lambda: None
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """Where HF_ENDPOINT has to point."""
        return f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> set[str]:
        """The paths, with the revision before them, whose content was asked for."""
        return {
            line.partition("/resolve/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line
        }

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, as the Hub words them."""
        if self.is_portal:
            return 200, {"Content-Type": "text/html"}, b"<html>Accept our terms</html>"
        is_file = "/resolve/" in path
        pattern = r"/(.+?)/resolve/(\w+)/(.+)" if is_file else r"/api/models/(.+)/revision/(\w+)()"
        match = re.fullmatch(pattern, path)
        if match is None or match[1] != self.repo_id:
            return *self.unknown, b'{"error": "Repository not found"}'
        if match[2] not in ("main", self.head, COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}'
        if not is_file:
            siblings = [{"rfilename": name} for name in self.files]
            info = {
                "id": self.repo_id,
                "sha": self.head if match[2] == "main" else match[2],
                "siblings": siblings,
            }
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if self.refusal is not None:
            return *self.refusal, b""
        if match[3] not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        commit, body = self.head if match[2] == "main" else match[2], self.files[match[3]]
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}, body


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was interrupted hangs up
            self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        if self.command == "GET" and "/resolve/" in path:
            self.server.on_download()
        status, headers, body = self.server.answer(path)
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        return body

    def log_message(self, format: str, *args: object) -> None:
        pass


def forget_huggingface_hub() -> dict[str, ModuleType]:
    """Take its modules out of `sys.modules`, and return them."""
    if "huggingface_hub.utils" in sys.modules:
        sys.modules["huggingface_hub"].close_session()
    logging.getLogger("huggingface_hub").handlers.clear()
    names = [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]
    return {name: sys.modules.pop(name) for name in names}
