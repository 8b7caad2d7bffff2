"""The access log: a line for each request, with the id that a client's or a proxy's log has for it. Off by default.

A line holds no input, no key and no query; a client's address only if that was asked for. It is one line of printable
ASCII whatever a client sends: its id is taken only if it is short and printable, and its path is written in percents.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

LogFormat = Literal["text", "json"]
LOGGER = "edgeclip.access"

_log = logging.getLogger(LOGGER)
_ID = re.compile(r"[!-~]{1,128}")
_PATH_CHARACTERS = 200


def request_id(sent: str | None) -> str:
    """A client's X-Request-ID where it is 1 to 128 visible ASCII characters, else 32 new hexadecimal digits."""
    return sent if sent is not None and _ID.fullmatch(sent) else os.urandom(16).hex()


class AccessLog:
    """Writes the lines, as text or as JSON; with the client's address if `with_clients`."""

    def __init__(self, form: LogFormat, *, with_clients: bool) -> None:
        self._form, self._with_clients = form, with_clients

    def write(self, scope: Mapping[str, Any], *, status: int, seconds: float, bytes_out: int) -> None:
        """Write the line of a request that has ended."""
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": quote(scope["method"])[:_PATH_CHARACTERS],
            "path": quote(scope["edgeclip.path"], errors="replace")[:_PATH_CHARACTERS],
            "status": status,
            "ms": round(seconds * 1000, 2),
            "bytes_in": scope.get("edgeclip.bytes_in", 0),
            "bytes_out": bytes_out,
            "items": scope.get("edgeclip.items", 0),
            "request_id": scope["edgeclip.request_id"],
        }
        if self._with_clients:
            line["client"] = (scope.get("client") or ("-",))[0]
        if self._form == "json":
            _log.info("%s", json.dumps(line))
        else:
            head = [str(line.pop(name)) for name in ("time", "method", "path", "status")]
            _log.info("%s", " ".join([*head, *(f"{name}={value}" for name, value in line.items())]))
