"""The command line: `edgeclip VERB ...`.

Data goes to stdout, words and progress bars to stderr. Exit 0 when done, 1 for an EdgeclipError (one
line, no traceback), 2 for wrong usage, 130 after Ctrl-C. A verb's arguments and its work
stand in one module, edgeclip.cli.VERB, which is loaded for that verb alone; the cases of `edgeclip bench` stand
in edgeclip_bench.cases.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from edgeclip import __version__
from edgeclip.errors import EdgeclipError
from edgeclip.host.import_errors import explain_import
from edgeclip.host.malloc_bounds import bound_memory

if TYPE_CHECKING:
    from edgeclip_bench.cases import Case

VERBS = {
    "export": "a Hub id or a checkpoint folder -> an fp32 bundle",
    "quantize": "an fp32 bundle -> a smaller one, proved against it",
    "export-triton": "a bundle -> a Triton Inference Server model repository",
    "embed": "texts and images -> vectors, as JSON lines or .npy",
    "check": "hashes, and the self-test on this device",
    "prepack": "keep weights packed for this machine's CPU, so that processes share them",
    "inspect": "manifest, sizes, op counts",
    "doctor": "which providers really run here, and what mends those that do not",
    "eval": "retrieval quality on your data, or beside another bundle",
    "serve": "the HTTP service: Jina's and OpenAI's embedding APIs on one bundle",
    "bench": "latency and throughput of bundles; other benchmarks by name, `bench compare` among them",
    "demo": "the whole way on the small model that ships with the package",
}
_INTERRUPTED, _USAGE = 130, 2
# They decode images by the thousand; `serve` sets bounds itself, and the others are torch's or a benchmark's.
_BOUNDED = ("embed", "eval")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status. Without `arguments` it is the process's own: then memory is bounded."""
    is_own_process = arguments is None
    warnings.showwarning = _show_warning
    _prepare_streams()
    try:
        options = parse_arguments(sys.argv[1:] if arguments is None else list(arguments))
        options.is_own_process = is_own_process
        if is_own_process and options.verb in _BOUNDED:
            bound_memory(os.environ)
        status = options.run(options) or 0
        sys.stdout.flush()
        return int(status)
    except EdgeclipError as error:
        _say(error)
        status = 1
    except ImportError as error:  # a wheel for another machine
        if (told := explain_import(error)) is None:
            raise
        _say(told)
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


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options of one verb, with `run`, which does its work, and `usage_error`, which exits with status 2.

    Only the module of the verb that the words begin with is loaded, for its arguments; `edgeclip --help` loads none.
    """
    if words[:1] == ["bench"] and words[1:] and (case := _find_case(words[1])):
        parser = _Parser(prog=f"edgeclip bench {words[1]}", description=case.help, allow_abbrev=False)
        return _complete(parser, case.load()).parse_args(words[2:], argparse.Namespace(verb="bench"))
    parser = _Parser(prog="edgeclip", description="Text and image embeddings at the edge.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"edgeclip {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted = next((word for word in words if not word.startswith("-")), None)
    for name, what in VERBS.items():
        verb = verbs.add_parser(name, help=what, allow_abbrev=False)
        if name == wanted:
            _complete(verb, import_module(f"edgeclip.cli.{name.replace('-', '_')}"))
    return parser.parse_args(words)


def _find_case(name: str) -> "Case | None":
    """The benchmarks' case of that name; None for anything else, as the folder of a bundle."""
    from edgeclip_bench.cases import CASES

    return CASES.get(name)


def _complete(parser: argparse.ArgumentParser, module: Any) -> argparse.ArgumentParser:
    """The parser with the arguments and the work of a verb's or a case's module."""
    module.add_arguments(parser)
    parser.set_defaults(run=module.run, usage_error=parser.error)
    return parser


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
