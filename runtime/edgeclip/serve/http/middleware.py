"""The shell round every request of every route: keys, origins, security headers, metrics, ids, log lines.

An error becomes an answer in the API's shape: a bug 500, a request that is cut off when the service ends 503.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from edgeclip.serve.errors import ApiError, ending, log_bug, out_of_files
from edgeclip.serve.http.access_log import AccessLog, request_id
from edgeclip.serve.http.api_keys import KeyRing
from edgeclip.serve.http.exchange import Message, Receive, Scope, Send
from edgeclip.serve.http.open_files import OutOfFiles, is_out_of_files
from edgeclip.serve.http.paths import route_path
from edgeclip.serve.metrics import Metrics

_log = logging.getLogger("edgeclip.serve")
# The content security policy of pages that bring none of their own, and of answers that are no pages.
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_DATA_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_PAGE_POLICY = (b"content-security-policy", PAGE_POLICY.encode())
_OF_ALL = (b"x-content-type-options", b"nosniff")
_OF_PAGES = [(b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY")]
# nginx's status for a client that went away; no client sees it.
CLIENT_GONE = 499
# Every other method has one label together.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Shell:
    """Keys, security headers, metrics and a log line round every request; and every error in the API's shape."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        metrics: Metrics,
        keys: KeyRing,
        files: OutOfFiles,
        root_path: str = "",
        metrics_port: int | None = None,
        has_ids: bool = False,
        access_log: AccessLog | None = None,
        allow_origins: Callable[[Any], Any] | None = None,
    ) -> None:
        # Within the shell, so that a preflight has its log line too; round the guard, so that a page reads refusals.
        self._answer = allow_origins(self._guard) if allow_origins else self._guard
        self._router = Router(routes, redirect_slashes=False)
        # Looked up by their path; the router tries the pattern of one route after the other.
        self._fixed = {route.path: route for route in routes if "{" not in route.path}
        self._metrics, self._keys, self._root_path = metrics, keys, root_path
        self._metrics_port = metrics_port
        self._access_log, self._has_ids = access_log, has_ids or access_log is not None
        self._out_of_files = files
        self._in_progress = 0
        metrics.in_progress.set_function(lambda: self._in_progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started, bytes_out = time.perf_counter(), 0
        scope["edgeclip.path"] = scope["path"]  # as it was sent: what is relative in a page depends on its last slash
        scope["path"] = route_path(scope["path"], self._root_path)
        identity = request_id(_header(scope, b"x-request-id")) if self._has_ids else None
        scope["edgeclip.request_id"] = identity
        scope["edgeclip.status"] = 0

        async def sent(message: Message) -> None:
            nonlocal bytes_out
            if message["type"] == "http.response.start":
                scope["edgeclip.status"] = message["status"]
                _secure(message.setdefault("headers", []))
                if identity is not None:
                    message["headers"].append((b"x-request-id", identity.encode()))
            else:
                bytes_out += len(message.get("body", b""))
            await send(message)

        self._in_progress += 1
        try:
            await self._answer(scope, receive, sent)
        finally:
            self._in_progress -= 1
            seconds, status = time.perf_counter() - started, scope["edgeclip.status"] or CLIENT_GONE
            self._record(scope, status, seconds)
            if self._access_log is not None:
                self._access_log.write(scope, status=status, seconds=seconds, bytes_out=bytes_out)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request if its path and its key allow it; an error becomes an answer."""
        try:
            if self._metrics_port and (scope["path"] == "/metrics") != (scope["server"][1] == self._metrics_port):
                raise HTTPException(404)
            if (
                self._keys.is_needed
                and scope["path"].startswith("/v1/")
                and not self._keys.opens(_header(scope, b"authorization"))
            ):
                raise ApiError(
                    401, 'a valid API key is needed: "Authorization: Bearer KEY"', code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
            route = self._fixed.get(scope["path"])
            if route is not None and route.methods is not None and scope["method"] in route.methods:
                scope["route"] = route
                await route.app(scope, receive, send)
                return
            scope["app"] = self  # a route refuses a method by an exception then, and not by an answer of its own
            await self._router(scope, receive, send)
        except (Exception, asyncio.CancelledError) as error:
            if is_out_of_files(error):
                self._out_of_files.say()
            answer = _answer_to(error, scope)
            error.__traceback__ = None  # it holds the request, and whatever the error hung on
            if not scope["edgeclip.status"]:
                await answer(scope, receive, send)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        for stage, spent in scope.get("edgeclip.stages", {}).items():
            self._metrics.stage_seconds.labels(stage).observe(spent)
        if status >= 400:
            self._metrics.errors.labels(str(status), scope.get("edgeclip.code", "")).inc()
        _log.debug("%s %s %d in %.1f ms", method, route, status, seconds * 1000)


def _secure(headers: list[tuple[bytes, bytes]]) -> None:
    """Add the security headers of an answer with these."""
    is_data, has_policy = False, False
    for name, value in headers:
        if name == b"content-type":
            is_data = value.startswith(b"application/json")
        elif name == b"content-security-policy":
            has_policy = True
    if not is_data:
        headers.extend(_OF_PAGES)
    headers.append(_OF_ALL)
    if not has_policy:
        headers.append(_DATA_POLICY if is_data else _PAGE_POLICY)


def _answer_to(error: BaseException, scope: Scope) -> Response:
    """The answer to a request that ended in an error, in the API's shape."""
    identity = scope["edgeclip.request_id"]
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    if isinstance(error, HTTPException):
        if error.status_code == 405 and scope["method"] == "OPTIONS":
            return Response(status_code=204, headers=error.headers)
        wanted = {404: "there is nothing at this path", 405: "this path does not take this method"}
        message = wanted.get(error.status_code, "the request cannot be answered")
        refusal = ApiError(error.status_code, message, headers=error.headers or {})
    elif is_out_of_files(error):
        refusal = out_of_files()
    elif isinstance(error, ApiError):
        refusal = error
    elif isinstance(error, asyncio.CancelledError):  # the time to finish what was accepted is up
        refusal = ending()
    else:
        log_bug(_log, f"request {identity} failed" if identity else "a request failed", error)
        refusal = ApiError(500, "the service failed; its log says where", code="internal_error")
    scope["edgeclip.code"] = refusal.code or ""
    body = refusal.body() if identity is None else {**refusal.body(), "request_id": identity}
    return JSONResponse(body, refusal.status, headers=dict(refusal.headers))


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
