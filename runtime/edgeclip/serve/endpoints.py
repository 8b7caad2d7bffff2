"""The routes of the API: embeddings, the model, health, metrics, and the OpenAPI document.

Thin: `edgeclip.serve.api.request` says what a request means, `edgeclip.serve.service` computes the answer. API keys
guard /v1; the other routes hold nothing that a key protects.
"""

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeclip import __version__
from edgeclip.manifest import Manifest
from edgeclip.serve.api.answers import Health, Model, Models
from edgeclip.serve.api.openapi import describe
from edgeclip.serve.embeddings import Embeddings
from edgeclip.serve.errors import ApiError, not_served
from edgeclip.serve.metrics import KeptText, Metrics
from edgeclip.serve.readiness import Readiness
from edgeclip.serve.service import EmbeddingService
from edgeclip.serve.settings import Settings


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
        embeddings: Embeddings,
    ) -> None:
        self._model, self._service, self._readiness, self._metrics = model, service, readiness, metrics
        self._embeddings = embeddings
        self._metrics_text = KeptText(metrics.render, keep_s=settings.metrics_s)
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

    def routes(self) -> list[Route]:
        """The routes of the API."""
        shown = {
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._models,
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/metrics": self._show_metrics,
            "/openapi.json": self._openapi,
        }
        routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in shown.items()]  # HEAD comes with GET
        return [Route("/v1/embeddings", self._embeddings, methods=["POST"]), *routes]

    async def _models(self, request: Request) -> Response:
        if request.path_params.get("name", self._model) != self._model:
            raise not_served("the model is not served here", self._model)
        return self._give("model" if request.path_params else "models")

    async def _live(self, _: Request) -> Response:
        return self._give("ok")

    async def _ready(self, request: Request) -> Response:
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

    async def _show_metrics(self, _: Request) -> Response:
        return Response(await self._metrics_text.get(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, _: Request) -> Response:
        return self._give("openapi")

    def _give(self, name: str) -> Response:
        return Response(self._written[name], media_type="application/json")
