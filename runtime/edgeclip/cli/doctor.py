"""`edgeclip doctor`: which providers really run here, and for each problem the one command that mends it."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from edgeclip.bundle.files import find_folder, open_manifest
from edgeclip.cli.arguments import add_json
from edgeclip.doctor.diagnosis import Facts, Finding, diagnose
from edgeclip.doctor.environment import read_facts
from edgeclip.doctor.memory_fit import Fit, fit_modalities
from edgeclip.errors import DeviceError
from edgeclip.tables import format_bytes, format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("bundles", metavar="BUNDLE", nargs="*", type=Path, help="compare its need of memory, too")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print the facts and the findings; DeviceError when not even the CPU runs."""
    manifests = [(find_folder(bundle), open_manifest(bundle)) for bundle in options.bundles]
    facts = read_facts()
    fits = [fit for folder, manifest in manifests for fit in fit_modalities(folder, manifest)]
    findings = (*diagnose(facts), *(finding for fit in fits if (finding := fit.finding)))
    if options.json:
        document = {
            **dataclasses.asdict(facts),
            "bundles": [dataclasses.asdict(fit) for fit in fits],
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(document, ensure_ascii=False))
    else:
        print(format_report(facts, findings, fits))
    if not facts.runs("cpu"):
        worst = next(finding for finding in findings if finding.level == "error")
        raise DeviceError(f"nothing runs here: {worst.problem}; `{worst.command}`")


def format_report(facts: Facts, findings: tuple[Finding, ...], fits: Sequence[Fit] = ()) -> str:
    """The facts a line each, then the memory that bundles need, then the findings with their commands."""
    wheels = ", ".join(f"{name} {version}" for name, version in facts.wheels.items()) or "no onnxruntime wheel"
    rows = [
        ("edgeclip", f"{facts.edgeclip}, Python {facts.python}, {facts.system}"),
        ("onnxruntime", f"{facts.onnxruntime or 'cannot be loaded'} ({wheels})"),
        *((one.name, one.error or "runs") for one in facts.providers),
    ]
    if facts.driver:
        rows.append(("NVIDIA driver", f"CUDA {facts.driver.cuda}; {', '.join(facts.driver.gpus) or 'no GPU'}"))
    rows += [(name, version or "not found") for name, version in facts.libraries.items()]
    if facts.openvino_units:
        rows.append(("OpenVINO units", ", ".join(facts.openvino_units)))
    processor = facts.processor
    quota = "" if processor.quota is None else f", quota {processor.quota:g}"
    rows += [
        ("processor", f"{processor.name}: {' '.join(processor.features) or 'no known features'}"),
        ("threads", f"{processor.usable} of {processor.cores} cores{quota}"),
        ("memory", _format_memory(facts)),
        ("Pillow", facts.pillow or "not installed"),
    ]
    if advice := facts.advice:
        rows += [("bundle to run", advice.choice), ("", advice.why), ("", advice.int4)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    if fits:
        rows_of_fits = [
            (fit.bundle, *map(format_bytes, (fit.need_bytes, fit.packed_bytes)), fit.words) for fit in fits
        ]
        lines += ["", format_table(("memory", "needs", "prepacked", "here"), rows_of_fits)]
    lines += [f"\n{finding.level}: {finding.problem}\n    {finding.command}" for finding in findings]
    return "\n".join(lines) if findings else "\n".join([*lines, "\nnothing to mend"])


def _format_memory(facts: Facts) -> str:
    whole = "unknown" if facts.memory_bytes is None else format_bytes(facts.memory_bytes)
    limit = facts.memory_limit_bytes
    left = [f"{format_bytes(found.free_bytes)} of {found.name} free" for found in facts.memory_limits]
    return "; ".join([whole if limit is None else f"{whole}, limited to {format_bytes(limit)}", *left])
