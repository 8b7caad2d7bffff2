"""`edgeclip demo`: the whole way on the small trained models that ship with the package."""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclip.errors import BuildError, InputError
from edgeclip.host.installation import needs_extra

if TYPE_CHECKING:
    from edgeclip_bench.demo.pages.run import PagesDemo
    from edgeclip_bench.demo.run import Demo
    from edgeclip_bench.demo.stages import Figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument(
        "--pages",
        action="store_true",
        help="the small document model: pages by questions, multi vectors, a heat map of where a page matches",
    )
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="the picture of what was found (edgeclip-demo.png; edgeclip-pages.png with --pages)",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave bundles and pictures in DIR, which must not exist"
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="how many pictures, in whole families of 20 (500), or pages, in whole families of 12 (240)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads (all that may be used; 1 where graphs are tiny)"
    )


def run(options: argparse.Namespace) -> None:
    """Go the whole way in a temporary folder, or in the one to keep, and leave the picture of what was found."""
    sheet = options.sheet or Path("edgeclip-pages.png" if options.pages else "edgeclip-demo.png")
    _check_sheet(sheet)
    with needs_extra("bench"):
        from edgeclip_bench.demo import run as scenes
        from edgeclip_bench.demo.pages import run as pages
        from edgeclip_bench.demo.pages.report import render_pages_demo
        from edgeclip_bench.demo.report import render_demo
        from edgeclip_bench.demo.stages import BUNDLE, INT8
    count = {} if options.images is None else {"pages" if options.pages else "images": options.images}
    found: Demo | PagesDemo
    with _folder(options.keep) as folder:
        if options.pages:
            found = pages.run_pages_demo(folder, threads=options.threads, **count)
            shown, data = render_pages_demo(found), pages.TEST
        else:
            found = scenes.run_demo(folder, threads=options.threads, **count)
            shown, data = render_demo(found), scenes.PICTURES
        _copy(found.sheet, sheet)
    print(shown)
    sys.stdout.flush()  # what follows is on stderr, and comes after it
    print(f"\n{sheet}: what the questions found, as pictures", file=sys.stderr)
    if options.keep:
        against = f"{options.keep / INT8} {options.keep / data} --against {options.keep / BUNDLE}"
        print(f"{options.keep}: bundles and {data}; try `edgeclip eval {against}`", file=sys.stderr)
    check_int8(found.figures)


def check_int8(found: "Figures") -> None:
    """BuildError where quantising refused: what could be shown was shown, but not the whole way was gone."""
    if found.refusal is not None:
        raise BuildError(
            f"there is no int8 bundle, so the tables show fp32 alone: {found.refusal}"
        ) from found.refusal


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="edgeclip-demo-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--keep {keep}: cannot be made ({error.strerror})") from error
    yield keep


def _check_sheet(sheet: Path) -> None:
    if sheet.is_dir():
        raise InputError(f"--sheet {sheet}: is a folder")
    if not sheet.parent.is_dir():
        raise InputError(f"--sheet {sheet}: there is no folder {sheet.parent}")


def _copy(source: Path, sheet: Path) -> None:
    try:
        shutil.copyfile(source, sheet)
    except OSError as error:
        raise InputError(f"--sheet {sheet}: cannot be written ({error.strerror})") from error
