"""`edgeclip eval`: the quality of a bundle on a user's data, and beside another bundle."""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeclip.bundle.staging import stage_name
from edgeclip.cli.arguments import add_bundle, add_device, add_json
from edgeclip.cli.late_warnings import late_warnings
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.errors import InputError
from edgeclip.host.installation import needs_extra


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    add_bundle(parser)
    parser.add_argument("data", metavar="DATA", type=Path, nargs="+", help="a file or folder in a known layout")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where the images lie, if not with the captions")
    parser.add_argument("--split", metavar="S", help="the split to take (test, else what is held out)")
    parser.add_argument(
        "--language", action="append", dest="languages", metavar="L", help="only this one; may be repeated"
    )
    parser.add_argument(
        "--name",
        metavar="N",
        help="the data set's name; published figures are known of coco and flickr30k (Karpathy's test splits), "
        "xm3600, xtd10",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images, queries or pairs")
    parser.add_argument(
        "--truncate-dim",
        type=int,
        action="append",
        dest="truncate_dims",
        metavar="N",
        help="evaluate at N dimensions besides all; may be repeated (those the model was trained for)",
    )
    _add_page_arguments(parser)
    parser.add_argument("--task", metavar="T", help="prepend this task's instruction to queries and captions")
    parser.add_argument("--against", type=Path, metavar="OTHER", help="another bundle, to be held against")
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        metavar="OTHER",
        help="a bundle of any model: one table with all, and what their authors published; may be repeated",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write report.json, report.md and curve.png, .svg")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep embeddings here, up to 5 GB; may be deleted (~/.cache/edgeclip/embeddings)",
    )
    cache.add_argument("--no-cache", action="store_true", help="keep no embeddings")
    add_device(parser)
    add_json(parser)


def _add_page_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-pixels",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="scale pages down to N pixels; may be repeated: a search at each (the model's limit)",
    )
    parser.add_argument(
        "--pooled",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="search pages also by multi vectors of which 1 in N is kept; may be repeated",
    )
    parser.add_argument(
        "--with-text", action="store_true", help="find pages by the text beside them too, as mteb does"
    )


# The arguments that say which data are read.
_SELECTION = ("images", "split", "languages", "name", "limit", "with_text")


@late_warnings()
def run(options: argparse.Namespace) -> None:
    """Evaluate or compare; the report on stdout, and in the folder of --out."""
    if options.name and len(options.data) > 1:
        options.usage_error(f"--name {options.name} for {len(options.data)} data sets; evaluate one at a time")
    if options.against and options.beside:
        options.usage_error("--against compares bundles of one model, --beside shows those of several; give one")
    import_onnxruntime()  # without it, this says what to install, and not the bench extra
    with needs_extra("bench"):
        from edgeclip_bench.quality import report as reports
        from edgeclip_bench.quality.against import Comparison, compare
        from edgeclip_bench.quality.beside import Beside, evaluate_beside, report_beside
        from edgeclip_bench.quality.evaluate import Evaluation, evaluate
        from edgeclip_bench.quality.layouts import open_data
    if options.out:
        with needs_extra("bench"):
            from edgeclip_bench.quality.curves import save_curves
    selection = {name: getattr(options, name) for name in _SELECTION}
    data = [one for path in options.data for one in open_data(path, **selection)]
    if options.out:
        _make_folder(options.out)
    settings: dict[str, Any] = {
        "truncate_dims": options.truncate_dims,
        "task": options.task,
        "max_pixels": options.max_pixels,
        "pooled": options.pooled,
        "device": options.device,
        "threads": options.threads,
        "cache": None if options.no_cache else options.cache or "default",
    }
    found: Evaluation | Comparison | Beside
    if options.beside:
        found = evaluate_beside([options.bundle, *options.beside], data, **settings)
    elif options.against:
        found = compare(options.bundle, options.against, data, **settings)
    else:
        found = evaluate(options.bundle, data, **settings)
    report = report_beside(found) if isinstance(found, Beside) else reports.make_report(found)
    document = reports.render_json(found)
    drawn = found.evaluations[0] if isinstance(found, Beside) else found
    print(document if options.json else reports.render_text(report), end="")
    if options.out:
        pages = {"report.json": document, "report.md": reports.render_markdown(report)}
        written = _write(options.out, pages, lambda folder: save_curves(drawn, folder))
        print(f"{options.out}: {', '.join(written)}", file=sys.stderr)


def _make_folder(out: Path) -> None:
    """Before the work, so that it is not done in vain."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: no folder can be made there ({error.strerror})") from error
    if not os.access(out, os.W_OK):
        raise InputError(f"--out {out}: cannot be written to")


def _write(out: Path, pages: dict[str, str], draw: Callable[[Path], Any]) -> list[str]:
    """Every file under its name when all of them are complete."""
    stage = out / stage_name("")
    try:
        stage.mkdir()
        for name, text in pages.items():
            # Of a file name that is not UTF-8 the escape that JSON has for it.
            (stage / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        draw(stage)
        paths = sorted(stage.iterdir())
        for path in paths:
            path.replace(out / path.name)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(stage)
    return [path.name for path in paths]
