"""A run of `edgeclip bench` as tables for people, and as CSV with perf_analyzer's columns.

The JSON is in `edgeclip_bench.latency.records`, the HTML page in `edgeclip_bench.latency.page`.
"""

import csv
import io
from collections.abc import Iterator

from edgeclip.manifest import MODALITIES
from edgeclip.tables import format_bytes
from edgeclip_bench.latency.records import Metric, Record, Result
from edgeclip_bench.latency.scenarios import MULTI_STREAM_SAMPLES, SCENARIOS, Scenario
from edgeclip_bench.latency.stages import STAGES
from edgeclip_bench.measure.ceiling import Ceiling
from edgeclip_bench.measure.other_processes import MUCH
from edgeclip_bench.measure.report_table import NONE, Table, render_table
from edgeclip_bench.rivals.report import rival_tables

# perf_analyzer's report in microseconds, as Triton's documentation has it; ours follow behind.
CSV_COLUMNS = (
    "Concurrency",
    "Inferences/Second",
    "Client Send",
    "Network+Server Send/Recv",
    "Server Queue",
    "Server Compute Input",
    "Server Compute Infer",
    "Server Compute Output",
    "Client Recv",
    "p50 latency",
    "p90 latency",
    "p95 latency",
    "p99 latency",
)
_OWN_COLUMNS = (
    "p99.9 latency",
    "Bundle",
    "Modality",
    "Scenario",
    "Batch",
    "Tokens",
    "Image px",
    "Threads",
    "Device",
    "Samples",
    "Steady",
    "Others",
)
_WHAT: dict[Scenario, str] = {
    "single-stream": "single-stream: the next query when the last is done; p90 counts",
    "multi-stream": f"multi-stream: {MULTI_STREAM_SAMPLES} samples a query; p99 counts",
    "server": "server: Poisson arrivals, latency from the scheduled moment; the rate counts",
    "offline": "offline: all at once; samples a second count",
}
_INPUT_STAGES = ("read", "decode", "resize", "tokenise", "host_to_device")


def render_text(record: Record) -> str:
    """The tables for a terminal."""
    head = "\n".join((*headline(record), *describe(record)))
    shown = (render_table(table) for table in tables(record))
    return "\n\n".join((head, *shown, "\n".join(notes(record)))) + "\n"


def tables(record: Record) -> Iterator[Table]:
    """Every table that has rows."""
    every = (*_scenario_tables(record), _stage_table(record), _ceiling_table(record), _memory_table(record))
    yield from (table for table in every if table.rows)
    if record.rivals:
        yield from rival_tables(record.rivals)


def notes(record: Record) -> Iterator[str]:
    """What a reader must know about the figures, and what is missing among them."""
    shares = [result.others_share or 0 for result in record.results]
    most = max((*shares, (record.rivals or {}).get("others_share", 0)), default=0)
    if most > MUCH:
        yield (
            f"other processes took up to {most:.0%} of the processors: cases that were measured at different moments "
            "cannot be held against each other; measure again on a quiet machine"
        )
    yield f"{NONE} in a percentile: {record.rules['percentiles']}"
    yield record.rules["steady"]
    yield record.rules["warm_up"]
    yield record.rules["others"]
    if any(result.ceiling for result in record.results):
        yield record.rules["ceiling"]
    yield from (f"not measured: {one.what}: {one.why}" for one in record.left_out)


def render_csv(record: Record) -> str:
    """perf_analyzer's columns, times in microseconds; a cell is empty where nothing was measured or the samples are
    too few.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*CSV_COLUMNS, *_OWN_COLUMNS))
    for result in record.results:
        case, latency, stages = result.case, result.latency, result.stages
        inputs = [value for stage in _INPUT_STAGES if stages and (value := stages.of(stage)) is not None]
        levels = ("p50", "p90", "p95", "p99", "p99.9")
        percentiles = [_microseconds(latency.level(name) if latency else None) for name in levels]
        writer.writerow(
            (
                1,
                f"{result.per_second:.4f}",
                0,
                0,
                _microseconds(stages.queue_ms if stages else None),
                _microseconds(sum(inputs) if inputs else None),
                _microseconds(stages.compute_ms if stages else None),
                _microseconds(stages.device_to_host_ms if stages else None),
                0,
                *percentiles,
                result.bundle,
                case.modality,
                case.scenario,
                case.batch,
                "" if case.tokens is None else case.tokens,
                "" if case.image_px is None else case.image_px,
                case.threads,
                result.device,
                result.samples,
                "" if result.is_steady is None else str(result.is_steady).lower(),
                "" if result.others_share is None else f"{result.others_share:.4f}",
            )
        )
    return out.getvalue()


def headline(record: Record) -> Iterator[str]:
    """The answer to a hardware buyer's first question, a line for each bundle."""
    for subject in record.bundles:
        own = [result for result in record.results if result.bundle == subject.name]
        said = [
            f"one {result.case.kind} in {duration(result.latency.p50_ms)}"
            for result in own
            if result.case.scenario == "single-stream" and result.case.batch == 1 and result.latency
        ]
        for modality in MODALITIES:
            rates = [one for one in own if one.case.scenario == "offline" and one.case.modality == modality]
            if rates:
                best = max(rates, key=lambda one: one.per_second)
                said.append(f"{rate(best.per_second)} {best.case.kind.replace(' ', 's ', 1)} a second")
        if said:
            yield f"{subject.name}: {'; '.join(said)}"


def describe(record: Record) -> Iterator[str]:
    """The bundles and the machine, a line each."""
    devices = {result.bundle: result.device for result in record.results}
    for subject in record.bundles:
        precisions = ", ".join(f"{graph} {precision}" for graph, precision in subject.precision.items())
        lost = [f"{modality} {value:.4f}" for modality, value in subject.worst_cosine.items() if value is not None]
        worst = f"; worst cosine to fp32: {', '.join(lost)}" if lost else ""
        yield (
            f"{subject.name}: {subject.source}, {precisions}, {format_bytes(subject.weight_bytes)}, "
            f"on {devices.get(subject.name, 'no device')}{worst}"
        )
    machine = record.machine
    cards = "".join(f", {card}" for card in machine["graphics_cards"])
    runtime = ", ".join(
        f"{name} {number}" for name, number in record.frame["versions"].items() if "onnxruntime" in name
    )
    yield (
        f"{machine['processor']}, {machine['threads']} processors, {format_bytes(machine['memory_bytes'])}{cards}; "
        f"{runtime}"
    )


def duration(ms: float | None) -> str:
    """Milliseconds with three significant digits; seconds from ten thousand milliseconds on."""
    if ms is None:
        return NONE
    return f"{ms / 1000:.1f} s" if ms >= 10_000 else f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def rate(per_second: float) -> str:
    """A number per second, in words."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def counted_text(metric: Metric) -> str:
    """The main figure, or what it lacks."""
    if metric.value is None:
        return metric.why or NONE
    return f"{metric.name} {duration(metric.value)}" if metric.unit == "ms" else f"{rate(metric.value)} {metric.unit}"


def bundle_prefix(record: Record, result: Result) -> str:
    """The bundle's name before a label, where there are several bundles."""
    return f"{result.bundle}: " if len(record.bundles) > 1 else ""


def threads_suffix(record: Record, result: Result) -> str:
    """The number of threads behind a label, where there are several."""
    several = len({one.case.threads for one in record.results}) > 1
    return f", {result.case.threads} thread{'s' * (result.case.threads > 1)}" if several else ""


def label_of(record: Record, result: Result) -> str:
    """The name of a case, with the bundle and the threads where there are several."""
    return f"{bundle_prefix(record, result)}{result.case.name}{threads_suffix(record, result)}"


def _scenario_tables(record: Record) -> Iterator[Table]:
    for scenario in SCENARIOS:
        results = [result for result in record.results if result.case.scenario == scenario]
        if not results:
            continue
        if scenario == "offline":
            rows = tuple(
                (
                    label_of(record, one),
                    rate(one.per_second),
                    f"{one.samples:,}",
                    str(one.queries),
                    *_trust(one),
                )
                for one in results
            )
            yield Table(
                title=_WHAT[scenario], header=("", "samples/s", "samples", "runs", "steady", "others"), rows=rows
            )
            continue
        header = ("", "counts", "p50", "p90", "p95", "p99", "p99.9", "samples/s", "queries", "steady", "others")
        yield Table(
            title=_WHAT[scenario], header=header, rows=tuple(_latency_row(record, result) for result in results)
        )
        for result in results:
            if result.server:
                yield _probe_table(record, result)


def _latency_row(record: Record, result: Result) -> tuple[str, ...]:
    assert result.latency is not None
    levels = [duration(result.latency.level(name)) for name in ("p50", "p90", "p95", "p99", "p99.9")]
    counts = counted_text(result.counts)
    return (
        label_of(record, result), counts, *levels, rate(result.per_second), f"{result.queries:,}", *_trust(result)
    )  # fmt: skip


def _probe_table(record: Record, result: Result) -> Table:
    assert result.server is not None
    rows = [
        (
            f"{rate(probe.rate_per_s)} a second",
            "yes" if probe.is_kept else "no",
            f"{probe.answered:,} of {probe.planned:,}",
            duration(probe.latency.p50_ms),
            duration(probe.latency.p99_ms),
            duration(probe.wait.p50_ms),
        )
        for probe in sorted(result.server.probes, key=lambda probe: probe.rate_per_s)
    ]
    title = f"{label_of(record, result)}: p99 within {result.server.bound_ms:g} ms"
    return Table(title=title, header=("rate", "kept", "answered", "p50", "p99", "wait p50"), rows=tuple(rows))


def _stage_table(record: Record) -> Table:
    results = [result for result in record.results if result.stages and result.case.scenario == "single-stream"]
    shown = [
        name for name in STAGES if any(result.stages and result.stages.of(name) is not None for result in results)
    ]
    rows = [
        (label_of(record, result), *(duration(result.stages.of(name)) for name in shown))
        for result in results
        if result.stages
    ]
    header = ("", *(name.replace("_", " ") for name in shown))
    title = "where the time goes: each step by itself, medians of single-stream"
    return Table(title=title, header=header, rows=tuple(rows))


def _ceiling_table(record: Record) -> Table:
    rows = [
        (
            label_of(record, result),
            f"{one.gflop:.3g}",
            duration(one.compute_ms),
            f"{one.gflop_per_s:,.0f}",
            f"{one.gemm.gflop_per_s:,.0f} {one.gemm.kind}",
            f"{one.share_of_gemm:.0%}",
            format_bytes(one.weight_bytes),
            f"{one.weights_gb_per_s:.3g}",
            f"{one.copy_gb_per_s:.3g}" if one.copy_gb_per_s else NONE,
            duration(one.floor_ms),
            f"{one.share:.0%} of {'memory' if one.bound == 'memory' else 'compute'}",
        )
        for result, one in _ceilings(record)
    ]
    title = "the ceiling: what a bare GEMM and a bare copy give on this machine"
    work = ("", "GFLOP", "compute", "GFLOP/s", "bare GEMM", "share")
    return Table(title=title, header=(*work, "weights", "GB/s", "bare copy", "floor", "reached"), rows=tuple(rows))


def _ceilings(record: Record) -> Iterator[tuple[Result, Ceiling]]:
    for result in record.results:
        if result.ceiling:
            yield result, result.ceiling


def _memory_table(record: Record) -> Table:
    rows = [
        (
            f"{one.bundle}, {one.threads} thread{'s' * (one.threads > 1)}",
            format_bytes(one.before_bytes),
            format_bytes(one.peak_bytes),
            format_bytes(one.gpu_bytes) if one.gpu_bytes is not None else NONE,
        )
        for one in record.memory
    ]
    return Table(title="resident memory of the process", header=("", "before", "peak", "GPU"), rows=tuple(rows))


def _trust(result: Result) -> tuple[str, str]:
    """Whether the measurement settled, and what other processes took of the processors."""
    steady = NONE if result.is_steady is None else "yes" if result.is_steady else "no"
    return steady, NONE if result.others_share is None else f"{result.others_share:.0%}"


def _microseconds(ms: float | None) -> str:
    return "" if ms is None else f"{ms * 1000:.0f}"
