"""The route of embeddings, as an ASGI application: a request's body in, vectors out.

Starlette has no part in it: its request, its answer and what it wraps round a route's function are as much work as
all that is done here for a short text.
"""

import hashlib
import time
from collections.abc import AsyncIterator
from functools import partial

from starlette.requests import ClientDisconnect

from edgeclip.manifest import Manifest
from edgeclip.serve.errors import not_served, not_trusted
from edgeclip.serve.http.answers import send_pieces, send_whole
from edgeclip.serve.http.exchange import WHEN_GONE, Receive, Scope, Send
from edgeclip.serve.http.pending_bytes import PendingBytes, Room
from edgeclip.serve.http.request_body import parse_aside, read_body
from edgeclip.serve.readiness import Readiness
from edgeclip.serve.service import EmbeddingService
from edgeclip.serve.settings import Settings
from edgeclip.serve.stages import Stages


class Embeddings:
    """Answers requests for embeddings of one bundle, served under the name `model`."""

    def __init__(
        self,
        settings: Settings,
        *,
        model: str,
        manifest: Manifest,
        service: EmbeddingService,
        readiness: Readiness,
        pending: PendingBytes,
    ) -> None:
        self._settings, self._model = settings, model
        self._service, self._readiness, self._pending = service, readiness, pending
        # A client that keeps vectors sees by it that a restart brought others, which cannot be compared with them.
        self._bundle_id = hashlib.sha256(manifest.to_json().encode()).hexdigest()[:16].encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
        with self._pending.room() as room:
            answer, timing = await self._embed(scope, receive, room)
            headers += ((b"server-timing", timing.encode()), (b"edgeclip-bundle", self._bundle_id))
            if not isinstance(answer, bytes):  # its vectors hold their room until all of them are sent
                await send_pieces(send, headers, answer, within_s=self._settings.request_timeout_s)
                return
        await send_whole(send, headers, answer)

    async def _embed(self, scope: Scope, receive: Receive, room: Room) -> tuple[bytes | AsyncIterator[bytes], str]:
        """The answer to a request, and the milliseconds of its stages as a header has them."""
        started, stages = time.perf_counter(), Stages()
        readiness, settings, service = self._readiness, self._settings, self._service
        if readiness.doubt and not (await readiness.check()).is_ready:
            raise not_trusted(settings.ready_s)
        stages.enter("read")
        room.expect()
        body = await read_body(dict(scope["headers"]), receive, settings, room)
        room.expect_no_more()
        stages.leave("read")
        stages.enter("parse")
        scope["edgeclip.bytes_in"] = len(body)
        parsed = await parse_aside(body, service.limits)
        scope["edgeclip.items"] = len(parsed.items)
        stages.leave("parse")
        del body
        asked = parsed.model or self._model
        if settings.is_model_checked and asked != self._model:
            raise not_served("the model that was asked for is not served here", self._model)
        room.end_after(settings.request_timeout_s, partial(service.too_late, parsed))
        scope[WHEN_GONE](partial(room.end, ClientDisconnect()))
        answer = await service.embed(parsed, asked, stages, room)
        if readiness.doubt:  # since it began
            raise not_trusted(settings.ready_s)
        scope["edgeclip.stages"] = stages.seconds
        shown = {**stages.seconds, "total": time.perf_counter() - started}
        return answer, ", ".join([f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in shown.items()])
