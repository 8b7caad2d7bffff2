"""A run of `edgeclip bench` as one HTML page, plots and then tables, which fetches nothing and is well-formed XML."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from edgeclip_bench.latency.records import Record
from edgeclip_bench.latency.report import bundle_prefix, describe, headline, label_of, notes, tables, threads_suffix
from edgeclip_bench.measure.report_table import Table
from edgeclip_bench.measure.svg_plot import Axis, Point, Series, draw

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1.5rem; }
svg { width: 100%; height: auto; background: #fff; }
.table { overflow-x: auto; margin: 1.2rem 0; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } ul { color: #444; }
td.words { text-align: left; white-space: normal; min-width: 20rem; max-width: 34rem; }
caption { white-space: nowrap; text-align: left; font-weight: 600; padding: 0.3rem 0; }
"""
_MS = "latency of a query (ms)"
_RATE = "samples a second"
# Sentences among figures: such a cell may be broken.
_LONG = 40


def render_page(record: Record) -> str:
    """The page as HTML."""
    title = f"edgeclip bench: {', '.join(subject.name for subject in record.bundles)}"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p><strong>{escape(line)}</strong></p>" for line in headline(record)),
        *(f"<p>{escape(line)}</p>" for line in describe(record)),
        *_section("Latency distributions", _distributions(record)),
        *_section("Throughput and latency", _curves(record)),
        *_section("Pareto: what no other configuration beats in both", _fronts(record)),
        "<h2>Figures</h2>",
        *(_table(table) for table in tables(record)),
        f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes(record))}</ul>",
        "</body>\n</html>\n",
    ]
    # Of a file name that is not UTF-8 the escape that JSON has for it; no character that XML has not.
    text = "\n".join(parts).encode(errors="backslashreplace").decode()
    return "".join(character if character >= " " or character in "\n\t" else " " for character in text)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The (cost, gain) points that no other point beats in both, by rising cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one[0], -one[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _distributions(record: Record) -> Iterator[str]:
    """For each modality and scenario, the share of queries that were answered within a time."""
    groups: defaultdict[str, list[Series]] = defaultdict(list)
    for result in (one for one in record.results if one.latency):
        ordered = sorted(result.samples_ms)
        points = tuple((ms, (place + 1) / len(ordered) * 100) for place, ms in enumerate(ordered))
        name = f"{'Texts' if result.case.modality == 'text' else 'Images'}, {result.case.scenario}"
        label = f"{label_of(record, result)}, {len(ordered):,} queries"
        groups[name].append(Series(label=label, points=points, shape="steps"))
    for name, series in groups.items():
        yield draw(name, Axis(label=_MS, is_log=True), Axis(label="per cent of queries within"), series)


def _curves(record: Record) -> Iterator[str]:
    """Latency against throughput: over the batches of single-stream, and over the rates that a server kept."""
    groups: defaultdict[str, defaultdict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for result in record.results:
        if result.latency and result.case.scenario != "server":
            label = f"{bundle_prefix(record, result)}{result.case.scenario}{threads_suffix(record, result)}, p50"
            groups[result.case.subject][label].append((result.per_second, result.latency.p50_ms))
    for result in (one for one in record.results if one.server):
        probes = result.server.probes if result.server else ()
        kept = [probe for probe in probes if probe.is_kept]  # what was broken off has lost its tail
        for probe in sorted(kept, key=lambda one: one.rate_per_s):
            for level in ("p50", "p99"):
                if (value := probe.latency.level(level)) is not None:
                    label = f"{label_of(record, result)}, server, {level}"
                    groups[result.case.subject][label].append((probe.rate_per_s * result.case.batch, value))
    for name, lines in groups.items():
        if sum(map(len, lines.values())) < 2:  # a lone point is no curve, and its figures are in the tables
            continue
        series = [Series(label=label, points=tuple(points)) for label, points in lines.items()]
        yield draw(_capital(name), Axis(label=_RATE, is_log=True), Axis(label=_MS, is_log=True), series)


def _fronts(record: Record) -> Iterator[str]:
    """For each kind of sample all its configurations, by latency and throughput, and the front among them."""
    groups: defaultdict[str, dict[str, Point]] = defaultdict(dict)
    for result in record.results:
        if result.latency is not None:
            configuration = f"{label_of(record, result)}, {result.case.scenario}"
            groups[result.case.subject][configuration] = result.latency.p50_ms, result.per_second
    for name, configurations in groups.items():
        if len(configurations) < 2:
            continue
        front = pareto_front(configurations.values())
        series = [Series(label="front", points=tuple(front), is_dashed=True)]
        series += [
            Series(label=label + (" (on the front)" if point in front else ""), points=(point,), shape="points")
            for label, point in configurations.items()
        ]
        yield draw(_capital(name), Axis(label=_MS, is_log=True), Axis(label=_RATE, is_log=True), series)


def _section(title: str, plots: Iterable[str]) -> Sequence[str]:
    drawn = [f"<div>{plot}</div>" for plot in plots]
    return (f"<h2>{escape(title)}</h2>", '<div class="plots">', *drawn, "</div>") if drawn else ()


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    kinds = {True: ' class="words"', False: ""}
    cells = [[f"<td{kinds[len(cell) > _LONG]}>{escape(cell)}</td>" for cell in row] for row in table.rows]
    rows = "".join(f"<tr>{''.join(row)}</tr>\n" for row in cells)
    title = f"<caption>{escape(table.title)}</caption>"
    return f'<div class="table"><table>\n{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
