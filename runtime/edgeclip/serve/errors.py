"""Errors as the service answers them: a status, and OpenAI's error object.

Jina's clients look for `detail` where OpenAI's look for `error`, so both are there. A message says what was found and
what was wanted. It quotes no input and names nothing of this machine, because any client may read it.
"""

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}


class ApiError(Exception):
    """An error that becomes an answer. `param` is the field of the request, `code` a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error, "detail": self.message}


def retry_later(message: str, seconds: float) -> ApiError:
    """429, with the seconds after which a client should try again."""
    wait = max(1, min(3600, round(seconds + 0.5)))
    return ApiError(429, message, code="queue_full", headers={"Retry-After": str(wait)})


def not_served(message: str, model: str) -> ApiError:
    """404 for another model than the one that is served."""
    return ApiError(404, f"{message}; {model} is", param="model", code="model_not_found")


def not_trusted(seconds: float) -> ApiError:
    """503 while vectors may be wrong: none is given out until the self-test passes; it is tried every `seconds`."""
    message = "a graph failed in a way that makes its vectors doubtful; none is given out until the self-test passes"
    wait = max(1, min(3600, math.ceil(seconds)))
    return ApiError(503, message, code="not_ready", headers={"Retry-After": str(wait)})


def ending() -> ApiError:
    """503 for a request that the end of the service cut off."""
    return ApiError(503, "the service is ending; ask again", code="shutting_down", headers={"Connection": "close"})


def out_of_files() -> ApiError:
    """503 for a request that needs a file or a socket when no more can be opened."""
    message = "the service has too many files open; try again later"
    return ApiError(503, message, code="too_many_open_files", headers={"Retry-After": "1"})


def log_bug(log: logging.Logger, what: str, error: BaseException) -> None:
    """Log the kind and the place of a bug, without its message, which may quote an input; debug has the traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "?" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    log.error("%s: %s at %s", what, type(error).__name__, where)
    log.debug("%s", without_paths(str(error)), exc_info=error)


def without_paths(text: str) -> str:
    """Replace every absolute path in a text, because messages of libraries name files of this machine."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?[\\/][^\s'\"`:;,()]+", "<path>", text)
