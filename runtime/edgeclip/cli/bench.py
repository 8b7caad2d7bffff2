"""`edgeclip bench BUNDLE ...`: latency and throughput of bundles, in tables, as JSON, CSV and a page.

`edgeclip bench CASE ...`, as `edgeclip bench compare BEFORE.json AFTER.json`, is another benchmark or tool: the table
of all is edgeclip_bench.cases. A bundle in a folder that is called as a case is reached as ./compare.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeclip.bundle.staging import stage_name
from edgeclip.engine.devices import DEVICES
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.errors import InputError
from edgeclip.host.installation import needs_extra
from edgeclip.manifest import MODALITIES, Modality
from edgeclip.progress import ProgressBar, is_wanted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="+", help="folders of bundles")
    parser.add_argument("--modality", choices=(*MODALITIES, "all"), default="all", help="what is measured (all)")
    parser.add_argument("--task", metavar="T", help="the task that texts are encoded with (none)")
    parser.add_argument(
        "--scenario",
        metavar="S",
        default="single-stream,offline",
        help="MLPerf's single-stream, multi-stream, server, offline (single-stream,offline)",
    )
    parser.add_argument("--batch", metavar="N", default="1", help="samples a query, as 1,8 (1)")
    parser.add_argument("--tokens", metavar="N", default="16,64,512", help="lengths of the texts (16,64,512)")
    parser.add_argument("--image-px", metavar="N", default="1080", help="sides of the images on disk (1080)")
    parser.add_argument(
        "--threads", metavar="N", help="numbers of threads, as 1,2 (all that may be used; 1 where graphs are tiny)"
    )
    parser.add_argument("--device", default="auto", help=f"{DEVICES} (auto)")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        default=3.0,
        help="for each case, about; to five times that where slow (3)",
    )
    parser.add_argument("--p99-ms", type=float, metavar="MS", help="the bound of the server scenario")
    parser.add_argument("--rivals", metavar="NAMES", help="others' graphs of --checkpoint too; fp32 BUNDLE first")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="what the bundles were made from")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the rivals' graphs here")
    parser.add_argument(
        "--attach",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="put another benchmark's JSON into the document, as cold start's or soak's",
    )
    parser.add_argument("--json", action="store_true", help="the JSON document instead of tables")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write perf_analyzer's columns")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _list_cases()


def _list_cases() -> str:
    from edgeclip_bench.cases import CASES

    width = max(map(len, CASES))
    lines = [f"  {name:<{width}}  {case.help}" for name, case in CASES.items()]
    return "\n".join(["or a case, which has a --help of its own (edgeclip bench CASE --help):", *lines])


def run(options: argparse.Namespace) -> int:
    """Measure every case of the options on each bundle; print and write what was found."""
    _check_usage(options)
    import_onnxruntime()  # without it, this says what to install, and not the bench extra
    with needs_extra("bench"):
        from edgeclip_bench.latency import cases, page, records, report
        from edgeclip_bench.latency.run import bench
        from edgeclip_bench.measure.documents import read_document
    plan = cases.Plan(
        modalities=None if options.modality == "all" else (options.modality,),
        scenarios=cases.parse_scenarios(options.scenario),
        batches=cases.parse_numbers("--batch", options.batch),
        tokens=cases.parse_numbers("--tokens", options.tokens),
        image_px=cases.parse_numbers("--image-px", options.image_px),
        threads=cases.parse_numbers("--threads", options.threads) if options.threads else None,
        seconds=options.seconds,
        p99_ms=options.p99_ms,
        task=options.task,
    )
    bundles = [Path(name) for name in options.bundle]
    renderers: tuple[tuple[Path | None, Callable[[records.Record], str]], ...] = (
        (options.out, records.Record.to_json),
        (options.csv, report.render_csv),
        (options.html, page.render_page),
    )
    files = {path: render for path, render in renderers if path}
    for path in files:
        _check_place(path)
    attached = {}
    for path in options.attach:
        document = read_document(path)
        attached[document["benchmark"]] = document
    rivals = _prepare_rivals(options, plan.modalities, max(plan.threads or (0,)) or None)
    with ProgressBar("bench", 1, is_shown=is_wanted(None)) as bar:
        record = bench(bundles, plan, device=options.device, progress=bar.show)
    record = dataclasses.replace(record, rivals=rivals(), attached=attached)
    print(record.to_json() if options.json else report.render_text(record), end="")
    for path, render in files.items():
        _write(path, render(record))
        print(f"{path}: written", file=sys.stderr)
    return 0


def _check_usage(options: argparse.Namespace) -> None:
    """Status 2 for what cannot be meant, as argparse has it for what it knows itself."""
    if (options.checkpoint or options.work) and not options.rivals:
        options.usage_error("--checkpoint and --work are for --rivals: name some, or all")
    if options.rivals and not options.checkpoint:
        options.usage_error("--rivals wants --checkpoint, the folder that the bundles were made from")


def _prepare_rivals(
    options: argparse.Namespace, modalities: Sequence[Modality] | None, threads: int | None
) -> Callable[[], Any]:
    """What measures the rivals when the bundles are done; whatever can be known to be wrong is said before.

    It gives their document; None where no rivals are asked for.
    """
    if not options.rivals:
        return lambda: None
    with needs_extra("bench"):
        from edgeclip_bench.rivals import run as rivals
    names = rivals.parse_names(options.rivals)
    entries = rivals.open_bundles(options.checkpoint, [Path(name) for name in options.bundle])

    return lambda: rivals.run_rivals(
        names, options.checkpoint, entries, options.work, modalities=modalities, threads=threads
    )


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
