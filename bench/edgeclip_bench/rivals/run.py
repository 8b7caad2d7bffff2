"""Quantised bundles beside other tools' versions of the same towers, in one run on one machine.

    edgeclip bench rivals CHECKPOINT BUNDLE [SMALLER ...] [--rivals NAMES] [--work DIR] [--out
    FILE.json]

BUNDLE is the checkpoint's fp32 bundle for the CPU, every SMALLER one of its quantised bundles. For each contender it
measures latency, size on disk, resident memory in a process of its own, and the cosines of its vectors to BUNDLE's on
made-up inputs that none was calibrated on. The contenders take turns in every round, and another one begins each
round, so other work of the machine meets all alike; the figure to quote is the median over the rounds of one time
divided by another. Only compute is timed.

A rival whose package is not installed, or whose tool fails, is left out: stderr and the JSON say so. Rivals that
cannot take any checkpoint are listed too, so that nobody looks for them in vain. Graphs that were prepared in --work
are reused. `--prepare` prepares and stops: where packages exclude each other, run it once in each environment.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeclip import Manifest
from edgeclip.engine import paired_timing
from edgeclip.engine.devices import usable_cpus
from edgeclip.errors import InputError
from edgeclip.manifest import TOWERS, ImageFacts, TowerName
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.measure.machine_facts import machine
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
    installed,
    place,
    prepare,
    same_graphs,
)
from edgeclip_bench.rivals.report import rival_tables
from edgeclip_bench.rivals.results import (
    Absence,
    Against,
    Latency,
    Result,
    Standing,
    Times,
    Twin,
    closeness,
    paired,
)
from edgeclip_quant.inputs.made_up import Batches, Samples, made_up_samples

if TYPE_CHECKING:  # it loads torch, and every process that opens one graph imports this module anew
    from edgeclip_bench.latency.plain_export import Case

LONG_TOKENS = 512
# Calibration draws with seed 0.
_SEED = 1
_PACKAGES = (
    "onnxruntime",
    "openvino",
    "nncf",
    "optimum-onnx",
    "optimum",
    "transformers",
    "onnx",
    "onnxscript",
    "torch",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A bundle that takes part, under its folder's name."""

    name: str
    folder: Path
    manifest: Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="its fp32 bundle for the CPU")
    parser.add_argument("smaller", type=Path, nargs="*", help="quantised bundles of it, distinguished by their names")
    parser.add_argument("--rivals", default="all", help=f"comma-separated, of {', '.join(RIVALS)} (all)")
    parser.add_argument("--work", type=Path, help="keep the rivals' graphs in this folder, or take them from it")
    parser.add_argument("--prepare", action="store_true", help="prepare the rivals' graphs in --work, and stop")
    parser.add_argument("--rounds", type=int, default=1, help="multiplies the rounds of every case (1)")
    parser.add_argument("--texts", type=int, default=64, help="texts that the cosines are of (64)")
    parser.add_argument("--images", type=int, default=16, help="images that the cosines are of (16)")
    parser.add_argument("--out", type=Path, help="write the JSON here")


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
    counts = {"texts": options.texts, "images": options.images}
    report = run_rivals(names, options.checkpoint, entries, options.work, rounds=options.rounds, **counts)
    print(render_tables(list(rival_tables(report))))
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def parse_names(words: str) -> list[str]:
    """Names of rivals with commas between them, or "all", also of those that cannot take part; InputError for other
    names.
    """
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
    towers: Sequence[TowerName] = TOWERS,
    threads: int | None = None,
) -> dict[str, Any]:
    """Prepare the rivals in `work` (None: a temporary folder) and measure these towers; return the document.

    All get `threads` threads, by default every processor that may be used.
    """
    count = threads or usable_cpus()
    with contextlib.ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made, left_out = prepare_all(names, checkpoint, entries[0], folder, towers)
        facts = entries[0].manifest
        samples = made_up_samples(entries[0].folder, facts, texts=texts, images=images, seed=_SEED)
        spent = read_spent()
        results = [measure(tower, entries, made, folder, samples, rounds, count) for tower in towers]
        share = others_share(spent, read_spent(), os.cpu_count() or 1)
    return {
        "benchmark": "edgeclip_bench.rivals.run",
        "machine": machine(),
        "threads": count,
        "others_share": round(share, 4),
        "versions": {package: version(package) for package in _PACKAGES if installed(package)},
        "source": facts.source.name,
        "parameters": facts.text.parameters + facts.vision.parameters,
        "fp32": entries[0].name,
        "samples": {"name": samples.name, "text": texts, "vision": images, "seed": _SEED},
        **{
            part: [asdict(row) for result in results for row in getattr(result, part)]
            for part in ("standings", "latencies", "against", "twins")
        },
        "left_out": [asdict(one) for one in (*left_out, *(one for each in results for one in each.left_out))],
    }


def open_bundles(checkpoint: Path, folders: Sequence[Path]) -> list[Entry]:
    """Open the bundles in these folders, the fp32 one first; InputError when they are not all of this checkpoint."""
    from edgeclip_export.opening import open_checkpoint

    weights = open_checkpoint(checkpoint).checkpoint.hash_weights()
    entries: list[Entry] = []
    for folder in folders:
        name, manifest = folder.resolve().name, Manifest.read(folder)
        precisions = "/".join(manifest.tower(tower).precision for tower in TOWERS)
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
    names: Sequence[str], checkpoint: Path, fp32: Entry, work: Path, towers: Sequence[TowerName] = TOWERS
) -> tuple[list[Made], list[Absence]]:
    """Prepare the rivals' towers under `work`; return them and those that could not be made."""
    weights = fp32.manifest.source.weights_sha256
    material = Material(checkpoint=checkpoint, bundle=fp32.folder, weights_sha256=weights)
    made: list[Made] = []
    left_out = [_leave_out(name, tower, CANNOT[name]) for name in names if name in CANNOT for tower in towers]
    wanted = [(name, tower) for tower in towers for name in names if name in RIVALS]
    with ProgressBar("preparing", len(wanted), is_shown=is_wanted(None)) as bar:
        for done, (name, tower) in enumerate(wanted):
            bar.show(f"preparing {name}, {tower}", done, len(wanted))
            try:
                made.append(prepare(name, material, tower, work))
            except LeftOut as error:
                left_out.append(_leave_out(name, tower, str(error)))
    return made, left_out


def measure(
    tower: TowerName,
    entries: Sequence[Entry],
    made: Sequence[Made],
    work: Path,
    samples: Samples,
    rounds: int,
    threads: int,
) -> Result:
    """Measure one tower of every contender. A graph that cannot be opened is left out; a twin is not measured
    again.
    """
    facts = entries[0].manifest
    of_tower = [one for one in made if one.tower == tower]
    same = same_graphs(of_tower)
    made_with = {entry.name: entry.manifest.built_with for entry in entries}
    made_with |= {one.rival: one.made_with for one in of_tower}
    contenders = [_bundle(entry, tower) for entry in entries]
    contenders += [_rival(one, work) for one in of_tower if one.rival not in same]
    residents, left_out = _weigh(contenders, samples.of(tower)[0], facts.image, threads)
    contenders = [contender for contender in contenders if contender.name in residents]
    runs = {contender.name: open_run(contender, threads) for contender in contenders}
    vectors = {
        contender.name: np.concatenate(
            [runs[contender.name](feed(contender, batch, facts.image)) for batch in samples.of(tower)]
        )
        for contender in contenders
    }
    times = {}
    for case in cases(tower, facts.tokenizer.max_length):
        batch = case_batch(case, samples.of(tower))
        batches = {contender.name: feed(contender, batch, facts.image) for contender in contenders}
        times[case.name] = take_turns(case.name, runs, batches, case.rounds * rounds)
    fp32, smaller = entries[0].name, [entry.name for entry in entries[1:]]
    return Result(
        tower=tower,
        standings=tuple(
            Standing(
                contender=contender.name,
                tower=tower,
                recipe=contender.recipe,
                made_with=made_with[contender.name],
                size_bytes=contender.size_bytes,
                resident=residents[contender.name],
                closeness=closeness(vectors[contender.name], vectors[fp32]),
            )
            for contender in contenders
        ),
        latencies=tuple(
            Latency(
                case=case,
                contender=name,
                samples=len(its),
                median_ms=float(np.median(its)),
                p90_ms=summarize(its).p90_ms,
                to_fp32=paired(its, of_case[fp32]),
            )
            for case, of_case in times.items()
            for name, its in of_case.items()
        ),
        against=tuple(
            Against(case=case, bundle=bundle, rival=rival, ratio=paired(of_case[bundle], its))
            for case, of_case in times.items()
            for bundle in smaller
            for rival, its in of_case.items()
            if rival in RIVALS
        ),
        twins=tuple(Twin(rival=name, tower=tower, same_as=other) for name, other in same.items()),
        left_out=tuple(left_out),
    )


def cases(tower: TowerName, longest: int) -> "list[Case]":
    """The cases that are timed for a tower; no text has more than `longest` tokens."""
    from edgeclip_bench.latency.plain_export import SHORT_TOKENS, Case

    if tower == "vision":
        return [Case(tower=tower, batch=1, tokens=0, rounds=12)]
    shapes = ((1, SHORT_TOKENS, 40), (1, LONG_TOKENS, 8), (16, SHORT_TOKENS, 8))
    return [Case(tower=tower, batch=batch, tokens=min(tokens, longest), rounds=n) for batch, tokens, n in shapes]


def case_batch(case: "Case", batches: Batches) -> NDArray[Any]:
    """The ids or pixels of a case, as a bundle takes them: the samples' tokens in a row, or the first picture."""
    if case.tower == "text":
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


def _bundle(entry: Entry, tower: TowerName) -> Contender:
    facts = entry.manifest.tower(tower)
    return Contender(
        name=entry.name,
        recipe=f"edgeclip, {facts.precision} for {entry.manifest.target}",
        engine="bundle",
        tower=tower,
        graph=entry.folder / facts.file,
        size_bytes=sum(file.size_bytes for file in entry.manifest.files if file.name.startswith(facts.file)),
    )


def _rival(made: Made, work: Path) -> Contender:
    return Contender(
        name=made.rival,
        recipe=made.recipe,
        engine=RIVALS[made.rival].engine,
        tower=made.tower,
        graph=work / place(made.rival, made.tower) / made.graph,
        size_bytes=made.size_bytes,
    )


def _weigh(
    contenders: Sequence[Contender], batch: NDArray[Any], image: ImageFacts, threads: int
) -> tuple[dict[str, Resident], list[Absence]]:
    """The memory of each contender by name, and the rivals that cannot be opened."""
    residents: dict[str, Resident] = {}
    left_out: list[Absence] = []
    with ProgressBar("opening", len(contenders), is_shown=is_wanted(None)) as bar:
        for done, contender in enumerate(contenders):
            bar.show(f"opening {contender.name}, {contender.tower}", done, len(contenders))
            try:
                residents[contender.name] = measure_resident(contender, feed(contender, batch, image), threads)
            except LeftOut as error:
                left_out.append(_leave_out(contender.name, contender.tower, str(error)))
    return residents, left_out


def _leave_out(rival: str, tower: TowerName, why: str) -> Absence:
    print(f"rivals: {rival}, {tower}: left out: {why}", file=sys.stderr)
    return Absence(rival=rival, tower=tower, why=why)
