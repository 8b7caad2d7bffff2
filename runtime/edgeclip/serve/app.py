"""The HTTP of the service: its parts, put together, and its routes.

Thin: what a request means is `edgeclip.serve.api.request`' work, what becomes of it `edgeclip.serve.service`'s. API
keys guard /v1; the page, the documents, health and metrics hold nothing that a key protects.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip import __version__
from edgeclip.encoder import Encoder
from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.manifest import TOWERS, Manifest, TowerName
from edgeclip.serve.api.openapi import ASSETS, START_SCRIPT, describe, docs_page, read_asset
from edgeclip.serve.api.request_fields import JINA_TASKS
from edgeclip.serve.errors import ApiError, not_trusted
from edgeclip.serve.http.access_log import AccessLog
from edgeclip.serve.http.api_keys import KeyRing
from edgeclip.serve.http.middleware import PAGE_POLICY, Application, Endpoint, Shell
from edgeclip.serve.http.pending_bytes import PendingBytes
from edgeclip.serve.http.request_body import parse_aside, read_body, while_connected
from edgeclip.serve.images.decode_queue import PictureDecoder
from edgeclip.serve.images.decoder import PictureLimits
from edgeclip.serve.images.fetch import FetchPolicy
from edgeclip.serve.images.fetch import fetch as fetch_url
from edgeclip.serve.images.fetch_queue import Fetch
from edgeclip.serve.images.url_hosts import parse_url_hosts
from edgeclip.serve.memory_trimming import keep_trimmed
from edgeclip.serve.metrics import KeptText, Metrics
from edgeclip.serve.queue.lanes import Lane, LaneLimits
from edgeclip.serve.queue.thread_priority import niceness_for
from edgeclip.serve.readiness import Readiness
from edgeclip.serve.service import EmbeddingService, Stages
from edgeclip.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import Router

_WEB = Path(__file__).with_name("web")
_WEB_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
_DOCS_POLICY = PAGE_POLICY + "; style-src 'self' 'unsafe-inline'"  # Swagger sets styles as it draws
# Of the end, when every request was answered or cut off: for the batch that still runs, and that nobody waits for.
_CLOSE_S = 5.0


def create_app(settings: Settings, encoder: Encoder, *, fetch: Fetch | None = None) -> Application:
    """The service as an ASGI application. Its lifespan starts and ends the lanes; the encoder stays its caller's.

    `settings.api_keys` are all the keys: whoever has a file of them has read it already. `fetch` gets an image's URL
    in place of `edgeclip.serve.images.fetch.fetch`, which follows the settings.
    """
    model = settings.model_name or encoder.manifest.source.name.rpartition("/")[2]
    metrics = Metrics(
        version=__version__,
        model=model,
        device=encoder.device,
        precisions=[encoder.manifest.tower(tower).precision for tower in TOWERS],
    )
    answer = Shell(
        _route(settings, encoder, model, metrics, fetch),
        metrics=metrics,
        keys=KeyRing(settings.api_keys),
        root_path=settings.root_path,
        metrics_port=settings.metrics_port,
        has_ids=settings.request_id,
        access_log=AccessLog(settings.access_log_format, with_clients=settings.access_log_clients)
        if settings.access_log
        else None,
        allow_origins=_allow_origins(settings.cors_origins) if settings.cors_origins else None,
    )
    return Application(answer, metrics.refused)


def _allow_origins(origins: tuple[str, ...]) -> Callable[[Any], Any]:
    """What makes an ASGI application answer pages of these origins, preflights too."""
    from starlette.middleware.cors import CORSMiddleware

    return partial(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        # What the page asks for is echoed: openai's package adds x-stainless-*, others headers of their own.
        allow_headers=["*"],
        expose_headers=["Retry-After", "Server-Timing", "X-Request-ID", "Edgeclip-Bundle"],
        allow_private_network=True,  # a page on the internet may call a service on the user's own network
    )


def _route(settings: Settings, encoder: Encoder, model: str, metrics: Metrics, fetch: Fetch | None) -> "Router":
    import orjson
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route, Router

    manifest = encoder.manifest
    lanes = {tower: _lane(tower, settings, encoder, metrics) for tower in TOWERS}
    decoder = PictureDecoder(
        encoder.preprocess,
        PictureLimits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            max_decode_bytes=settings.max_decode_bytes,
        ),
        threads=settings.decode_threads,
    )
    policy = FetchPolicy(
        is_allowed=settings.allow_urls,
        allow_http=settings.allow_http_urls,
        max_bytes=settings.max_image_bytes,
        timeout_s=settings.fetch_timeout_s,
        max_redirects=settings.max_redirects,
        hosts=parse_url_hosts(settings.url_hosts),
    )
    readiness = Readiness(
        encoder,
        lanes,
        ready_s=settings.ready_s,
        timeout_s=settings.request_timeout_s + settings.wedged_s,
    )
    service = EmbeddingService(
        settings,
        encoder,
        lanes=lanes,
        decoder=decoder,
        fetch=fetch or partial(fetch_url, policy=policy),
        metrics=metrics,
        distrust=readiness.distrust,
    )
    pending = PendingBytes(settings.max_pending_bytes, metrics)
    document = describe(
        version=__version__,
        model=model,
        limits=service.limits,
        is_key_needed=bool(settings.api_keys),
    )
    pages = _read_pages(_WEB)
    # A client that keeps vectors sees by it that a restart brought others, which cannot be compared with them.
    bundle_id = hashlib.sha256(manifest.to_json().encode()).hexdigest()[:16]
    metrics_text = KeptText(metrics.render, keep_s=settings.metrics_s)
    entry = {
        "id": model,
        "object": "model",
        "created": 0,
        "owned_by": manifest.source.name.rpartition("/")[0] or "edgeclip",
        "dimensions": list(manifest.matryoshka_dims),
        "max_length": service.facts.max_length,
        "tasks": list(service.limits.tasks),
        "tasks_without_instruction": [task for task in JINA_TASKS if task not in service.limits.tasks],
    }
    # What anybody may ask for is written once.
    written = {
        "model": orjson.dumps(entry),
        "models": orjson.dumps({"object": "list", "data": [entry]}),
        "openapi": orjson.dumps(document),
        "ok": orjson.dumps({"status": "ok"}),
    }

    def give(name: str) -> Response:
        return Response(written[name], media_type="application/json")

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        for tower, lane in lanes.items():
            await lane.start()
            metrics.watch_depth(tower, lambda lane=lane: lane.depth)  # type: ignore[misc]
        readiness.renew()
        trimming = asyncio.create_task(keep_trimmed())
        try:
            yield
        finally:
            trimming.cancel()
            await asyncio.gather(trimming, return_exceptions=True)
            await readiness.close()
            within_s = min(_CLOSE_S, settings.shutdown_timeout_s)
            await asyncio.gather(*(lane.close(within_s=within_s) for lane in lanes.values()))
            service.close()
            decoder.close()

    async def embeddings(request: "Request") -> Response:
        started, stages = time.perf_counter(), Stages()
        if readiness.doubt and not (await readiness.check()).is_ready:
            raise not_trusted(settings.ready_s)
        with pending.room() as room:
            with stages.measure("read"), room.incomplete():
                body = await read_body(request, settings, room)
            with stages.measure("parse"):
                request.scope["edgeclip.bytes_in"] = len(body)
                parsed = await parse_aside(body, service.limits)
                request.scope["edgeclip.items"] = len(parsed.items)
            del body
            asked = parsed.model or model
            if settings.is_model_checked and asked != model:
                message = f"the model that was asked for is not served here; {model} is"
                raise ApiError(404, message, param="model", code="model_not_found")
            answer = await while_connected(request, service.embed(parsed, asked, stages, room))
        if readiness.doubt:  # since it began
            raise not_trusted(settings.ready_s)
        request.scope["edgeclip.stages"] = stages.seconds
        shown = {**stages.seconds, "total": time.perf_counter() - started}
        timing = ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in shown.items())
        return Response(
            answer, media_type="application/json", headers={"Server-Timing": timing, "Edgeclip-Bundle": bundle_id}
        )

    async def models(request: "Request") -> Response:
        name = request.path_params.get("name", model)
        if name != model:
            raise ApiError(404, f"the model is not served here; {model} is", param="model", code="model_not_found")
        return give("model" if request.path_params else "models")

    async def live(_: "Request") -> Response:
        return give("ok")

    async def ready(_: "Request") -> Response:
        verdict = await readiness.check()
        metrics.ready.set(verdict.is_ready)
        if verdict.is_ready:
            return give("ok")
        return JSONResponse({"status": "unavailable", "reason": verdict.reason}, 503)

    async def show_metrics(_: "Request") -> Response:
        return Response(await metrics_text.get(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(_: "Request") -> Response:
        return give("openapi")

    async def docs(request: "Request") -> Response:
        page = docs_page(is_folder=request.scope["edgeclip.path"].endswith("/"))
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": _DOCS_POLICY})

    async def docs_asset(request: "Request") -> Response:
        name = request.path_params["name"]
        if name == "start.js":
            return Response(START_SCRIPT, media_type="text/javascript")
        if name not in ASSETS:
            raise HTTPException(404)
        data = await asyncio.to_thread(read_asset, name)
        return Response(data, media_type=ASSETS[name], headers={"Cache-Control": "max-age=86400"})

    async def page(request: "Request") -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in pages:
            raise HTTPException(404)
        data, kind = pages[name]
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    shown = {
        "/v1/models": models,
        "/v1/models/{name:path}": models,
        "/health/live": live,
        "/health/ready": ready,
        "/metrics": show_metrics,
        "/openapi.json": openapi,
        "/docs": docs,
        "/docs/{name}": docs_asset,
        "/": page,
        "/web/{name}": page,
    }
    routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in shown.items()]  # HEAD comes with GET
    return Router(
        [Route("/v1/embeddings", Endpoint(embeddings), methods=["POST"]), *routes],
        lifespan=lifespan,
        redirect_slashes=False,
    )


def _lane(tower: TowerName, settings: Settings, encoder: Encoder, metrics: Metrics) -> Lane:
    return Lane(
        tower,
        lambda batch: encoder.run_tower(tower, batch),
        policy=lane_policy(encoder.device, encoder.manifest, settings),
        limits=LaneLimits(
            max_queued=settings.max_queued_texts if tower == "text" else settings.max_queued_images,
            wedged_s=settings.wedged_s,
        ),
        observer=metrics.towers[tower],
        niceness=niceness_for(settings.image_share) if tower == "vision" else 0,
        long_niceness=niceness_for(settings.image_share),
    )


def lane_policy(device: str, manifest: Manifest, settings: Settings) -> BatchPolicy:
    """What the lanes may take at once on a device, named as `Encoder.device` names it.

    A query waits for the batch that runs, so batches of other people's inputs are short.
    """
    return BatchPolicy.choose(device.partition(":")[0], manifest, "latency", max_batch=settings.max_batch)


def _read_pages(folder: Path) -> dict[str, tuple[bytes, str]]:
    """The files of the web page by name; none where the folder is not there."""
    if not folder.is_dir():
        return {}
    return {
        path.name: (path.read_bytes(), _WEB_TYPES[path.suffix])
        for path in sorted(folder.iterdir())
        if path.suffix in _WEB_TYPES
    }
