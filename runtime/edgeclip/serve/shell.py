"""One shell round every request, whatever its route: API keys, security headers, metrics, a log line.

A bug becomes 500 in the API's shape, and a request that is cut off when the service ends 503.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from edgeclip.serve.errors import ApiError, ending, log_bug
from edgeclip.serve.keys import KeyRing
from edgeclip.serve.metrics import Metrics

if TYPE_CHECKING:
    from starlette.routing import Route

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger("edgeclip.serve")
# Of every page that does not bring its own.
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
# nginx's word for a client that went away; no client sees it.
CLIENT_GONE = 499
# Whatever else a client calls its method is one label.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Shell:
    """Keys, security headers, metrics and a log line round every request; and 500 in the API's shape for a bug."""

    def __init__(self, app: Any, *, metrics: Metrics, keys: KeyRing) -> None:
        self._app, self._metrics, self._keys = app, metrics, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.responses import JSONResponse

        started, status = time.perf_counter(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                headers.extend(_SECURITY_HEADERS)
                if not any(name == b"content-security-policy" for name, _ in headers):
                    headers.append((b"content-security-policy", PAGE_POLICY.encode()))
            await send(message)

        self._metrics.in_progress.inc()
        try:
            if scope["path"].startswith("/v1/") and not self._keys.opens(_header(scope, b"authorization")):
                refusal = ApiError(
                    401, 'a valid API key is needed: "Authorization: Bearer KEY"', code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
                scope["edgeclip.code"] = refusal.code
                answer = JSONResponse(refusal.body(), refusal.status, headers=dict(refusal.headers))
                await answer(scope, receive, sent)
            else:
                await self._app(scope, receive, sent)
        except asyncio.CancelledError:  # the time to finish what was accepted is up
            if not status:
                error = ending()
                scope["edgeclip.code"] = error.code
                await JSONResponse(error.body(), error.status, headers=dict(error.headers))(scope, receive, sent)
        except Exception as error:
            log_bug(_log, "a request failed", error)
            if not status:
                bug = ApiError(500, "the service failed; its log says where", code="internal_error")
                scope["edgeclip.code"] = bug.code
                await JSONResponse(bug.body(), bug.status)(scope, receive, sent)
        finally:
            self._metrics.in_progress.dec()
            self._record(scope, status or CLIENT_GONE, time.perf_counter() - started)

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


def plain_route(path: str, endpoint: Callable[..., Any], methods: list[str]) -> "Route":
    """Starlette's route, without FastAPI's search for dependencies, which costs a short text more than its parsing.

    It tells its path as FastAPI's do, for `Shell` counts requests by it.
    """
    from starlette.routing import Match, Route

    class PlainRoute(Route):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            match, child_scope = super().matches(scope)
            return match, {**child_scope, "route": self}

    return PlainRoute(path, endpoint, methods=methods)


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
