"""Quantised bundles beside other tools' versions of the same graphs, in one run on one machine.

For each contender it measures latency, size on disk, resident memory in a process of its own, and the cosines of its
vectors to the fp32 bundle's on made-up inputs that none was calibrated on. The contenders take turns in every round,
so other work of the machine meets all alike; the figure to quote is the median over the rounds of one time divided by
another. Only compute is timed.

A rival whose package is not installed, or whose tool fails, is left out: stderr and the JSON say so. Rivals that
cannot take any checkpoint are listed too, so that nobody looks for them in vain. Where packages exclude each other,
run `--prepare` once in each environment.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip import Manifest
from edgeclip.bundle.closeness import row_cosines
from edgeclip.engine import paired_timing
from edgeclip.engine.devices import usable_cpus
from edgeclip.errors import InputError
from edgeclip.manifest import FIRST_GRAPH, PROOF_DATA, ImageFacts, Modality
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.measure.cosines import summarize_cosines
from edgeclip_bench.measure.documents import add_out, make_document, save
from edgeclip_bench.measure.other_processes import others_share, read_spent
from edgeclip_bench.measure.percentiles import summarize
from edgeclip_bench.measure.report_table import render_tables
from edgeclip_bench.rivals.contenders import Contender, Resident, Run, feed, measure_resident, open_run
from edgeclip_bench.rivals.recipes import (
    CANNOT,
    RIVALS,
    LeftOut,
    Made,
    Material,
    made_up_batches,
    place,
    prepare,
    same_graphs,
)
from edgeclip_bench.rivals.report import rival_tables

SHORT_TOKENS, LONG_TOKENS = 16, 512
FAMILY = "jina_clip"
# Calibration draws with seed 0.
_SEED = 1
_TOKEN = 7  # any id but those of special tokens

Times = NDArray[np.float64]  # (rounds,) in milliseconds
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The shape of a batch that is timed: `tokens` is 0 for images."""

    graph: str
    batch: int
    tokens: int
    rounds: int

    @property
    def name(self) -> str:
        """The name in the tables."""
        what = f"text, {self.tokens} tokens" if self.graph == "text" else "image"
        return f"{what}, batch {self.batch}"


# Shapes of texts: (batch, tokens, rounds).
SHAPES = ((1, SHORT_TOKENS, 40), (1, LONG_TOKENS, 8), (16, SHORT_TOKENS, 8))
Shapes = Sequence[tuple[int, int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A bundle that takes part, under its folder's name."""

    name: str
    folder: Path
    manifest: Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    add_common_arguments(parser)
    parser.add_argument("smaller", type=Path, nargs="*", help="quantised bundles of it, distinguished by their names")
    parser.add_argument("--rivals", default="all", help=f"comma-separated, of {', '.join(RIVALS)} (all)")
    parser.add_argument("--work", type=Path, help="keep the rivals' graphs in this folder, or take them from it")
    parser.add_argument("--prepare", action="store_true", help="prepare the rivals' graphs in --work, and stop")
    parser.set_defaults(shapes=SHAPES)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `edgeclip bench plain-export` takes as well."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="its fp32 bundle for the CPU")
    parser.add_argument("--rounds", type=int, default=1, help="multiplies the rounds of every case (1)")
    parser.add_argument("--texts", type=int, default=64, help="texts that the cosines are of (64)")
    parser.add_argument("--images", type=int, default=16, help="images that the cosines are of (16)")
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Prepare, measure, print the tables, write the JSON."""
    if min(options.rounds, options.texts, options.images) < 1:
        options.usage_error("--rounds, --texts and --images want 1 or more")
    if options.prepare and not options.work:
        options.usage_error("--prepare wants --work, the folder to prepare in")
    try:
        names = parse_names(options.rivals)
    except InputError as error:
        options.usage_error(str(error))
    entries = open_bundles(options.checkpoint, [options.bundle, *options.smaller])
    if options.prepare:
        prepare_all(names, options.checkpoint, entries[0], options.work)
        return 0
    counts = {"rounds": options.rounds, "texts": options.texts, "images": options.images}
    report = run_rivals(names, options.checkpoint, entries, options.work, shapes=options.shapes, **counts)
    print(render_tables(list(rival_tables(report))))
    save(report, options.out)
    return 0


def parse_names(words: str) -> list[str]:
    """Names of rivals with commas between them, or "all", also of those that cannot take part; else InputError."""
    names = [*RIVALS, *CANNOT] if words == "all" else list(dict.fromkeys(word.strip() for word in words.split(",")))
    if unknown := set(names) - set(RIVALS) - set(CANNOT):
        raise InputError(f"--rivals: unknown {', '.join(sorted(unknown))}; wanted some of {', '.join(RIVALS)}")
    return names


def run_rivals(
    names: Sequence[str],
    checkpoint: Path,
    entries: Sequence[Entry],
    work: Path | None,
    *,
    rounds: int = 1,
    texts: int = 64,
    images: int = 16,
    modalities: Sequence[Modality] | None = None,
    threads: int | None = None,
    shapes: Shapes = SHAPES,
) -> dict[str, Any]:
    """Prepare the rivals in `work` (None: a temporary folder), measure these modalities, and return the document."""
    count = threads or usable_cpus()
    facts = entries[0].manifest
    graphs = [FIRST_GRAPH[modality] for modality in modalities or facts.modalities]
    with contextlib.ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made, left_out = prepare_all(names, checkpoint, entries[0], folder, graphs)
        spent = read_spent()
        found = []
        for graph in graphs:
            batches = made_up_batches(entries[0].folder, facts, graph, texts=texts, images=images, seed=_SEED)
            found.append(measure(graph, entries, made, folder, batches, rounds, count, shapes))
        longest = weigh_longest_text(entries[0], count) if "text" in graphs else {}
        share = others_share(spent, read_spent(), os.cpu_count() or 1)
    parts = {part: [row for of_graph in found for row in of_graph[part]] for part in found[0]}
    return make_document(
        __name__,
        {
            "threads": count,
            "others_share": round(share, 4),
            "source": facts.source.name,
            "parameters": sum(graph.parameters for graph in facts.graphs.values()),
            "fp32": entries[0].name,
            "samples": {"name": PROOF_DATA, "text": texts, "image": images, "seed": _SEED},
            **parts,
            "left_out": [*left_out, *parts["left_out"]],
            "longest_text": longest,
        },
    )


def open_bundles(checkpoint: Path, folders: Sequence[Path]) -> list[Entry]:
    """Open the bundles in these folders, the fp32 one first; InputError when they are not all of this checkpoint."""
    from edgeclip_export.opening import open_checkpoint

    weights = open_checkpoint(checkpoint).checkpoint.hash_weights()
    entries: list[Entry] = []
    for folder in folders:
        name, manifest = folder.resolve().name, Manifest.read(folder)
        if manifest.family != FAMILY:
            raise InputError(f"{folder}: is of the family {manifest.family}; rivals are made of {FAMILY} alone")
        precisions = "/".join(graph.precision for graph in manifest.graphs.values())
        if manifest.target != "cpu" or (not entries and precisions != "fp32/fp32"):
            wanted = "one for the CPU" if entries else "the fp32 bundle for the CPU first"
            raise InputError(f"{folder}: is {precisions} for {manifest.target}; wanted {wanted}")
        if manifest.source.weights_sha256 != weights:
            raise InputError(f"{folder}: was made from other weights than those in {checkpoint}")
        if name in RIVALS or name in {entry.name for entry in entries}:
            raise InputError(f"{folder}: another contender is called {name} too; rename the folder")
        entries.append(Entry(name=name, folder=folder, manifest=manifest))
    return entries


def prepare_all(
    names: Sequence[str], checkpoint: Path, fp32: Entry, work: Path, graphs: Sequence[str] | None = None
) -> tuple[list[Made], list[Row]]:
    """Prepare the rivals' graphs under `work` (None: all that the bundle has); return them and those left out."""
    graphs = graphs or list(fp32.manifest.graphs)
    weights = fp32.manifest.source.weights_sha256
    material = Material(checkpoint=checkpoint, bundle=fp32.folder, weights_sha256=weights)
    made: list[Made] = []
    left_out = [_leave_out(name, graph, CANNOT[name]) for name in names if name in CANNOT for graph in graphs]
    wanted = [(name, graph) for graph in graphs for name in names if name in RIVALS]
    with ProgressBar("preparing", len(wanted), is_shown=is_wanted(None)) as bar:
        for done, (name, graph) in enumerate(wanted):
            bar.show(f"preparing {name}, {graph}", done, len(wanted))
            try:
                made.append(prepare(name, material, graph, work))
            except LeftOut as error:
                left_out.append(_leave_out(name, graph, str(error)))
    return made, left_out


def measure(
    graph: str,
    entries: Sequence[Entry],
    made: Sequence[Made],
    work: Path,
    batches: Sequence[NDArray[Any]],
    rounds: int,
    threads: int,
    shapes: Shapes = SHAPES,
) -> dict[str, list[Row]]:
    """The rows of every contender's graph of that name: standings, latencies, against, twins, left_out."""
    facts = entries[0].manifest
    image = facts.need_image() if facts.image else None
    of_graph = [one for one in made if one.graph == graph]
    same = same_graphs(of_graph)
    made_with = {entry.name: entry.manifest.built_with for entry in entries}
    made_with |= {one.rival: one.made_with for one in of_graph}
    contenders = [bundle_contender(entry, graph) for entry in entries]
    contenders += [_rival(one, work) for one in of_graph if one.rival not in same]
    residents, left_out = _weigh(contenders, batches[0], image, threads)
    contenders = [contender for contender in contenders if contender.name in residents]
    runs = {contender.name: open_run(contender, threads) for contender in contenders}

    def vectors(contender: Contender) -> NDArray[np.float32]:
        return np.concatenate([runs[contender.name](feed(contender, batch, image)) for batch in batches])

    wanted = vectors(contenders[0])
    standings = [
        {
            "contender": contender.name,
            "graph": graph,
            "recipe": contender.recipe,
            "made_with": dict(made_with[contender.name]),
            "size_bytes": contender.size_bytes,
            "resident": asdict(residents[contender.name]),
            "closeness": asdict(summarize_cosines(row_cosines(found, wanted))),
            "largest_difference": float(np.abs(found - wanted).max()),
        }
        for contender in contenders
        for found in (vectors(contender),)
    ]
    times = {}
    longest = facts.text.max_length if facts.text else 0
    for case in cases(graph, longest, shapes):
        batch = case_batch(case, batches)
        fed = {contender.name: feed(contender, batch, image) for contender in contenders}
        times[case.name] = take_turns(case.name, runs, fed, case.rounds * rounds)
    return {
        "standings": standings,
        **_compare(times, entries),
        "twins": [{"rival": name, "graph": graph, "same_as": other} for name, other in same.items()],
        "left_out": left_out,
    }


def _compare(times: Mapping[str, Mapping[str, Times]], entries: Sequence[Entry]) -> dict[str, list[Row]]:
    """Each contender's times for each case beside fp32's, and each smaller bundle's beside each rival's."""
    fp32, *smaller = (entry.name for entry in entries)
    return {
        "latencies": [row for case, its in times.items() for row in latency_rows(case, its, to_fp32=its[fp32])],
        "against": [
            {"case": case, "bundle": bundle, "rival": rival, "ratio": paired(of_case[bundle], its)}
            for case, of_case in times.items()
            for bundle in smaller
            for rival, its in of_case.items()
            if rival in RIVALS
        ],
    }


def latency_rows(case: str, times: Mapping[str, Times], **to: Times) -> list[Row]:
    """A row for each contender of a case, with the ratios to another's times in the same rounds, by their names."""
    return [
        {
            "case": case,
            "contender": name,
            "samples": len(its),
            "median_ms": float(np.median(its)),
            "p90_ms": summarize(its).p90_ms,
            **{ratio: paired(its, others) for ratio, others in to.items()},
        }
        for name, its in times.items()
    ]


def paired(times: Times, others: Times) -> Row:
    """One time divided by another of the same round: the median over the rounds, and the quartiles."""
    low, median, high = (float(found) for found in np.percentile(times / others, [25, 50, 75]))
    return {"median": median, "low": low, "high": high, "samples": len(times)}


def cases(graph: str, longest: int, shapes: Shapes = SHAPES) -> list[Case]:
    """The cases that are timed for a graph; no text has more than `longest` tokens."""
    if graph == "vision":
        return [Case(graph=graph, batch=1, tokens=0, rounds=12)]
    return [Case(graph=graph, batch=batch, tokens=min(tokens, longest), rounds=n) for batch, tokens, n in shapes]


def case_batch(case: Case, batches: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The ids or pixels of a case, as a bundle takes them: the samples' tokens in a row, or the first picture."""
    if case.graph == "text":
        return np.resize(np.concatenate(batches, axis=1), (case.batch, case.tokens))
    return np.repeat(batches[0], case.batch, axis=0)


def take_turns(
    label: str, runs: Mapping[str, Run], batches: Mapping[str, NDArray[Any]], rounds: int
) -> dict[str, Times]:
    """Milliseconds of every contender in each round, after a round that does not count."""
    works = {name: partial(run, batches[name]) for name, run in runs.items()}
    with ProgressBar(label, rounds + 1, is_shown=is_wanted(None)) as bar:
        times = paired_timing.take_turns(works, rounds, warm_up=1, on_round=bar.advance)
    return {name: its * 1000 for name, its in times.items()}


def bundle_contender(entry: Entry, graph: str) -> Contender:
    """A bundle's graph as a contender."""
    facts = entry.manifest.graphs[graph]
    return Contender(
        name=entry.name,
        recipe=f"edgeclip, {facts.precision} for {entry.manifest.target}",
        engine="bundle",
        graph=graph,
        path=entry.folder / facts.file,
        size_bytes=sum(file.size_bytes for file in entry.manifest.files if file.name.startswith(facts.file)),
    )


def _rival(made: Made, work: Path) -> Contender:
    return Contender(
        name=made.rival,
        recipe=made.recipe,
        engine=RIVALS[made.rival].engine,
        graph=made.graph,
        path=work / place(made.rival, made.graph) / made.file,
        size_bytes=made.size_bytes,
    )


def _weigh(
    contenders: Sequence[Contender], batch: NDArray[Any], image: ImageFacts | None, threads: int
) -> tuple[dict[str, Resident], list[Row]]:
    """The memory of each contender by name, and the rivals that cannot be opened."""
    residents: dict[str, Resident] = {}
    left_out: list[Row] = []
    with ProgressBar("opening", len(contenders), is_shown=is_wanted(None)) as bar:
        for done, contender in enumerate(contenders):
            bar.show(f"opening {contender.name}, {contender.graph}", done, len(contenders))
            try:
                residents[contender.name] = measure_resident(contender, feed(contender, batch, image), threads)
            except LeftOut as error:
                left_out.append(_leave_out(contender.name, contender.graph, str(error)))
    return residents, left_out


def weigh_longest_text(entry: Entry, threads: int) -> dict[str, Row]:
    """The memory that one text of the most tokens takes, by the bundle's name; nothing where it takes no texts."""
    if not entry.manifest.text:
        return {}
    tokens = entry.manifest.text.max_length
    ids = np.full((1, tokens), _TOKEN, dtype=np.int64)
    resident = measure_resident(bundle_contender(entry, "text"), ids, threads)
    return {entry.name: {"tokens": tokens, **asdict(resident)}}


def _leave_out(rival: str, graph: str, why: str) -> Row:
    print(f"rivals: {rival}, {graph}: left out: {why}", file=sys.stderr)
    return {"rival": rival, "graph": graph, "why": why}
