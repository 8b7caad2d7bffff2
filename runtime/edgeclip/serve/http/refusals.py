"""Whole HTTP answers in OpenAI's shape to connections that have sent no request, or none yet."""

import json
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from edgeclip.serve.errors import ApiError


def too_slow(what: str, seconds: float) -> ApiError:
    """408 for `what` that a client did not send in its time."""
    return ApiError(408, f"the {what} was not sent within {seconds:g} s", code="request_timeout")


def too_many_connections() -> ApiError:
    """503 for a connection beyond those that there may be."""
    return ApiError(503, "too many connections; try again later", code="too_many_connections")


def date_line() -> bytes:
    """The line of an answer's head that says when it was made."""
    return _date_line(int(time.time()))


@lru_cache(1)
def _date_line(second: int) -> bytes:
    return f"date: {formatdate(second, usegmt=True)}\r\n".encode()


def encode(error: ApiError, allow_origin: str | None) -> bytes:
    """The bytes of a refusal, after which the connection is closed; pages of `allow_origin` may read it."""
    body = json.dumps(error.body()).encode()
    allowed = f"access-control-allow-origin: {allow_origin}\r\n" if allow_origin else ""
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{date_line().decode()}"
        f"{allowed}content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
