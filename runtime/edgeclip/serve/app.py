"""The service as one application: makes its parts, starts and ends them, and puts them together.

The routes are in `edgeclip.serve.endpoints` and `edgeclip.serve.pages`, the shell round all of them in
`edgeclip.serve.http.middleware`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgeclip import __version__
from edgeclip.encoder import Encoder
from edgeclip.engine.batch_policy import BatchPolicy
from edgeclip.inputs.patches import check_max_pixels
from edgeclip.manifest import FIRST_GRAPH, Manifest, PatchFacts
from edgeclip.serve.embeddings import Embeddings
from edgeclip.serve.endpoints import Endpoints
from edgeclip.serve.http.access_log import AccessLog
from edgeclip.serve.http.api_keys import KeyRing
from edgeclip.serve.http.middleware import Shell
from edgeclip.serve.http.open_files import OutOfFiles
from edgeclip.serve.http.pending_bytes import PendingBytes
from edgeclip.serve.http.server import Application
from edgeclip.serve.images.decode_queue import PictureDecoder
from edgeclip.serve.images.decoder import PictureLimits
from edgeclip.serve.images.fetch import FetchPolicy
from edgeclip.serve.images.fetch import fetch as fetch_url
from edgeclip.serve.images.fetch_queue import Fetch
from edgeclip.serve.images.url_hosts import parse_url_hosts
from edgeclip.serve.memory_trimming import keep_trimmed
from edgeclip.serve.metrics import Metrics
from edgeclip.serve.pages import page_routes
from edgeclip.serve.queue.lanes import Lane, LaneLimits
from edgeclip.serve.queue.thread_priority import niceness_for
from edgeclip.serve.readiness import Readiness
from edgeclip.serve.service import EmbeddingService
from edgeclip.serve.settings import Settings

# Beside texts without a pause an image of the full-size int8 model takes some 5 s: by turns, four requests of eight
# would each be answered after 2.5 minutes.
_IMAGES_UNDIVIDED = 8
# Features that may be between two graphs when the next batch begins, on a device that runs several pages at once:
# five pages of 768 tokens. On a CPU a page passes both graphs before the next: each of them fills the cores, and both
# together leave a short text less: on two cores its p95 was 2.2 times that of texts alone, and 1.6 times one by one
# (2026-11-30, two layers and four vision blocks of jina-embeddings-v4 as int8).
_MOST_AHEAD_BYTES = 32 << 20
# How long the end waits for the batch that still runs; every request was answered or cut off before.
_CLOSE_S = 5.0


def create_app(settings: Settings, encoder: Encoder, *, fetch: Fetch | None = None) -> Application:
    """The service. Its lifespan starts and ends the lanes; the caller closes the encoder.

    `settings.api_keys` are all the keys: a file of keys must have been read before. `fetch` gets an image's URL in
    place of `edgeclip.serve.images.fetch.fetch`, which follows the settings.
    """
    manifest = encoder.whole_manifest  # by which clients know the bundle
    model = settings.model_name or manifest.source.name.rpartition("/")[2]
    metrics = Metrics(
        version=__version__,
        model=model,
        device=encoder.device,
        precisions={name: graph.precision for name, graph in encoder.manifest.graphs.items()},
    )
    parts = _make_parts(settings, encoder, metrics, fetch)
    pending = PendingBytes(settings.max_pending_bytes, metrics)
    service, readiness = parts.service, parts.readiness
    embeddings = Embeddings(
        settings, model=model, manifest=manifest, service=service, readiness=readiness, pending=pending
    )
    endpoints = Endpoints(
        settings,
        model=model,
        manifest=manifest,
        service=service,
        readiness=readiness,
        metrics=metrics,
        embeddings=embeddings,
    )
    files = OutOfFiles()
    answer = Shell(
        [*endpoints.routes(), *page_routes()],
        metrics=metrics,
        keys=KeyRing(settings.api_keys),
        files=files,
        root_path=settings.root_path,
        metrics_port=settings.metrics_port,
        has_ids=settings.request_id,
        access_log=AccessLog(settings.access_log_format, with_clients=settings.access_log_clients)
        if settings.access_log
        else None,
        allow_origins=_allow_origins(settings.cors_origins) if settings.cors_origins else None,
    )
    return Application(
        answer=answer, lifespan=partial(_lifespan, parts, settings, metrics, files, pending), refused=metrics.refused
    )


def lane_policy(device: str, manifest: Manifest, settings: Settings) -> BatchPolicy:
    """The largest batches of the lanes on a device, named as `Encoder.device` names it.

    A query waits for the batch that runs, so batches are short.
    """
    return BatchPolicy.choose(device.partition(":")[0], manifest, "latency", max_batch=settings.max_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The parts of the service that begin and end with it."""

    lanes: Mapping[str, Lane]
    decoder: PictureDecoder
    readiness: Readiness
    service: EmbeddingService


def _make_parts(settings: Settings, encoder: Encoder, metrics: Metrics, fetch: Fetch | None) -> _Parts:
    lanes = {graph: _lane(graph, settings, encoder, metrics) for graph in encoder.manifest.graphs}
    decoder = PictureDecoder(
        partial(encoder.prepare_image, max_pixels=settings.max_pixels),
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
    return _Parts(lanes=lanes, decoder=decoder, readiness=readiness, service=service)


def _lane(graph: str, settings: Settings, encoder: Encoder, metrics: Metrics) -> Lane:
    is_for_images = graph == FIRST_GRAPH["image"]
    policy = lane_policy(encoder.device, encoder.manifest, settings)
    return Lane(
        graph,
        encoder.run_batch,
        policy=policy,
        limits=LaneLimits(
            max_queued=settings.max_queued_images if is_for_images else settings.max_queued_texts,
            wedged_s=settings.wedged_s,
            most_ahead_bytes=1 if policy.images == 1 else _MOST_AHEAD_BYTES,
        ),
        observer=metrics.graphs[graph],
        niceness=niceness_for(settings.image_share) if is_for_images else 0,
        long_niceness=niceness_for(settings.image_share),
        quantum=_IMAGES_UNDIVIDED * _largest_image_cost(encoder.manifest, settings) if is_for_images else 0,
    )


def _largest_image_cost(manifest: Manifest, settings: Settings) -> int:
    """What an image costs at most in the graph that takes it: its patches, or 1 where all have one size."""
    if not isinstance(manifest.image, PatchFacts):
        return 1
    return check_max_pixels(settings.max_pixels, manifest.image) // manifest.image.patch_px**2


@contextlib.asynccontextmanager
async def _lifespan(
    parts: _Parts, settings: Settings, metrics: Metrics, files: OutOfFiles, pending: PendingBytes
) -> AsyncIterator[None]:
    files.watch(asyncio.get_running_loop())
    for graph, lane in parts.lanes.items():
        await lane.start()
        metrics.watch_depth(graph, lambda lane=lane: lane.depth)  # type: ignore[misc]
    parts.readiness.renew()
    watching = [
        asyncio.create_task(keep_trimmed()),
        asyncio.create_task(pending.end_late(settings.request_timeout_s)),
    ]
    try:
        yield
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await parts.readiness.close()
        within_s = min(_CLOSE_S, settings.shutdown_timeout_s)
        await asyncio.gather(*(lane.close(within_s=within_s) for lane in parts.lanes.values()))
        parts.service.close()
        parts.decoder.close()


def _allow_origins(origins: tuple[str, ...]) -> Callable[[Any], Any]:
    """A middleware that lets pages of these origins call, preflights included."""
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
