"""The smallest memory limit under which a bundle answers: for each modality alone, for both, and for the service.

A process in a control group of its own opens the bundle and answers a first text or image; the service has answered
when it is ready. The limit begins at what `edgeclip doctor BUNDLE` says is needed and is lowered in steps (raised,
where that was too little) until no answer comes in time. With --read-mb-s the disk is limited instead, and the time
of the same answers is measured. The bundle's pages are dropped from memory before each process.

Needs Linux and the right to make control groups, which root has.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgeclip.doctor.memory_fit import fit_modalities
from edgeclip.families.tasks import needed_task
from edgeclip.manifest import Manifest
from edgeclip.tables import format_table
from edgeclip_bench.load.service_soak import free_port
from edgeclip_bench.measure.control_groups import control_group, enter, limit_memory, limit_reading
from edgeclip_bench.measure.documents import add_out, make_document, save
from edgeclip_bench.measure.pictures import encode_file, made_up_picture

PHOTO_PX = (1024, 1024)
TEXT = "a red bicycle on the road by the sea"
SERVED = "served"
Outcome = Literal["answers", "refused", "killed", "too slow"]
_REFUSED = 3
_STEP = 0.95
_LOOK_EVERY_S = 0.1
# Steps up and down at most: .95 ** 14 is a half.
_MOST_STEPS = 14

_PROGRAM = f"""if True:
    import json, sys
    from edgeclip import Encoder
    from edgeclip.errors import OutOfMemoryError
    folder, *inputs = sys.argv[1:]
    try:
        with Encoder.open(folder, device="cpu") as encoder:
            for modality, task, what in zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True):
                encode = encoder.encode_text if modality == "text" else encoder.encode_image
                assert encode(what, task=task or None).any()
    except OutOfMemoryError as error:
        print(error, file=sys.stderr)
        sys.exit({_REFUSED})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """What became of one process: how it ended, the seconds until it answered, and the limit that it had."""

    limit_bytes: int | None
    outcome: Outcome
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The need as predicted, the smallest limit that answers, and all tries."""

    what: str
    predicted_bytes: int
    smallest_bytes: int | None
    tries: tuple[Try, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--within-s", type=float, default=60.0, help="seconds within which an answer must come (60)")
    parser.add_argument("--read-mb-s", type=float, metavar="N", help="limit the disk instead, to N MB a second")
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, write the JSON."""
    bundle = options.bundle.resolve()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        photo = Path(scratch) / "photo.jpg"
        photo.write_bytes(encode_file(made_up_picture(PHOTO_PX, np.random.default_rng(0))))
        for fit in fit_modalities(bundle, Manifest.read(bundle)):
            what = fit.bundle.rpartition(": ")[2]
            process = Asked(bundle, what, photo, options.within_s)
            if options.read_mb_s:
                with control_group("blkio") as group:
                    limit_reading(group, bundle, int(options.read_mb_s * 1e6))
                    tries, smallest = [process.answer(group, None)], None
            else:
                tries, smallest = lower(process, fit.need_bytes)
            found.append(
                Found(what=what, predicted_bytes=fit.need_bytes, smallest_bytes=smallest, tries=tuple(tries))
            )
    figures = {
        "bundle": bundle.name,
        "precisions": {name: graph.precision for name, graph in Manifest.read(bundle).graphs.items()},
        "within_s": options.within_s,
        "read_mb_s": options.read_mb_s,
        "found": [asdict(one) for one in found],
    }
    save(make_document(__name__, figures), options.out)
    print(format_table(("asked", "predicted MB", "smallest MB", "last tries"), [_row(one) for one in found]))
    return 0


def _row(found: Found) -> tuple[str, ...]:
    tries = ", ".join(
        f"{one.outcome}{f' at {one.limit_bytes / 1e6:.0f}' if one.limit_bytes else ''} ({one.seconds:.1f} s)"
        for one in found.tries[-2:]
    )
    smallest = f"{found.smallest_bytes / 1e6:.0f}" if found.smallest_bytes else "-"
    return found.what, f"{found.predicted_bytes / 1e6:.0f}", smallest, tries


@dataclass(frozen=True, slots=True)
class Asked:
    """A process that is asked for `what`: "texts", "images", "both", or to be served."""

    bundle: Path
    what: str
    photo: Path
    within_s: float

    def answer(self, group: Path, limit_bytes: int | None) -> Try:
        """Start it in a control group, and see what becomes of it."""
        for path in self.bundle.iterdir():
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        port = free_port()
        command = enter(group, sys.executable, *self._arguments(port))
        started = time.monotonic()
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            outcome = self._wait(process, port, started + self.within_s)
            seconds = time.monotonic() - started
            process.kill()
        return Try(limit_bytes=limit_bytes, outcome=outcome, seconds=seconds)

    def _arguments(self, port: int) -> Sequence[str]:
        if self.what == SERVED:
            return "-m", "edgeclip", "serve", str(self.bundle), "--port", str(port)
        manifest = Manifest.read(self.bundle)
        inputs = {"text": TEXT, "image": str(self.photo)}
        asked = [one for one in manifest.modalities if self.what in (f"{one}s", "both")]
        given = [(one, needed_task(manifest, one) or "", inputs[one]) for one in asked]
        return "-c", _PROGRAM, str(self.bundle), *(part for parts in given for part in parts)

    def _wait(self, process: "subprocess.Popen[bytes]", port: int, until: float) -> Outcome:
        while time.monotonic() < until:
            if self.what == SERVED and _is_ready(port):
                return "answers"
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(_LOOK_EVERY_S)
                if self.what != SERVED and status == 0:
                    return "answers"
                return "killed" if status < 0 else "refused"
        return "too slow"


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def lower(process: Asked, need_bytes: int) -> tuple[list[Try], int | None]:
    """All tries, and the smallest limit under which the process answers, in steps from its need."""
    tries, limit_bytes = [_try_with(process, need_bytes)], need_bytes
    answered = tries[0].outcome == "answers"
    smallest = need_bytes if answered else None
    while len(tries) < _MOST_STEPS:
        limit_bytes = round(limit_bytes * (_STEP if answered else 1 / _STEP))
        tries.append(_try_with(process, limit_bytes))
        answers = tries[-1].outcome == "answers"
        smallest = limit_bytes if answers else smallest
        if answers != answered:
            break
    return tries, smallest


def _try_with(process: Asked, limit_bytes: int) -> Try:
    with control_group("memory") as group:
        limit_memory(group, limit_bytes)
        return process.answer(group, limit_bytes)
