"""The cost of writing a bundle: seconds, CPU seconds and memory of one `edgeclip export` or `edgeclip quantize`.

The verb runs in a process of its own, with the arguments that follow it, and is observed from outside, so that its
memory is neither this process's nor an earlier step's. Resident memory includes the pages of mapped files, as a
checkpoint's, which the system may drop; anonymous memory does not.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from edgeclip.errors import BuildError
from edgeclip.manifest import Manifest, Measurement
from edgeclip_bench.measure.documents import add_out, make_document, save
from edgeclip_bench.measure.resident_memory import anonymous_bytes, peak_bytes

BENCHMARK = "edgeclip_bench.latency.build_cost"
_LOOK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildCost:
    """What one export or quantisation took, with all its threads, and what it wrote.

    The peaks are looked for every 20 ms: the resident peak is the system's own count, the anonymous one may miss what
    is shorter.
    """

    command: str
    seconds: float
    cpu_seconds: float
    peak_resident_bytes: int
    peak_anonymous_bytes: int
    written_bytes: int
    measured: tuple[Measurement, ...]

    def __str__(self) -> str:
        """The cost in one line."""
        resident, anonymous = self.peak_resident_bytes / 1e9, self.peak_anonymous_bytes / 1e9
        peaks = f"at most {resident:.2f} GB resident, {anonymous:.2f} GB anonymous"
        written = f"{self.written_bytes / 1e6:.0f} MB written"
        return f"{self.command}: {self.seconds:.1f} s, {self.cpu_seconds:.1f} CPU s, {peaks}, {written}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    add_out(parser)
    parser.add_argument("verb", choices=("export", "quantize"), help="what is measured")
    parser.add_argument("source", help="the checkpoint or the bundle that it reads")
    parser.add_argument("written", type=Path, metavar="OUT", help="the bundle that it writes; must not exist")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="more options of the verb")


def run(options: argparse.Namespace) -> int:
    """Measure one export or quantisation, print its cost, write the JSON."""
    cost = measure_build(options.verb, options.source, options.written, *options.options)
    save(make_document(BENCHMARK, describe(options.source, cost)), options.out)
    print(cost)
    return 0


def describe(source: str | Path, cost: BuildCost) -> dict[str, Any]:
    """The figures of one cost, for a document: the name of what was read, and the cost's fields."""
    return {"source": Path(source).name, **asdict(cost)}


def measure_build(verb: str, source: str | Path, out: Path, *options: str) -> BuildCost:
    """Run `edgeclip VERB SOURCE OUT OPTIONS...` in a new process; BuildError when it fails, after its own message."""
    command = [sys.executable, "-m", "edgeclip", verb, str(source), str(out), *options]
    started = time.perf_counter()
    resident = anonymous = 0
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            with contextlib.suppress(psutil.Error, OSError, StopIteration):  # it ends while its memory is read
                resident = max(resident, peak_bytes(process.pid))
                anonymous = max(anonymous, anonymous_bytes(process.pid))
            time.sleep(_LOOK_EVERY_S)
        seconds = time.perf_counter() - started
        _, status, used = ended
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BuildError(f"edgeclip {verb} ended with status {process.returncode}, so nothing was measured")
    manifest = Manifest.read(out)
    return BuildCost(
        command=" ".join(("edgeclip", verb, *options)),
        seconds=seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_resident_bytes=resident,
        peak_anonymous_bytes=anonymous,
        written_bytes=manifest.weight_bytes,
        measured=manifest.measured,
    )
