"""Run all checks that need a GPU, in one command of ten minutes: the program behind `bench/gpu_check.sh`.

    python -m edgeclip_bench.gpu.check OUT [--work DIR] [--checkpoint DIR] [--bundle DIR] [--fp16 DIR]
    python -m edgeclip_bench.gpu.check OUT --device cpu --tiny        the same on a CPU in a minute: its own test

Random weights at full size are exported for CUDA and narrowed to fp16. Then, on the GPU: self-test and proof, latency
with CUDA graphs and without, parity with fp32 on the CPU, PyTorch eager and compiled, memory under random inputs.
Every stage is a process with a time limit and leaves OUT/STAGE.json as it goes. A stage that fails or is stopped does
not stop the others unless they need its result. What is given (--checkpoint, --bundle, --fp16) is not made.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BUDGET_S = 570.0
# What every stage imports, then what only making a bundle does.
_NEEDED = ("numpy", "tokenizers", "onnxruntime", "torch", "safetensors", "PIL", "psutil", "onnx", "onnx_ir")
_NEEDED_TO_MAKE = ("onnxscript", "tqdm", "huggingface_hub")
_MAKES = {"checkpoint": "checkpoint", "export": "bundle", "narrow": "narrow"}
_VERSIONS = ("onnxruntime", "onnxruntime-gpu", "torch", "numpy", "tokenizers", "onnx", "onnx-ir", "onnxscript")


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; 0 when all succeeded, 1 when one failed, 2 when something is missing from the start."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage:
        return _run_stage(options)
    makes = not all(path and path.exists() for path in (options.bundle, options.fp16))
    if missing := missing_modules(makes=makes):
        print(f"gpu_check: not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    if options.device == "cuda" and (reason := _no_gpu()):
        print(f"gpu_check: {reason}", file=sys.stderr)
        return 2
    from edgeclip_bench.measure.machine_facts import (
        machine,
    )  # needs psutil; `missing_modules` has reported its absence

    _write(options.out / "machine.json", {**machine(), "versions": versions(), **_card(options.device)})
    ended = _run_stages(options)
    report = {name: _read(options.out / f"{name}.json") for name in ended}
    for line in summary(report):
        print(line)
    return 1 if any("error" in result for result in report.values()) else 0


def missing_modules(*, makes: bool) -> list[str]:
    """The modules that the stages import and that are not installed."""
    wanted = _NEEDED + (_NEEDED_TO_MAKE if makes else ())
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def versions() -> dict[str, str]:
    """The installed versions of the packages that matter."""
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def time_left(budget_s: float, spent_s: float, most_s: float) -> float:
    """The seconds that a stage gets: its own limit, or what is left of the budget."""
    return max(0.0, min(most_s, budget_s - spent_s))


def summary(report: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The table for people: how each stage ended, latencies side by side, the results of parity and soak."""
    for name, result in report.items():
        yield f"{name:<12} {result.get('seconds_taken', 0):6.0f} s  {result.get('error', 'done')}"
    cases = [case for name in ("latency", "rivals") for case in report.get(name, {}).get("cases", [])]
    shapes = list(dict.fromkeys((case["tower"], case.get("batch"), case.get("tokens")) for case in cases))
    if cases:
        yield ""
        yield f"{'median ms':<20} {'way':<32} {'p50':>9} {'p99':>9} {'inputs/s':>10}"
    for shape in shapes:
        for case in cases:
            if (case["tower"], case.get("batch"), case.get("tokens")) == shape:
                yield _row(shape, case)
    for tower, ways in report.get("parity", {}).items():
        for way, found in ways.items() if isinstance(ways, dict) else ():
            words = found if isinstance(found, str) else f"worst cosine {found['worst_cosine']:.6f}"
            yield f"parity {tower:<8} {way:<8} {words}"
    grown = report.get("soak", {})
    for kind in ("resident_bytes", "gpu_bytes"):
        if f"{kind}_most" in grown:
            growth = grown[f"{kind}_growth_in_second_half"] / 1e6
            yield f"soak {kind}: {grown[f'{kind}_most'] / 1e6:.0f} MB at most, {growth:+.1f} MB in the second half"


def _row(shape: tuple[Any, ...], case: Mapping[str, Any]) -> str:
    tower, batch, tokens = shape
    label = f"{tower} {batch or ''}{f' x {tokens}' if tokens else ''}"
    if "p50_ms" not in case:
        return f"{label:<20} {case['way']:<32} {str(case.get('error', 'not measured'))[:60]}"
    p99 = "-" if case["p99_ms"] is None else f"{case['p99_ms']:.3f}"
    return f"{label:<20} {case['way']:<32} {case['p50_ms']:9.3f} {p99:>9} {case['inputs_per_s']:10.1f}"


def _run_stages(options: argparse.Namespace) -> list[str]:
    """Run every stage in a process of its own, within its time."""
    from edgeclip_bench.gpu.stages import STAGES

    started, ended = time.monotonic(), []
    paths = _paths(options)
    for name, (_, most_s) in STAGES.items():
        made = paths.get(_MAKES.get(name, ""))
        if made and made.exists():
            continue
        left = time_left(options.budget, time.monotonic() - started, most_s)
        target = options.out / f"{name}.json"
        target.unlink(missing_ok=True)
        print(f"gpu_check: {name} (at most {left:.0f} s)", file=sys.stderr, flush=True)
        began, error = time.monotonic(), _call(_command(options, name), left)
        result = _read(target)
        if error and "error" not in result:
            result["error"] = error
        _write(target, {**result, "seconds_taken": time.monotonic() - began})
        ended.append(name)
        if error and name in _MAKES:
            print(f"gpu_check: without {name} nothing else can be done", file=sys.stderr)
            break
    return ended


def _command(options: argparse.Namespace, stage: str) -> list[str]:
    paths = _paths(options)
    command = [sys.executable, "-m", "edgeclip_bench.gpu.check", str(options.out), "--stage", stage]
    command += ["--checkpoint", str(paths["checkpoint"]), "--bundle", str(paths["bundle"]), "--fp16"]
    command += [str(paths["narrow"]), "--device", options.device, "--case-seconds", str(options.case_seconds)]
    command += ["--soak-seconds", str(options.soak_seconds), *(["--tiny"] if options.tiny else [])]
    return command


def _call(command: Sequence[str], seconds: float) -> str | None:
    """Run a process; return what went wrong in words, None when nothing did."""
    if seconds <= 0:
        return "no time was left"
    try:
        done = subprocess.run(command, timeout=seconds, check=False, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    return None if done.returncode == 0 else f"ended with {done.returncode}"


def _run_stage(options: argparse.Namespace) -> int:
    """Run one stage in this process."""
    from edgeclip_bench.gpu.stages import STAGES, Setup

    if options.device == "cuda":
        import torch

        torch.cuda.init()  # type: ignore[no-untyped-call]  # loads the CUDA libraries of torch's wheels, for onnxruntime to find
    paths = _paths(options)
    setup = Setup(
        **paths,
        device=options.device,
        is_tiny=options.tiny,
        case_s=options.case_seconds,
        soak_s=options.soak_seconds,
    )
    target = options.out / f"{options.stage}.json"
    try:
        _write(target, STAGES[options.stage][0](setup, lambda found: _write(target, found)))
    except Exception as error:
        _write(target, {**_read(target), "error": f"{type(error).__name__}: {error}"})
        raise
    return 0


def _paths(options: argparse.Namespace) -> dict[str, Path]:
    work: Path = options.work or options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    return {
        "checkpoint": options.checkpoint or work / "checkpoint",
        "bundle": options.bundle or work / "bundle",
        "narrow": options.fp16 or work / "fp16",
    }


def _no_gpu() -> str | None:
    """The reason why there is no GPU, None when there is one."""
    import onnxruntime
    import torch

    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        return f"this onnxruntime has only {', '.join(available)}; wanted onnxruntime-gpu"
    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def _card(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {}
    import torch

    card = torch.cuda.get_device_properties(0)
    return {"gpu": card.name, "gpu_memory_bytes": card.total_memory, "cuda": torch.version.cuda}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a file whole or not at all, so that a stopped process leaves what it wrote last."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m edgeclip_bench.gpu.check", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the folder for the JSON")
    parser.add_argument("--work", type=Path, help="where checkpoint and bundles are made (default OUT/work)")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint that is there")
    parser.add_argument("--bundle", type=Path, help="its fp32 bundle for CUDA")
    parser.add_argument("--fp16", type=Path, help="the fp16 bundle of that")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small towers, to test the script itself")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for everything (default %(default)s)")
    parser.add_argument("--case-seconds", type=float, default=2.0, help="of each latency (default %(default)s)")
    parser.add_argument("--soak-seconds", type=float, default=45.0, help="of the soak (default %(default)s)")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
