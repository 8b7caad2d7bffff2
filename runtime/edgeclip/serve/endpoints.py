"""The routes of the API: embeddings, the model, health, metrics, and the OpenAPI document.

Thin: `edgeclip.serve.api.request` says what a request means, `edgeclip.serve.service` computes the answer. API keys
guard /v1; the other routes hold nothing that a key protects.
"""

import hashlib
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from edgeclip import __version__
from edgeclip.manifest import Manifest
from edgeclip.serve.api.answers import Health, Model, Models
from edgeclip.serve.api.openapi import describe
from edgeclip.serve.errors import ApiError, not_trusted
from edgeclip.serve.http.middleware import Endpoint
from edgeclip.serve.http.pending_bytes import PendingBytes
from edgeclip.serve.http.request_body import parse_aside, read_body, while_connected
from edgeclip.serve.http.streamed_answer import StreamedAnswer
from edgeclip.serve.metrics import KeptText, Metrics
from edgeclip.serve.readiness import Readiness
from edgeclip.serve.service import EmbeddingService
from edgeclip.serve.settings import Settings
from edgeclip.serve.stages import Stages

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route


class Endpoints:
    """The API of one bundle, served under the name `model`."""

    def __init__(
        self,
        settings: Settings,
        *,
        model: str,
        manifest: Manifest,
        service: EmbeddingService,
        readiness: Readiness,
        metrics: Metrics,
    ) -> None:
        import msgspec

        self._settings, self._model = settings, model
        self._service, self._readiness, self._metrics = service, readiness, metrics
        self._pending = PendingBytes(settings.max_pending_bytes, metrics)
        self._metrics_text = KeptText(metrics.render, keep_s=settings.metrics_s)
        # A client that keeps vectors sees by it that a restart brought others, which cannot be compared with them.
        self._bundle_id = hashlib.sha256(manifest.to_json().encode()).hexdigest()[:16]
        entry = Model.of(model, manifest.source, service.model)
        document = describe(
            version=__version__, model=model, limits=service.limits, is_key_needed=bool(settings.api_keys)
        )
        # Answers that never change are written once.
        self._written = {
            "model": msgspec.json.encode(entry),
            "models": msgspec.json.encode(Models(data=[entry])),
            "openapi": msgspec.json.encode(document),
            "ok": msgspec.json.encode(Health(status="ok")),
        }

    def routes(self) -> "list[Route]":
        """The routes of the API."""
        from starlette.routing import Route

        shown = {
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._models,
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/metrics": self._show_metrics,
            "/openapi.json": self._openapi,
        }
        routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in shown.items()]  # HEAD comes with GET
        return [Route("/v1/embeddings", Endpoint(self._embeddings), methods=["POST"]), *routes]

    async def _embeddings(self, request: "Request") -> "Response | StreamedAnswer":
        from starlette.responses import Response

        started, stages = time.perf_counter(), Stages()
        readiness, settings = self._readiness, self._settings
        if readiness.doubt and not (await readiness.check()).is_ready:
            raise not_trusted(settings.ready_s)
        with ExitStack() as held:
            room = held.enter_context(self._pending.room())
            with stages.measure("read"), room.incomplete():
                body = await read_body(request, settings, room)
            with stages.measure("parse"):
                request.scope["edgeclip.bytes_in"] = len(body)
                parsed = await parse_aside(body, self._service.limits)
                request.scope["edgeclip.items"] = len(parsed.items)
            del body
            asked = parsed.model or self._model
            if settings.is_model_checked and asked != self._model:
                raise self._not_served("the model that was asked for is not served here")
            answer = await while_connected(request, self._service.embed(parsed, asked, stages, room))
            if readiness.doubt:  # since it began
                raise not_trusted(settings.ready_s)
            request.scope["edgeclip.stages"] = stages.seconds
            shown = {**stages.seconds, "total": time.perf_counter() - started}
            timing = ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in shown.items())
            headers = {"Server-Timing": timing, "Edgeclip-Bundle": self._bundle_id}
            if isinstance(answer, bytes):
                return Response(answer, media_type="application/json", headers=headers)
            # Its vectors hold their room until all of them are sent.
            return StreamedAnswer(answer, headers=headers, held=held.pop_all(), within_s=settings.request_timeout_s)

    async def _models(self, request: "Request") -> "Response":
        if request.path_params.get("name", self._model) != self._model:
            raise self._not_served("the model is not served here")
        return self._give("model" if request.path_params else "models")

    async def _live(self, _: "Request") -> "Response":
        return self._give("ok")

    async def _ready(self, request: "Request") -> "Response":
        from starlette.responses import JSONResponse

        asked = request.query_params.get("modality")
        served = self._service.model.modalities
        modality = next((one for one in served if one == asked), None)
        if asked is not None and modality is None:
            message = f"this service takes {' and '.join(f'{one}s' for one in served)}; modality is another"
            raise ApiError(400, message, param="modality", code="modality_not_supported")
        verdict = await self._readiness.check(modality)
        if modality is None:
            self._metrics.ready.set(verdict.is_ready)
        if verdict.is_ready:
            return self._give("ok")
        answer = {"status": "unavailable", "reason": verdict.reason, "ready": self._readiness.passed}
        return JSONResponse(answer, 503)

    async def _show_metrics(self, _: "Request") -> "Response":
        from starlette.responses import Response

        return Response(await self._metrics_text.get(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, _: "Request") -> "Response":
        return self._give("openapi")

    def _give(self, name: str) -> "Response":
        from starlette.responses import Response

        return Response(self._written[name], media_type="application/json")

    def _not_served(self, message: str) -> ApiError:
        return ApiError(404, f"{message}; {self._model} is", param="model", code="model_not_found")
