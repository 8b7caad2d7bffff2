"""`edgeclip bench`: latency and throughput of bundles, and whether they became worse.

    edgeclip bench BUNDLE [BUNDLE ...]            measure
    edgeclip bench compare BEFORE.json AFTER.json   hold one measurement against another

A bundle that is called "compare" is reached as ./compare.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeclip.bundle.staging import stage_name
from edgeclip.cli.format import format_table
from edgeclip.cli.loading import load_extra
from edgeclip.engine.session import import_onnxruntime
from edgeclip.errors import InputError
from edgeclip.manifest import TOWERS, TowerName
from edgeclip.progress import ProgressBar, is_wanted

_FAILED = 1


def run(options: argparse.Namespace) -> int:
    """Measure or compare; the exit status."""
    _check_usage(options)
    if options.bundle[0] == "compare":
        return _compare(options)
    import_onnxruntime()  # without it, this says what to install, and not the bench extra
    cases = load_extra("edgeclip_bench.latency.cases", "bench")
    runs = load_extra("edgeclip_bench.latency.run", "bench")
    reports = load_extra("edgeclip_bench.latency.report", "bench")
    pages = load_extra("edgeclip_bench.latency.page", "bench")
    records = load_extra("edgeclip_bench.latency.records", "bench")
    plan = cases.Plan(
        towers=TOWERS if options.tower == "both" else (options.tower,),
        scenarios=cases.parse_scenarios(options.scenario),
        batches=cases.parse_numbers("--batch", options.batch),
        tokens=cases.parse_numbers("--tokens", options.tokens),
        image_px=cases.parse_numbers("--image-px", options.image_px),
        threads=cases.parse_numbers("--threads", options.threads) if options.threads else None,
        seconds=options.seconds,
        p99_ms=options.p99_ms,
    )
    bundles = [Path(name) for name in options.bundle]
    files = {path: render for path, render in _renderers(options, reports, pages) if path}
    for path in files:
        _check_place(path)
    attached = {}
    for path in options.attach:
        document = records.read_document(path, benchmark=None)
        attached[document["benchmark"]] = document
    rivals = _prepare_rivals(options, plan.towers, max(plan.threads or (0,)) or None)
    with ProgressBar("bench", 1, is_shown=is_wanted(None)) as bar:
        record = runs.bench(bundles, plan, device=options.device, progress=bar.show)
    record = dataclasses.replace(record, rivals=rivals(), attached=attached)
    print(record.to_json() if options.json else reports.render_text(record), end="")
    for path, render in files.items():
        _write(path, render(record))
        print(f"{path}: written", file=sys.stderr)
    return 0


def _check_usage(options: argparse.Namespace) -> None:
    """Status 2 for what cannot be meant, as argparse has it for what it knows itself."""
    if options.bundle[0] == "compare":
        if len(options.bundle) != 3:
            options.usage_error("compare wants two documents: `edgeclip bench compare BEFORE.json AFTER.json`")
        return
    if (options.checkpoint or options.work) and not options.rivals:
        options.usage_error("--checkpoint and --work are for --rivals: name some, or all")
    if options.rivals and not options.checkpoint:
        options.usage_error("--rivals wants --checkpoint, the folder that the bundles were made from")


def _renderers(options: argparse.Namespace, reports: Any, pages: Any) -> Iterator[tuple[Path | None, Any]]:
    yield options.out, lambda record: record.to_json()
    yield options.csv, reports.render_csv
    yield options.html, pages.render_page


def _prepare_rivals(
    options: argparse.Namespace, towers: Sequence[TowerName], threads: int | None
) -> Callable[[], Any]:
    """What measures the rivals when the bundles are done; whatever can be known to be wrong is said before.

    It gives their document; None where no rivals are asked for.
    """
    if not options.rivals:
        return lambda: None
    rivals = load_extra("edgeclip_bench.rivals.run", "bench")
    names = rivals.parse_names(options.rivals)
    entries = rivals.open_bundles(options.checkpoint, [Path(name) for name in options.bundle])

    return lambda: rivals.run_rivals(names, options.checkpoint, entries, options.work, towers=towers, threads=threads)


def _compare(options: argparse.Namespace) -> int:
    comparison = load_extra("edgeclip_bench.latency.compare", "bench")
    records = load_extra("edgeclip_bench.latency.records", "bench")
    threshold = comparison.parse_threshold(options.fail_over)
    before, after = (records.read_document(Path(name)) for name in options.bundle[1:])
    found = comparison.compare(before, after, threshold, across_machines=options.across_machines)
    rows = [
        (
            change.case,
            f"{change.before:.4g} {change.unit}",
            f"{change.after:.4g} {change.unit}",
            f"{change.change:+.1%}",
            f"{change.low:+.1%} to {change.high:+.1%}",
            change.verdict,
        )
        for change in found.changes
    ]
    print(format_table(("case", "before", "after", "slower by", "noise: its interval", "verdict"), rows))
    for what, names in (("only before", found.only_before), ("only after", found.only_after)):
        for name in names:
            print(f"{what}: {name}")
    for difference in found.differences:
        print(f"differs: {difference}")
    sys.stdout.flush()
    if found.unjudged:
        print(
            f"edgeclip: {len(found.unjudged)} of {len(found.changes)} cases changed and were not judged (not steady, "
            "or other processes at work): measure again on a quiet machine, or with more --seconds",
            file=sys.stderr,
        )
    for change in found.regressions:
        print(
            f"edgeclip: regression: {change.case}: {change.before:.4g} to {change.after:.4g} {change.unit}, "
            f"{change.change:+.1%} ({change.low:+.1%} to {change.high:+.1%}), over {threshold:.1%}",
            file=sys.stderr,
        )
    return _FAILED if found.regressions else 0


def _check_place(path: Path) -> None:
    """Before the work, so that it is not done in vain."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: there is no folder {folder}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"{path}: cannot be written to")


def _write(path: Path, text: str) -> None:
    """The file under its name when it is complete."""
    stage = path.with_name(stage_name(path.name))
    try:
        stage.write_text(text, encoding="utf-8", errors="backslashreplace")
        stage.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            stage.unlink(missing_ok=True)
