"""The document of `edgeclip_bench.rivals.run` as tables: an overview, one for each case, and the rivals left out.

A case's table has in one line what a reader weighs against each other: time, ratios, cosine, memory.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from edgeclip.tables import format_bytes
from edgeclip_bench.measure.report_table import NONE, Table

Document = Mapping[str, Any]
_STANDING = (
    *("", "on disk", "resident", "anonymous", "peak above", "open"),
    *("worst cosine", "1st percentile", "mean", "made by"),
)


def rival_tables(document: Document) -> Iterator[Table]:
    """Every table that has rows, graph by graph."""
    for graph in dict.fromkeys(one["graph"] for one in document["standings"]):
        standings = [one for one in document["standings"] if one["graph"] == graph]
        yield Table(
            title=f"rivals, {graph} graph: what each holds, and the cosines of its vectors to {document['fp32']}'s",
            header=_STANDING,
            rows=tuple(map(_standing, standings)),
        )
        cases = dict.fromkeys(one["case"] for one in document["latencies"])
        for case in (case for case in cases if _is_of(case, graph)):
            yield _case(document, case, {one["contender"]: one for one in standings})
    if missing := _missing(document):
        yield Table(title="rivals that were left out", header=("", "graph", "why"), rows=missing)
    twins = tuple((one["rival"], one["graph"], one["same_as"]) for one in document["twins"])
    if twins:
        yield Table(title="rivals with the very files of another", header=("", "graph", "same as"), rows=twins)


def _standing(one: Document) -> tuple[str, ...]:
    resident, closeness = one["resident"], one["closeness"]
    return (
        one["contender"],
        format_bytes(one["size_bytes"]),
        format_bytes(resident["loaded_bytes"]),
        format_bytes(resident["anonymous_bytes"]),
        format_bytes(resident["peak_above_loaded_bytes"]),
        f"{resident['open_s']:.2f} s",
        *(f"{closeness[which]:.5f}" for which in ("worst", "first_percentile", "mean")),
        one["recipe"],
    )


def _case(document: Document, case: str, standings: Mapping[str, Document]) -> Table:
    bundles = list(dict.fromkeys(one["bundle"] for one in document["against"]))
    against = {(one["bundle"], one["rival"]): one["ratio"] for one in document["against"] if one["case"] == case}
    rows = []
    for one in (one for one in document["latencies"] if one["case"] == case):
        name, ratio = one["contender"], one["to_fp32"]
        rows.append(
            (
                name,
                f"{one['median_ms']:.3g}" if one["median_ms"] < 100 else f"{one['median_ms']:.0f}",
                NONE if one["p90_ms"] is None else f"{one['p90_ms']:.3g}",
                f"{ratio['median']:.3f}",
                f"{ratio['low']:.3f}-{ratio['high']:.3f}",
                *(_ratio(against.get((bundle, name))) for bundle in bundles),
                f"{standings[name]['closeness']['worst']:.5f}",
                format_bytes(standings[name]["resident"]["loaded_bytes"]),
                str(one["samples"]),
            )
        )
    ratios = (f"to {document['fp32']}", "quartiles", *(f"{bundle} to it" for bundle in bundles))
    header = ("", "median ms", "p90 ms", *ratios, "worst cosine", "resident", "rounds")
    return Table(title=f"rivals, {case}: compute alone, in turns", header=header, rows=tuple(rows))


def _ratio(ratio: Document | None) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})" if ratio else NONE


def _missing(document: Document) -> tuple[tuple[str, ...], ...]:
    """The rivals that are left out; one that is left out everywhere for the same reason takes one line."""
    graphs: dict[tuple[str, str], list[str]] = {}
    for one in document["left_out"]:
        graphs.setdefault((one["rival"], one["why"]), []).append(one["graph"])
    return tuple((rival, ", ".join(found), why) for (rival, why), found in graphs.items())


def _is_of(case: str, graph: str) -> bool:
    return case.startswith("text" if graph == "text" else "image")
