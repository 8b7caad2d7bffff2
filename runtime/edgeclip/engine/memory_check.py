"""Compare what a bundle's graphs need with the memory that this process can get, before they are loaded.

What surely exceeds a limit is an OutOfMemoryError; what comes near one, or exceeds what other processes leave at
present, is a warning, because `edgeclip.engine.memory_need` predicts and does not know. This is about the CPU alone:
a GPU has memory of its own.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclip.engine import memory_need as known
from edgeclip.engine.devices import Device
from edgeclip.engine.memory_need import GraphNeed, read_need, tokenizer_bytes
from edgeclip.engine.opening import packed_facts, plan_graph
from edgeclip.engine.prepack.packed_weights import packed_root
from edgeclip.errors import OutOfMemoryError
from edgeclip.host.memory_limits import Counted, MemoryLimit, has_threads, held_bytes, read_limits
from edgeclip.manifest import FIRST_GRAPH, MODALITIES, Manifest
from edgeclip.tables import format_bytes

_CPU = Device(kind="cpu")
_NEW_PROCESS: Mapping[Counted, int] = {
    "resident": known.PROCESS_BYTES,
    "data": known.PROCESS_DATA,
    "address": known.PROCESS_ADDRESSES,
}
# More than graphs take beside their weights and copies of these: then no graph is read.
_AMPLE_BYTES, _AMPLE_FACTOR = 2_000_000_000, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What some graphs of a bundle add to a process, and what the process holds of each that limits count.

    With `has_heap` that includes addresses of heaps that malloc reserved for threads and can do without.
    """

    needs: Mapping[str, GraphNeed]
    held: Mapping[Counted, int]
    tokenizer: int = 0
    sure_tokenizer: int = 0
    is_service: bool = False
    has_heap: bool = False

    def wanted(self, counted: Counted = "resident") -> int:
        """What the process holds in the end, by the prediction."""
        added = sum(need.private_bytes for need in self.needs.values()) + self.tokenizer
        if self.is_service:  # its self-test begins with texts, before other graphs are loaded
            text = self.needs.get(FIRST_GRAPH["text"])
            first = text.private_bytes + text.long_text_bytes + self.tokenizer if text else 0
            added = max(added, first) + known.SERVICE_BYTES
        if counted == "resident":
            return max(self.held[counted], known.PROCESS_BYTES) + known.HOT_FILE_BYTES + added
        if counted == "data":
            in_place = sum(need.in_place_bytes for need in self.needs.values())
            return self.held[counted] + added + in_place + known.HEAP_DATA
        threads = known.SERVICE_ADDRESSES if self.is_service else 0
        return self.held[counted] + added + self._mapped + known.HEAP_ADDRESSES + threads

    def sure(self, counted: Counted) -> int:
        """What the process holds at least before it answers anything."""
        copied = sum(need.copied_bytes for need in self.needs.values())
        added = {
            "resident": copied,
            "data": max(copied, self._mapped),
            "address": self._mapped + known.SURE_ADDRESSES,
        }
        spare = known.HEAP_ADDRESSES if counted == "address" and self.has_heap else 0
        return self.held[counted] - spare + added[counted] + self.sure_tokenizer

    @property
    def _mapped(self) -> int:
        return sum(need.mapped_bytes for need in self.needs.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A limit that a load exceeds: surely, or by the prediction and with what else is in memory."""

    limit: MemoryLimit
    is_sure: bool


def judge(load: Load, limits: Sequence[MemoryLimit]) -> Verdict | None:
    """The limit that a load exceeds, one that it surely exceeds before others; None where it fits all."""
    near = None
    for limit in limits:
        if limit.is_hard and load.sure(limit.counted) > limit.limit_bytes:
            return Verdict(limit=limit, is_sure=True)
        wanted = load.wanted(limit.counted)
        if near is None and (wanted > limit.limit_bytes or wanted - load.held[limit.counted] > limit.free_bytes):
            near = Verdict(limit=limit, is_sure=False)
    return near


def find_load(
    folder: Path,
    manifest: Manifest,
    graphs: Sequence[str],
    *,
    held: Mapping[Counted, int] = _NEW_PROCESS,
    has_tokenizer: bool = False,
    is_service: bool = False,
) -> Load:
    """The load of some graphs of the bundle in `folder` on a process that holds so much; a new one, if not given."""
    parses = manifest.text is not None and FIRST_GRAPH["text"] in graphs and not has_tokenizer
    follows = FIRST_GRAPH["image"] in graphs
    # Images that go through the graph of texts need no tokenizer.
    parses_surely = parses and not (
        "image" in manifest.modalities and set(graphs) <= set(manifest.graphs_of("image"))
    )
    return Load(
        needs={
            graph: read_need(folder, manifest, graph, packed_bytes=packed_bytes(manifest, graph), follows=follows)
            for graph in graphs
        },
        held=held,
        tokenizer=tokenizer_bytes(manifest, folder) if parses else 0,
        sure_tokenizer=tokenizer_bytes(manifest) if parses_surely else 0,
        is_service=is_service,
    )


def check_memory(
    folder: Path, manifest: Manifest, graphs: Sequence[str], *, has_tokenizer: bool = False, is_service: bool = False
) -> str | None:
    """Compare graphs that are about to be loaded on the CPU with this process's limits: a warning's words, or None.

    Raises OutOfMemoryError for graphs that surely exceed a limit.
    """
    limits = read_limits()
    files = {manifest.graphs[graph].file for graph in graphs}
    weights = sum(file.size_bytes for file in manifest.files if file.name.partition(".")[0] + ".onnx" in files)
    if all(_AMPLE_FACTOR * weights + _AMPLE_BYTES < limit.free_bytes for limit in limits):
        return None
    load = find_load(folder, manifest, graphs, held=held_bytes(), has_tokenizer=has_tokenizer, is_service=is_service)
    load = replace(load, has_heap=has_threads())
    verdict = judge(load, limits)
    if verdict is None:
        return None
    words = describe(folder, manifest, load, verdict)
    if verdict.is_sure:
        raise OutOfMemoryError(words)
    return words


def check_smallest(folder: Path, manifest: Manifest) -> None:
    """Raise OutOfMemoryError where no modality's graphs can be loaded on the CPU, each alone."""
    errors = []
    for modality in manifest.modalities:
        try:
            check_memory(folder, manifest, manifest.graphs_of(modality))
        except OutOfMemoryError as error:
            errors.append(error)
    if len(errors) == len(manifest.modalities):
        raise errors[0]


def describe(folder: Path, manifest: Manifest, load: Load, verdict: Verdict) -> str:
    """One line: the graphs, what they need, the limit, and what to do."""
    limit = verdict.limit
    named = " and ".join(f"the {graph} graph ({manifest.graphs[graph].precision})" for graph in load.needs)
    what = {"resident": "memory", "data": "data", "address": "addresses"}[limit.counted]
    verb = "needs" if len(load.needs) == 1 else "need"
    found = f"{named} {verb} {format_bytes(load.wanted(limit.counted))} of {what} in all, and {limit.name} is "
    found += format_bytes(limit.limit_bytes)
    advice = advise(folder, manifest, load, limit)
    if verdict.is_sure:
        return f"out of memory: {found}; {advice}"
    left = f", {format_bytes(limit.free_bytes)} of it free" if limit.free_bytes < limit.limit_bytes else ""
    risk = "it may be slow or be killed" if limit.counted == "resident" else "it may run out of memory"
    return f"memory is tight: {found}{left}, so {risk}; {advice}"


def advise(folder: Path, manifest: Manifest, load: Load, limit: MemoryLimit) -> str:
    """What lets the graphs run in less memory."""
    advice = []
    packable = [
        graph for graph, need in load.needs.items() if need.is_worth_packing and packed_bytes(manifest, graph) is None
    ]
    if limit.counted == "resident" and packable:
        once = max(replace(load, needs={graph: load.needs[graph]}).wanted() for graph in packable)
        needs = {**load.needs, **{graph: replace(load.needs[graph], copied_bytes=0) for graph in packable}}
        shown = format_bytes(once), format_bytes(replace(load, needs=needs).wanted())
        advice.append(f"`edgeclip prepack {folder}`, which needs {shown[0]} once, lets it run in {shown[1]}")
    if sum(FIRST_GRAPH[modality] in load.needs for modality in MODALITIES) > 1 and len(manifest.modalities) > 1:
        advice.append("`edgeclip serve --modality text` loads one modality alone")
    precisions = {manifest.graphs[graph].precision for graph in load.needs}
    if precisions != {"int4"}:
        smaller = "int4" if precisions <= {"int8", "int4"} else "int8 or int4"
        advice.append(f"`edgeclip quantize --to {smaller}` makes a smaller bundle")
    return ", ".join([*advice, "or take a machine with more" if "machine" in limit.name else "or raise the limit"])


def packed_bytes(manifest: Manifest, graph: str) -> int | None:
    """The size of a graph's packed weights on this machine; None without."""
    if (root := packed_root(os.environ)) is None:
        return None
    facts = packed_facts(manifest.graphs[graph].file, plan_graph(graph, _CPU, 1, manifest), manifest)
    try:
        return sum(file.stat().st_size for file in (root / facts.key).iterdir())
    except OSError:
        return None
