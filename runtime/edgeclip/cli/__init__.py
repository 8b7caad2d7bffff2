"""The command line: `edgeclip VERB ...`.

Data goes to stdout, words and progress bars to stderr. Exit 0 when done, 1 for an EdgeclipError (one
line, no traceback), 2 for wrong usage, 130 after Ctrl-C. A verb's module is loaded when the verb runs,
so none pays for another's imports.
"""

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from edgeclip import __version__
from edgeclip.engine.devices import DEVICES
from edgeclip.errors import EdgeclipError
from edgeclip.host.malloc_bounds import bound_memory
from edgeclip.manifest import TARGETS, TOWERS
from edgeclip.serve.settings import add_settings

_INTERRUPTED, _USAGE = 130, 2
# They decode images by the thousand; `serve` sets bounds itself, and the others are torch's or a benchmark's.
_BOUNDED = ("embed", "eval")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status. Without `arguments` it is the process's own: then memory is bounded."""
    options = build_parser().parse_args(arguments)
    if arguments is None and options.verb in _BOUNDED:
        bound_memory(os.environ)
    warnings.showwarning = _show_warning
    _prepare_streams()
    try:
        return _run_verb(options)
    finally:
        # What is left is the interpreter's end, which waits for threads: Ctrl-C ends it, unless it is ignored anyway.
        if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))


def _run_verb(options: argparse.Namespace) -> int:
    try:
        verb = import_module(f"edgeclip.cli.{options.verb.replace('-', '_')}")
        status = verb.run(options) or 0
        sys.stdout.flush()
        return int(status)
    except EdgeclipError as error:
        _say(error)
        status = 1
    except Warning as warning:  # -W error, or PYTHONWARNINGS
        _say(f"{warning} (a {type(warning).__name__}, and warnings are errors here)")
        status = 1
    except BrokenPipeError:  # whoever read stdout has seen enough
        status = 0
    except OSError as error:  # stdout's mostly, for what is wrong with a file is an EdgeclipError
        _say(f"input or output failed ({error})")
        status = 1
    except MemoryError as error:
        _say(f"{error or 'out of memory'}; give smaller inputs, fewer at once, or more memory")
        status = 1
    except KeyboardInterrupt:
        _say("interrupted")
        status = _INTERRUPTED
    _leave_stdout()
    return status


class _Parser(argparse.ArgumentParser):
    """What is wrong is one line, where argparse would put the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE, f"{self.prog}: {message}; `{self.prog} --help` shows the usage\n")


def build_parser() -> argparse.ArgumentParser:
    """Every verb and option."""
    parser = _Parser(prog="edgeclip", description="Text and image embeddings at the edge.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"edgeclip {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_verb = partial(verbs.add_parser, allow_abbrev=False)

    export = add_verb("export", help="a Hub id or a checkpoint folder -> an fp32 bundle")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a Hub id as jinaai/jina-clip-v2")
    export.add_argument("out", metavar="OUT", type=Path, help="the bundle to write; must not exist")
    export.add_argument("--target", choices=TARGETS, default="cpu", help="what the graphs are shaped for (cpu)")
    export.add_argument("--revision", help="a commit, branch or tag of the Hub id")

    quantize = add_verb("quantize", help="an fp32 bundle -> a smaller one, proved against it")
    _add_bundle(quantize)
    quantize.add_argument("out", metavar="OUT", type=Path, nargs="?", help="the bundle to write; must not exist")
    quantize.add_argument(
        "--to",
        choices=("fp16", "int8", "int4", "auto"),
        help="int8 or int4 of a bundle for the cpu, fp16 for cuda, int8 for tensorrt; auto: the fastest "
        "recipe for the cpu within the budget",
    )
    quantize.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="your images, and texts in .txt files, or images with captions as `eval` reads them (made-up inputs)",
    )
    _add_folder(quantize)
    quantize.add_argument(
        "--budget",
        metavar="B",
        help="what may be lost: cosine=0.99,recall=0.5,size_mb=900 (of recall@5, points); else nothing is written "
        "(int8: cosine 0.99, recall 0.5; fp16: 0.9995, 0.5; int4: 0.8, 5)",
    )
    quantize.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        nargs="?",
        const=Path("quantize-report"),
        help="compare the recipes for the cpu: a table, and recipes.json, .png and .svg in DIR (quantize-report)",
    )
    _add_json(quantize)

    triton = add_verb("export-triton", help="a bundle -> a Triton Inference Server model repository")
    _add_bundle(triton)
    triton.add_argument("out", metavar="OUT", type=Path, help="the repository to write; must not exist")
    triton.add_argument("--threads", type=int, metavar="N", help="threads of each tower on the CPU (one per core)")

    embed = add_verb("embed", help="texts and images -> vectors, as JSON lines or .npy")
    _add_bundle(embed)
    embed.add_argument("--text", action="append", default=[], metavar="T", help="a text; may be repeated")
    embed.add_argument("--texts", type=Path, metavar="FILE", help="a UTF-8 file, one text a line; - is stdin")
    embed.add_argument("--image", action="append", default=[], metavar="F", help="an image; may be repeated")
    embed.add_argument("--images", type=Path, metavar="DIR", help="every image in a folder, sorted by name")
    _add_folder(embed)
    embed.add_argument("--task", metavar="T", help="prepend the instruction of this task to the texts")
    embed.add_argument("--truncate-dim", type=int, metavar="N", help="keep the first N dimensions")
    embed.add_argument("--max-length", type=int, metavar="N", help="cut texts at N tokens")
    embed.add_argument("--batch-size", type=int, metavar="N", help="at most N inputs at once")
    embed.add_argument("--out", type=Path, metavar="FILE", help=".npy or .jsonl; default: JSON lines on stdout")
    embed.add_argument("--resume", action="store_true", help="go on where an interrupted run of this command stopped")
    _add_device(embed)

    check = add_verb("check", help="hashes, and the self-test on this device")
    _add_bundle(check)
    _add_device(check)
    _add_json(check)

    prepack = add_verb("prepack", help="keep weights packed for this machine's CPU, so that processes share them")
    _add_bundle(prepack)
    prepack.add_argument("--remove", action="store_true", help="remove what was kept of this bundle")
    _add_json(prepack)

    inspect = add_verb("inspect", help="manifest, sizes, op counts")
    _add_bundle(inspect)
    _add_json(inspect)

    doctor = add_verb("doctor", help="which providers really run here, and what mends those that do not")
    _add_json(doctor)

    evaluate = add_verb("eval", help="retrieval quality on your data, or beside another bundle")
    _add_bundle(evaluate)
    evaluate.add_argument("data", metavar="DATA", type=Path, nargs="+", help="a file or folder in a known layout")
    evaluate.add_argument("--images", type=Path, metavar="DIR", help="where the images lie, if not with the captions")
    evaluate.add_argument("--split", metavar="S", help="the split to take (test, else what is held out)")
    evaluate.add_argument(
        "--language", action="append", dest="languages", metavar="L", help="only this one; may be repeated"
    )
    evaluate.add_argument(
        "--name",
        metavar="N",
        help="the data set's name; published figures are known of coco and flickr30k (Karpathy's test splits), "
        "xm3600, xtd10",
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N images, queries or pairs")
    evaluate.add_argument(
        "--truncate-dim",
        type=int,
        action="append",
        dest="truncate_dims",
        metavar="N",
        help="evaluate at N dimensions besides all; may be repeated (those the model was trained for)",
    )
    evaluate.add_argument("--task", metavar="T", help="prepend this task's instruction to queries and captions")
    evaluate.add_argument("--against", type=Path, metavar="OTHER", help="another bundle, to be held against")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="write report.json, report.md and curve.png, .svg")
    cache = evaluate.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep embeddings here, up to 5 GB; may be deleted (~/.cache/edgeclip/embeddings)",
    )
    cache.add_argument("--no-cache", action="store_true", help="keep no embeddings")
    _add_device(evaluate)
    _add_json(evaluate)

    serve = add_verb("serve", help="the HTTP service: Jina's and OpenAI's embedding APIs on one bundle")
    add_settings(serve)

    bench = add_verb("bench", help="latency and throughput; `bench compare` of two runs")
    _add_bench(bench)

    demo = add_verb("demo", help="the whole way on the small model that ships with the package")
    demo.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        default=Path("edgeclip-demo.png"),
        help="the contact sheet of what was found (edgeclip-demo.png)",
    )
    demo.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave bundles and pictures in DIR, which must not exist"
    )
    demo.add_argument(
        "--images", type=int, metavar="N", default=500, help="how many pictures, in whole families of 20 (500)"
    )
    demo.add_argument("--threads", type=int, metavar="N", help="threads (all that may be used)")
    for verb in verbs.choices.values():  # status 2, for what argparse cannot know to be wrong
        verb.set_defaults(usage_error=verb.error)
    return parser


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", metavar="BUNDLE", nargs="+", help="folders of bundles; or `compare BEFORE.json AFTER.json`"
    )
    parser.add_argument("--tower", choices=(*TOWERS, "both"), default="both", help="what is measured (both)")
    parser.add_argument(
        "--scenario",
        metavar="S",
        default="single-stream,offline",
        help="MLPerf's single-stream, multi-stream, server, offline (single-stream,offline)",
    )
    parser.add_argument("--batch", metavar="N", default="1", help="samples a query, as 1,8 (1)")
    parser.add_argument("--tokens", metavar="N", default="16,64,512", help="lengths of the texts (16,64,512)")
    parser.add_argument("--image-px", metavar="N", default="1080", help="sides of the images on disk (1080)")
    parser.add_argument("--threads", metavar="N", help="numbers of threads, as 1,2 (all that may be used)")
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
    parser.add_argument("--fail-over", metavar="P", default="5%", help="of compare: exit 1 over this and noise (5%%)")
    parser.add_argument("--across-machines", action="store_true", help="of compare: though the machines differ")


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the folder of a bundle")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recursive", action="store_true", help="the images in the folder's subfolders too")
    parser.add_argument(
        "--skip-broken", action="store_true", help="go on after an image that cannot be read; exit 1 at the end"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help=f"{DEVICES} (auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (all that may be used)")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _say(message)


def _say(message: object) -> None:
    """One line on stderr, even where a path has several."""
    print(f"edgeclip: {' '.join(str(message).splitlines())}", file=sys.stderr)


def _prepare_streams() -> None:
    """stdout in UTF-8 whatever the locale; of a file name that is not, the escape that JSON has for it."""
    if sys.stdout is None:  # closed by the caller, who wants the exit status alone
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if sys.stderr is None:  # print() would take stdout instead, and words would stand among the data
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def _leave_stdout() -> None:
    """Write what was printed before an error; what cannot be would fail once more when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
