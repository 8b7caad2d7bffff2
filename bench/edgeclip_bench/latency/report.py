"""A run of `edgeclip bench` as tables for people, and as CSV with perf_analyzer's columns."""

import csv
import io
from collections.abc import Callable, Iterator
from functools import partial

from edgeclip.manifest import MODALITIES
from edgeclip.tables import format_bytes
from edgeclip_bench.latency.records import Memory, Metric, ProbeFigures, Record, Result, ServerFigures
from edgeclip_bench.latency.scenarios import MULTI_STREAM_SAMPLES, SCENARIOS, Scenario
from edgeclip_bench.latency.stages import STAGES
from edgeclip_bench.measure.ceiling import Ceiling
from edgeclip_bench.measure.other_processes import MUCH
from edgeclip_bench.measure.report_table import NONE, Columns, Table, make_table, render_table
from edgeclip_bench.rivals.report import rival_tables

_WHAT: dict[Scenario, str] = {
    "single-stream": "single-stream: the next query when the last is done; p90 counts",
    "multi-stream": f"multi-stream: {MULTI_STREAM_SAMPLES} samples a query; p99 counts",
    "server": "server: Poisson arrivals, latency from the scheduled moment; the rate counts",
    "offline": "offline: all at once; samples a second count",
}
_INPUT_STAGES = ("read", "decode", "resize", "tokenise", "host_to_device")
_YES_NO = {True: "yes", False: "no"}
_LEVELS = ("p50", "p90", "p95", "p99", "p99.9")


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
    machine = record.frame["machine"]
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


def _level(name: str, words: Callable[[float | None], str]) -> Callable[[Result], str]:
    return lambda one: words(one.latency.level(name) if one.latency else None)


def _stage(name: str, words: Callable[[float | None], str]) -> Callable[[Result], str]:
    return lambda one: words(one.stages.of(name) if one.stages else None)


_RATE: Columns[Result] = {"samples/s": lambda one: rate(one.per_second)}
# Whether the measurement settled, and what other processes took of the processors.
_TRUST: Columns[Result] = {
    "steady": lambda one: NONE if one.is_steady is None else _YES_NO[one.is_steady],
    "others": lambda one: NONE if one.others_share is None else f"{one.others_share:.0%}",
}
_CEILING: Columns[Ceiling] = {
    "GFLOP": lambda one: f"{one.gflop:.3g}",
    "compute": lambda one: duration(one.compute_ms),
    "GFLOP/s": lambda one: f"{one.gflop_per_s:,.0f}",
    "bare GEMM": lambda one: f"{one.gemm.gflop_per_s:,.0f} {one.gemm.kind}",
    "share": lambda one: f"{one.share_of_gemm:.0%}",
    "weights": lambda one: format_bytes(one.weight_bytes),
    "GB/s": lambda one: f"{one.weights_gb_per_s:.3g}",
    "bare copy": lambda one: f"{one.copy_gb_per_s:.3g}" if one.copy_gb_per_s else NONE,
    "floor": lambda one: duration(one.floor_ms),
    "reached": lambda one: f"{one.share:.0%} of {one.bound}",
}


def _scenario_tables(record: Record) -> Iterator[Table]:
    label: Columns[Result] = {"": partial(label_of, record)}
    streamed: dict[str, Callable[[Result], str]] = {
        **label,
        "counts": lambda one: counted_text(one.counts),
        **{name: _level(name, duration) for name in _LEVELS},
        **_RATE,
    }
    streamed |= {"queries": lambda one: f"{one.queries:,}", **_TRUST}
    offline: Columns[Result] = {
        **label,
        **_RATE,
        "samples": lambda one: f"{one.samples:,}",
        "runs": lambda one: str(one.queries),
    }
    for scenario in SCENARIOS:
        results = [result for result in record.results if result.case.scenario == scenario]
        if results:
            yield make_table(_WHAT[scenario], results, {**offline, **_TRUST} if scenario == "offline" else streamed)
        yield from (_probe_table(record, result, result.server) for result in results if result.server)


def _probe_table(record: Record, result: Result, server: ServerFigures) -> Table:
    columns: Columns[ProbeFigures] = {
        "rate": lambda probe: f"{rate(probe.rate_per_s)} a second",
        "kept": lambda probe: _YES_NO[probe.is_kept],
        "answered": lambda probe: f"{probe.answered:,} of {probe.planned:,}",
        "p50": lambda probe: duration(probe.latency.p50_ms),
        "p99": lambda probe: duration(probe.latency.p99_ms),
        "wait p50": lambda probe: duration(probe.wait.p50_ms),
    }
    title = f"{label_of(record, result)}: p99 within {server.bound_ms:g} ms"
    return make_table(title, sorted(server.probes, key=lambda probe: probe.rate_per_s), columns)


def _stage_table(record: Record) -> Table:
    results = [result for result in record.results if result.stages and result.case.scenario == "single-stream"]
    shown = [name for name in STAGES if any(one.stages and one.stages.of(name) is not None for one in results)]
    columns: Columns[Result] = {
        "": partial(label_of, record),
        **{name.replace("_", " "): _stage(name, duration) for name in shown},
    }
    return make_table("where the time goes: each step by itself, medians of single-stream", results, columns)


def _ceiling_table(record: Record) -> Table:
    found = ((label_of(record, result), result.ceiling) for result in record.results if result.ceiling)
    rows = tuple((label, *(cell(ceiling) for cell in _CEILING.values())) for label, ceiling in found)
    title = "the ceiling: what a bare GEMM and a bare copy give on this machine"
    return Table(title=title, header=("", *_CEILING), rows=rows)


def _memory_table(record: Record) -> Table:
    columns: Columns[Memory] = {
        "": lambda one: f"{one.bundle}, {one.threads} thread{'s' * (one.threads > 1)}",
        "before": lambda one: format_bytes(one.before_bytes),
        "peak": lambda one: format_bytes(one.peak_bytes),
        "GPU": lambda one: NONE if one.gpu_bytes is None else format_bytes(one.gpu_bytes),
    }
    return make_table("resident memory of the process", record.memory, columns)


def render_csv(record: Record) -> str:
    """perf_analyzer's columns, times in microseconds; a cell is empty where nothing was measured."""
    table = make_table("", record.results, _CSV)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows((table.header, *table.rows))
    return out.getvalue()


def _microseconds(ms: float | None) -> str:
    return "" if ms is None else f"{ms * 1000:.0f}"


def _inputs_ms(result: Result) -> float | None:
    """The time of all steps before the graph's."""
    found = [value for stage in _INPUT_STAGES if result.stages and (value := result.stages.of(stage)) is not None]
    return sum(found) if found else None


def _if_any(value: object) -> str:
    return "" if value is None else str(value)


# perf_analyzer's report in microseconds, as Triton's documentation has it; ours follow behind.
_CSV: Columns[Result] = {
    "Concurrency": lambda one: "1",
    "Inferences/Second": lambda one: f"{one.per_second:.4f}",
    "Client Send": lambda one: "0",
    "Network+Server Send/Recv": lambda one: "0",
    "Server Queue": _stage("queue", _microseconds),
    "Server Compute Input": lambda one: _microseconds(_inputs_ms(one)),
    "Server Compute Infer": _stage("compute", _microseconds),
    "Server Compute Output": _stage("device_to_host", _microseconds),
    "Client Recv": lambda one: "0",
    **{f"{level} latency": _level(level, _microseconds) for level in _LEVELS},
    "Bundle": lambda one: one.bundle,
    "Modality": lambda one: one.case.modality,
    "Scenario": lambda one: one.case.scenario,
    "Batch": lambda one: str(one.case.batch),
    "Tokens": lambda one: _if_any(one.case.tokens),
    "Image px": lambda one: _if_any(one.case.image_px),
    "Threads": lambda one: str(one.case.threads),
    "Device": lambda one: one.device,
    "Samples": lambda one: str(one.samples),
    "Steady": lambda one: _if_any(one.is_steady).lower(),
    "Others": lambda one: "" if one.others_share is None else f"{one.others_share:.4f}",
}
