"""`edgeclip doctor`: which providers really run here, and for each problem the one command that mends it."""

import argparse
import dataclasses
import json

from edgeclip.cli.arguments import add_json
from edgeclip.doctor.diagnosis import Facts, Finding, diagnose
from edgeclip.doctor.environment import read_facts
from edgeclip.errors import DeviceError
from edgeclip.tables import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print the facts and the findings; DeviceError when not even the CPU runs."""
    facts = read_facts()
    findings = diagnose(facts)
    if options.json:
        document = {**dataclasses.asdict(facts), "findings": [dataclasses.asdict(finding) for finding in findings]}
        print(json.dumps(document, ensure_ascii=False))
    else:
        print(format_report(facts, findings))
    if not facts.runs("cpu"):
        worst = next(finding for finding in findings if finding.level == "error")
        raise DeviceError(f"nothing runs here: {worst.problem}; `{worst.command}`")


def format_report(facts: Facts, findings: tuple[Finding, ...]) -> str:
    """The facts a line each, then the findings with their commands."""
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
    lines += [f"\n{finding.level}: {finding.problem}\n    {finding.command}" for finding in findings]
    return "\n".join(lines) if findings else "\n".join([*lines, "\nnothing to mend"])


def _format_memory(facts: Facts) -> str:
    whole = "unknown" if facts.memory_bytes is None else format_bytes(facts.memory_bytes)
    limit = facts.memory_limit_bytes
    return whole if limit is None else f"{whole}, limited to {format_bytes(limit)}"
