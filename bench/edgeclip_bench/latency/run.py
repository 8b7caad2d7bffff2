"""Run `edgeclip bench`: open bundles one after another, measure every case on each, keep all samples.

It times what a user calls, `Encoder.encode_text` with a str and `Encoder.encode_image` with a path, so tokenising,
reading and decoding are included; the steps are also measured apart (`edgeclip_bench.latency.stages`). One bundle is
open at a time, so no other session's threads take the processor.
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip import Encoder, Manifest
from edgeclip.engine.devices import choose_threads, usable_cpus
from edgeclip.errors import BuildError, InputError
from edgeclip.families.family import Item
from edgeclip_bench.latency.cases import Case, Plan, cases_for, check_plan, make_image, make_text, offline_size
from edgeclip_bench.latency.records import (
    BENCHMARK,
    Absence,
    Memory,
    Metric,
    ProbeFigures,
    Record,
    Result,
    ServerFigures,
    Subject,
)
from edgeclip_bench.latency.scenarios import (
    COUNTS,
    SERVER_QUERIES,
    WARM_UP_RULE,
    Probe,
    Query,
    ServerRun,
    Stream,
    WallClock,
    find_server_rate,
    stream,
)
from edgeclip_bench.latency.stages import Stages, measure_image_stages, measure_text_stages
from edgeclip_bench.measure import other_processes, percentiles, stability
from edgeclip_bench.measure.ceiling import Ceiling, best_gemm, gemm_kind, make_ceiling, measure_copy, profile_graph
from edgeclip_bench.measure.documents import make_document
from edgeclip_bench.measure.other_processes import others_share, read_spent
from edgeclip_bench.measure.percentiles import Distribution, samples_wanted, summarize
from edgeclip_bench.measure.resident_memory import gpu_bytes, peak_bytes, reset_peak, resident_bytes
from edgeclip_bench.measure.stability import Effort, effort_for
from edgeclip_bench.quality.spaces import graphs_of

RULES = {
    "percentiles": percentiles.RULE,
    "steady": stability.RULE,
    "warm_up": WARM_UP_RULE,
    "others": other_processes.RULE,
    "latency": "of Encoder.encode_text(str) or encode_image(path), whole; a server's from the scheduled moment",
    "counts": "MLPerf Inference: p90 of single-stream, p99 of multi-stream, rate under a p99 bound of server, "
    "samples a second of offline",
    "ceiling": "floor = max(FLOPs / measured GEMM, weight bytes / measured copy); share = floor / compute",
}
# A longer probe is not begun: three to six follow each other.
_LONGEST_PROBE_S = 300.0
# Single queries before the first probe, which show how fast a worker is.
_SERVICE_QUERIES = 20
_KEPT_SAMPLES = 20_000
# Runs enough for a comparison of two documents to judge by.
_OFFLINE = {"most": 6, "queries": 2}

Show = Callable[[str, int, int], None]


def bench(bundles: Sequence[Path], plan: Plan, *, device: str = "auto", progress: Show | None = None) -> Record:
    """Measure every case of the plan on each bundle; InputError for a plan that a bundle cannot follow.

    `progress` is called with what is measured, how many cases are done, and of how many.
    """
    manifests = {folder.resolve().name: Manifest.read(folder) for folder in bundles}
    if len(manifests) < len(bundles):
        names = [folder.resolve().name for folder in bundles]
        raise InputError(f"two bundles are called {max(names, key=names.count)}; rename one")
    for manifest in manifests.values():
        check_plan(plan, manifest)
    planned = [
        (name, folder, count, list(cases_for(plan, count, manifest.modalities, manifest.tasks_of("image"))))
        for (name, manifest), folder in zip(manifests.items(), bundles, strict=True)
        for count in plan.threads or (choose_threads(manifest, usable_cpus()),)
    ]
    total, found = sum(len(cases) for *_, cases in planned), list[Result | Memory | Absence]()
    done = itertools.count()

    def show(case: Case) -> None:
        if progress:
            progress(f"{case.scenario}, {case.name}", next(done), total)

    with tempfile.TemporaryDirectory() as scratch:
        if any(case.modality == "image" for *_, cases in planned for case in cases):
            for size in plan.image_px:  # before anything is measured: without Pillow this is where it ends
                make_image(Path(scratch), size)
        for name, folder, count, cases in planned:
            found += _measure_bundle(name, folder, cases, plan, count, device, Path(scratch), show)
    return Record(
        frame=make_document(BENCHMARK, {}),
        rules=RULES,
        bundles=tuple(_subject(name, manifest) for name, manifest in manifests.items()),
        results=tuple(one for one in found if isinstance(one, Result)),
        memory=tuple(one for one in found if isinstance(one, Memory)),
        left_out=tuple(dict.fromkeys(one for one in found if isinstance(one, Absence))),
    )


def _measure_bundle(
    name: str,
    folder: Path,
    cases: Sequence[Case],
    plan: Plan,
    threads: int,
    device: str,
    scratch: Path,
    show: Callable[[Case], None],
) -> Iterator[Result | Memory | Absence]:
    """Open a bundle with a number of threads, measure its cases, its memory and the ceilings of its graphs."""
    reset_peak()
    before, gpu_before = resident_bytes(), gpu_bytes(0) if device != "cpu" else None
    results: list[Result] = []
    with Encoder.open(folder, device=device, threads=threads) as encoder:
        bundle = _Opened(name, encoder, plan, scratch)
        for case in cases:
            show(case)
            spent = read_spent()
            measured = bundle.measure(case)
            share = others_share(spent, read_spent(), os.cpu_count() or 1)
            if isinstance(measured, Result):
                results.append(replace(measured, others_share=round(share, 4)))
            else:
                yield measured
        gpu_after = gpu_bytes(_index(encoder.device)) if encoder.device != "cpu" else None
        yield Memory(
            bundle=name,
            threads=threads,
            before_bytes=before,
            peak_bytes=peak_bytes(),
            gpu_bytes=gpu_after - gpu_before if gpu_after and gpu_before is not None else None,
        )
        for result in results:
            try:
                yield replace(result, ceiling=_ceiling(result, bundle))
            except BuildError as error:
                yield Absence(what=f"{name}: ceiling of {result.case.name}", why=str(error))
                yield result


class _Opened:
    """An open bundle and the inputs of its cases."""

    def __init__(self, name: str, encoder: Encoder, plan: Plan, scratch: Path) -> None:
        self.name, self.encoder, self.plan = name, encoder, plan
        encoder.keep_features(0)  # one image is run many times, and each run must be whole
        self._scratch, self._clock = scratch, WallClock()
        self._texts: dict[int, str] = {}
        # The items that the graphs ran, for the ceilings.
        self.items: dict[Case, tuple[Item, ...]] = {}

    def measure(self, case: Case) -> Result | Absence:
        """Measure one case, in its scenario."""
        if case.scenario == "offline":
            return self._offline(case)
        if case.scenario == "server":
            return self._server(case)
        effort = effort_for(self.plan.seconds, samples_wanted(COUNTS[case.scenario]))
        run = stream(self._query(case, case.batch), effort, self._clock, per_query=case.batch)
        latency = summarize(run.latencies_ms)
        found = self._streamed(case, run, case.batch, counted(COUNTS[case.scenario], latency))
        stages = self._stages(case) if case.scenario == "single-stream" else None
        return replace(found, latency=latency, samples_ms=_kept(run.latencies_ms), stages=stages)

    def _offline(self, case: Case) -> Result:
        effort = replace(effort_for(self.plan.seconds), **_OFFLINE)
        alone = self._query(case, 1)
        alone()
        started = self._clock.now()
        alone()
        size = offline_size(self._clock.now() - started, effort.window_s / effort.queries)
        run = stream(self._query(case, size), effort, self._clock, per_query=size, warm=alone)
        return self._streamed(case, run, size, Metric(name="throughput", unit="samples/s", value=run.per_second))

    def _streamed(self, case: Case, run: Stream, per_query: int, counts: Metric) -> Result:
        """The result of queries one after another, with `per_query` samples each; as samples, without latency."""
        return Result(
            bundle=self.name,
            case=case,
            device=self.encoder.device,
            counts=counts,
            per_second=run.per_second,
            queries=len(run.latencies_ms),
            samples=len(run.latencies_ms) * per_query,
            warm_up=run.warm_up,
            is_steady=run.is_steady,
            windows=run.windows,
            latency=None,
            samples_ms=_kept(run.latencies_ms / per_query),
        )

    def _server(self, case: Case) -> Result | Absence:
        query, bound_ms = self._query(case, case.batch), self.plan.p99_ms
        assert bound_ms is not None, "the plan checks it"
        alone = Effort(window_s=self.plan.seconds / 2, least=1, most=1, queries=_SERVICE_QUERIES)
        lone = stream(query, alone, self._clock)
        service_s = [float(ms) / 1000 for ms in lone.latencies_ms]
        median_ms = float(np.median(lone.latencies_ms))
        why = None
        if median_ms > bound_ms:
            why = f", so no rate keeps p99 at {bound_ms:g} ms"
        elif SERVER_QUERIES * median_ms / 1000 > _LONGEST_PROBE_S:
            why = f"; {SERVER_QUERIES} of them, which p99 wants, take too long"
        if why:
            return Absence(what=f"{self.name}: server, {case.name}", why=f"alone it takes {median_ms:.3g} ms{why}")
        run = find_server_rate(query, service_s, bound_ms, self._clock)
        return server_result(self.name, case, self.encoder.device, run)

    def _stages(self, case: Case) -> Stages:
        seconds = self.plan.seconds / 4
        if case.modality == "text":
            texts = [self._text(case)] * case.batch
            stages, items = measure_text_stages(self.encoder, texts, seconds, case.task)
        else:
            stages, items = measure_image_stages(self.encoder, [self._image(case)] * case.batch, seconds, case.task)
        self.items[case] = items
        return stages

    def _query(self, case: Case, samples: int) -> Query:
        if case.modality == "text":
            text = self._text(case)
            texts: str | list[str] = text if samples == 1 else [text] * samples
            return partial(self.encoder.encode_text, texts, task=case.task, progress=False)
        path = self._image(case)
        paths: Path | list[Path] = path if samples == 1 else [path] * samples
        at_once = samples if case.scenario != "offline" else None
        return partial(self.encoder.encode_image, paths, task=case.task, batch_size=at_once, progress=False)

    def _text(self, case: Case) -> str:
        assert case.tokens is not None
        if case.tokens not in self._texts:
            prepare = partial(self.encoder.prepare_texts, task=case.task)
            self._texts[case.tokens] = make_text(case.tokens, lambda text: prepare([text]).items[0].tokens)
        return self._texts[case.tokens]

    def _image(self, case: Case) -> Path:
        assert case.image_px is not None
        return make_image(self._scratch, case.image_px)


def counted(level: str, latency: Distribution) -> Metric:
    """The main percentile of a scenario, or how many samples it needs."""
    value = latency.level(level)
    why = None if value is not None else f"{level} wants {samples_wanted(level):,} samples"
    return Metric(name=level, unit="ms", value=value, why=why)


def server_result(name: str, case: Case, device: str, run: ServerRun) -> Result | Absence:
    """The result of the probes; an Absence when not one rate kept the bound."""
    best = run.best
    if best is None:
        return Absence(what=f"{name}: server, {case.name}", why=f"no rate kept p99 at {run.bound_ms:g} ms")
    return Result(
        bundle=name,
        case=case,
        device=device,
        counts=Metric(name=f"rate at p99 <= {run.bound_ms:g} ms", unit="queries/s", value=run.rate_per_s),
        per_second=run.rate_per_s * case.batch,
        queries=len(best.latencies_ms),
        samples=len(best.latencies_ms) * case.batch,
        warm_up=run.warm_up,
        is_steady=None,
        windows=(),
        latency=summarize(best.latencies_ms),
        samples_ms=_kept(best.latencies_ms),
        server=ServerFigures(
            bound_ms=run.bound_ms,
            rate_per_s=run.rate_per_s,
            broken_per_s=run.broken_per_s,
            probes=tuple(_probe_figures(probe) for probe in run.probes),
        ),
        stages=Stages(rounds=len(best.waits_ms), queue_ms=float(np.median(best.waits_ms))),
    )


def _probe_figures(probe: Probe) -> ProbeFigures:
    return ProbeFigures(
        rate_per_s=probe.rate_per_s,
        planned=probe.planned,
        answered=len(probe.latencies_ms),
        is_kept=probe.is_kept,
        latency=summarize(probe.latencies_ms),
        wait=summarize(probe.waits_ms),
    )


def _ceiling(result: Result, bundle: _Opened) -> Ceiling | None:
    """The machine's limits beside a case of one graph whose steps were measured; None for the others."""
    case, device = result.case, result.device
    if result.stages is None or not result.stages.compute_ms or case not in bundle.items:
        return None
    items = bundle.items[case]
    if len(graphs_of(bundle.encoder.manifest, case.modality)) > 1:
        return None
    work = profile_graph(bundle.encoder, items, case.threads)
    kind = gemm_kind(bundle.encoder.manifest.graphs[items[0].graph].precision, device)
    gemm = best_gemm(work, kind, device, case.threads)
    is_host = device.partition(":")[0] in ("cpu", "openvino")
    return make_ceiling(work, result.stages.compute_ms, gemm, measure_copy(case.threads) if is_host else None)


def _subject(name: str, manifest: Manifest) -> Subject:
    proved = {one.modality: one.worst_cosine for one in manifest.measured if one.against == "fp32 bundle"}
    return Subject(
        name=name,
        source=manifest.source.name,
        target=manifest.target,
        precision={graph: facts.precision for graph, facts in manifest.graphs.items()},
        parameters=sum(facts.parameters for facts in manifest.graphs.values()),
        weight_bytes=manifest.weight_bytes,
        worst_cosine={modality: proved.get(modality) for modality in manifest.modalities},
    )


def _kept(samples_ms: NDArray[np.float64]) -> tuple[float, ...]:
    """The samples in order; where there are very many, evenly spaced ones."""
    step = -(-len(samples_ms) // _KEPT_SAMPLES)
    return tuple(round(float(ms), 4) for ms in samples_ms[::step])


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0) if device.partition(":")[2].isdigit() else 0
