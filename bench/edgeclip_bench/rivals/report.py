"""The document of `edgeclip_bench.rivals.run` as tables: an overview, one for each case, and the rivals left out."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from edgeclip.tables import format_bytes
from edgeclip_bench.measure.report_table import NONE, Columns, Table, make_table

Document = Mapping[str, Any]

_STANDINGS: Columns[Document] = {
    "": lambda one: one["contender"],
    "on disk": lambda one: format_bytes(one["size_bytes"]),
    "resident": lambda one: format_bytes(one["resident"]["loaded_bytes"]),
    "anonymous": lambda one: format_bytes(one["resident"]["anonymous_bytes"]),
    "peak above": lambda one: format_bytes(one["resident"]["peak_above_loaded_bytes"]),
    "open": lambda one: f"{one['resident']['open_s']:.2f} s",
    "worst cosine": lambda one: f"{one['closeness']['worst']:.5f}",
    "1st percentile": lambda one: f"{one['closeness']['first_percentile']:.5f}",
    "mean": lambda one: f"{one['closeness']['mean']:.5f}",
    "made by": lambda one: one["recipe"],
}
_TWINS: Columns[Document] = {
    "": lambda one: one["rival"],
    "graph": lambda one: one["graph"],
    "same as": lambda one: one["same_as"],
}


def rival_tables(document: Document) -> Iterator[Table]:
    """Every table that has rows, graph by graph."""
    for graph in dict.fromkeys(one["graph"] for one in document["standings"]):
        standings = [one for one in document["standings"] if one["graph"] == graph]
        title = f"rivals, {graph} graph: what each holds, and the cosines of its vectors to {document['fp32']}'s"
        yield make_table(title, standings, _STANDINGS)
        cases = dict.fromkeys(one["case"] for one in document["latencies"])
        for case in (case for case in cases if case.startswith("text") == (graph == "text")):
            yield _case(document, case, {one["contender"]: one for one in standings})
    if missing := _missing(document):
        yield Table(title="rivals that were left out", header=("", "graph", "why"), rows=missing)
    if twins := document["twins"]:
        yield make_table("rivals with the very files of another", twins, _TWINS)
    for name, found in document.get("longest_text", {}).items():
        rows = ((name, format_bytes(found["peak_above_loaded_bytes"])),)
        yield Table(
            title=f"memory while a text of {found['tokens']} tokens is computed", header=("", "more"), rows=rows
        )


def _case(document: Document, case: str, standings: Mapping[str, Document]) -> Table:
    bundles = list(dict.fromkeys(one["bundle"] for one in document["against"]))
    against = {(one["bundle"], one["rival"]): one["ratio"] for one in document["against"] if one["case"] == case}

    def ratio_to(one: Document, bundle: str) -> str:
        ratio = against.get((bundle, one["contender"]))
        return f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})" if ratio else NONE

    columns: Columns[Document] = {
        "": lambda one: one["contender"],
        "median ms": lambda one: f"{one['median_ms']:.3g}" if one["median_ms"] < 100 else f"{one['median_ms']:.0f}",
        "p90 ms": lambda one: NONE if one["p90_ms"] is None else f"{one['p90_ms']:.3g}",
        f"to {document['fp32']}": lambda one: f"{one['to_fp32']['median']:.3f}",
        "quartiles": lambda one: f"{one['to_fp32']['low']:.3f}-{one['to_fp32']['high']:.3f}",
        **{f"{bundle} to it": partial(ratio_to, bundle=bundle) for bundle in bundles},
        "worst cosine": lambda one: f"{standings[one['contender']]['closeness']['worst']:.5f}",
        "resident": lambda one: format_bytes(standings[one["contender"]]["resident"]["loaded_bytes"]),
        "rounds": lambda one: str(one["samples"]),
    }
    latencies = (one for one in document["latencies"] if one["case"] == case)
    return make_table(f"rivals, {case}: compute alone, in turns", latencies, columns)


def _missing(document: Document) -> tuple[tuple[str, ...], ...]:
    """The rivals that are left out; one that is left out everywhere for the same reason takes one line."""
    graphs: dict[tuple[str, str], list[str]] = {}
    for one in document["left_out"]:
        graphs.setdefault((one["rival"], one["why"]), []).append(one["graph"])
    return tuple((rival, ", ".join(found), why) for (rival, why), found in graphs.items())
