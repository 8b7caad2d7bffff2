"""The metrics that the service gives Prometheus, in a registry of its own.

They count requests, errors, waiting inputs, batches, the time of each stage, tokens and memory. No label holds
anything that a client chose: a route is the route's template, so a scan of paths makes no new series.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from prometheus_client import Metric

# From a short text on a GPU to a request of many images on a small CPU.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# How much a new batch counts in the running mean of the seconds that an input takes.
_NEWEST = 0.2
# Batches that are remembered, and inputs among them from which something may be concluded: the first batch after a
# start includes loading the graph.
_REMEMBERED = 64
_ENOUGH = 8
# Between two metrics, while they are rendered: a pause that hands Python's lock to the event loop's thread.
_PAUSE_S = 0.0001


class GraphMetrics:
    """Observes one lane: batch sizes, waits and compute times, and the seconds for a cost of 1 at present."""

    def __init__(self, metrics: "Metrics", graph: str) -> None:
        self._size = metrics.batch_size.labels(graph)
        self._wait = metrics.wait_seconds.labels(graph)
        self._compute = metrics.compute_seconds.labels(graph)
        self.seconds_per_cost: float | None = None
        self._latest: deque[tuple[float, int, float]] = deque(maxlen=_REMEMBERED)

    def batch(self, size: int, waits_s: Sequence[float], compute_s: float, *, cost: int) -> None:
        """Note a batch that has run; `cost` is that of its inputs together (`Item.tokens`)."""
        self._size.observe(size)
        self._compute.observe(compute_s)
        for wait_s in waits_s:
            self._wait.observe(wait_s)
        each = compute_s / max(1, cost)
        known = each if self.seconds_per_cost is None else self.seconds_per_cost
        self.seconds_per_cost = known + _NEWEST * (each - known)
        self._latest.append((time.monotonic(), size, each))

    def best_pace(self, within_s: float) -> float | None:
        """The seconds for a cost of 1 in the quickest batch of the last `within_s`; None when too few have run."""
        since_s = time.monotonic() - within_s
        latest = [(size, each) for at_s, size, each in tuple(self._latest) if at_s >= since_s]
        if sum(size for size, _ in latest) < _ENOUGH:
            return None
        return min(each for _, each in latest)


class Metrics:
    """Every metric, and the text that /metrics gives. `precisions` has the precision of each graph by its name."""

    def __init__(self, *, version: str, model: str, device: str, precisions: Mapping[str, str]) -> None:
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            Info,
            PlatformCollector,
            ProcessCollector,
        )

        self.registry: CollectorRegistry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # resident memory, CPU time, open files
        PlatformCollector(registry=self.registry)
        registry = self.registry
        facts = {"version": version, "model": model, "device": device, "precision": "/".join(precisions.values())}
        Info("edgeclip", "What is served", registry=registry).info(facts)
        self.requests = Counter("edgeclip_requests", "Answers", ["route", "method", "status"], registry=registry)
        self.errors = Counter("edgeclip_errors", "Answers that are errors", ["status", "code"], registry=registry)
        self.request_seconds = Histogram(
            "edgeclip_request_seconds",
            "From the head of a request to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge(
            "edgeclip_requests_in_progress", "Requests that wait for their answer", registry=registry
        )
        self.pending_bytes = Gauge("edgeclip_pending_bytes", "Bodies of requests in progress", registry=registry)
        self.queue_depth = Gauge("edgeclip_queue_depth", "Inputs that wait for a graph", ["graph"], registry=registry)
        self.wait_seconds = Histogram(
            "edgeclip_queue_wait_seconds",
            "An input's wait for its batch",
            ["graph"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "edgeclip_batch_size", "Inputs in a batch", ["graph"], buckets=_SIZES, registry=registry
        )
        self.compute_seconds = Histogram(
            "edgeclip_compute_seconds", "A graph's time for a batch", ["graph"], buckets=_SECONDS, registry=registry
        )
        self.stage_seconds = Histogram(
            "edgeclip_stage_seconds", "A request's time in a stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.inputs = Counter("edgeclip_inputs", "Inputs that were embedded", ["kind"], registry=registry)
        self.tokens = Counter("edgeclip_tokens", "Tokens, as usage counts them", ["kind"], registry=registry)
        self.truncated = Counter("edgeclip_truncated", "Texts that were cut", registry=registry)
        self.ready = Gauge("edgeclip_ready", "1 when the last self-test passed", registry=registry)
        self.graphs = {graph: GraphMetrics(self, graph) for graph in precisions}

    def watch_depth(self, graph: str, depth: Callable[[], float]) -> None:
        """Ask `depth` for the inputs that wait for a graph whenever metrics are rendered."""
        self.queue_depth.labels(graph).set_function(depth)

    def refused(self, status: int, code: str) -> None:
        """Count a connection that was refused before there was a request."""
        self.requests.labels("none", "other", str(status)).inc()
        self.errors.labels(str(status), code).inc()

    def render(self) -> bytes:
        """Prometheus' text format. It takes 10 ms and more: call it in a thread, which pauses after each metric."""
        from prometheus_client import CollectorRegistry, generate_latest

        parts = []
        for metric in self.registry.collect():
            parts.append(generate_latest(cast(CollectorRegistry, _One(metric))))
            time.sleep(_PAUSE_S)
        return b"".join(parts)


class _One:
    """Stands for a registry of one metric that is collected already."""

    def __init__(self, metric: "Metric") -> None:
        self._metric = metric

    def collect(self) -> "Iterator[Metric]":
        yield self._metric


class KeptText:
    """A text that is rendered in a thread, at most once in `keep_s`, however often it is asked for."""

    def __init__(self, render: Callable[[], bytes], *, keep_s: float) -> None:
        self._render, self._keep_s = render, keep_s
        self._text, self._rendered_at = b"", -float("inf")
        self._run: asyncio.Task[None] | None = None

    async def get(self) -> bytes:
        """The text, at most `keep_s` old. Raises what rendering it raises."""
        if time.monotonic() - self._rendered_at > self._keep_s:
            if self._run is None or self._run.done():
                self._run = asyncio.create_task(self._renew())
            await asyncio.shield(self._run)  # the others wait for it, too
        return self._text

    async def _renew(self) -> None:
        self._text = await asyncio.to_thread(self._render)
        self._rendered_at = time.monotonic()
