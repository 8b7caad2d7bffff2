"""`edgeclip quantize`: a bundle to a smaller bundle that is proved against it, and the recipes side by side."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclip.bundle.files import open_manifest
from edgeclip.bundle.staging import check_place
from edgeclip.cli.arguments import add_bundle, add_folder, add_json
from edgeclip.cli.late_warnings import late_warnings
from edgeclip.cli.recipe_table import format_recipes
from edgeclip.engine.advice import advise_here, is_guarded
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.engine.products import probe_products
from edgeclip.host.installation import needs_extra
from edgeclip.manifest import Manifest
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.tables import format_bytes

if TYPE_CHECKING:
    from edgeclip_quant.budget import Budget
    from edgeclip_quant.inputs.made_up import Samples
    from edgeclip_quant.pick.pareto import Comparison
    from edgeclip_quant.recipes import Cpu


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    add_bundle(parser)
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", help="the bundle to write; must not exist")
    parser.add_argument(
        "--to",
        choices=("fp16", "int8", "int4", "auto"),
        help="int8 or int4 of a bundle for the cpu, fp16 for cuda, int8 for tensorrt; auto: the fastest "
        "recipe for the cpu within the budget",
    )
    parser.add_argument(
        "--cpu",
        choices=("vnni", "avx2", "auto"),
        help="the processor that the bundle is for, or OpenVINO with one for tensorrt: vnni, or arm64 (weights of 8 "
        "bits); avx2: x86 without VNNI (weights of 7 bits, which need no guard against overflow); auto: this "
        "machine's (vnni; with --to auto, and with --report alone, auto)",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="your images, and texts in .txt files, or images with captions as `eval` reads them (made-up inputs)",
    )
    add_folder(parser)
    parser.add_argument(
        "--budget",
        metavar="B",
        help="what may be lost: cosine=0.99,token=0.98,recall=0.5,size_mb=900 (token: of multi vectors; recall: "
        "points of recall@5); else nothing is written (int8: cosine 0.99, token 0.98, recall 0.5; fp16: 0.9995, "
        "0.998, 0.5; int4: 0.8, 0.7, 5)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        nargs="?",
        const=Path("quantize-report"),
        help="compare the recipes for the cpu: a table, and recipes.json, .png and .svg in DIR (quantize-report)",
    )
    add_json(parser)


@late_warnings()
def run(options: argparse.Namespace) -> int:
    """Compare, quantise, or both; whatever can be known to be wrong is found before the work.

    A report is written before the bundle, for it shows why a budget allows none. 1 if an image was skipped.
    """
    _check_usage(options)
    import_onnxruntime()  # without it, this says what to install, and not the quant extra
    with needs_extra("quant"):
        from edgeclip_quant import quantize_automatically, quantize_bundle
        from edgeclip_quant.budget import parse_budget
        from edgeclip_quant.pick.comparison import check_comparable
        from edgeclip_quant.quantize import check_cpu, check_way, find_cpu
    source = open_manifest(options.bundle)
    check_cpu(options.bundle, source, options.cpu)
    is_auto = options.to == "auto"
    budget = parse_budget(options.budget, "int8" if is_auto else options.to) if options.to else None
    if options.report or is_auto:
        check_comparable(options.bundle, source)
    if options.to and not is_auto:
        check_way(options.bundle, source, options.to)
    if options.report:
        with needs_extra("bench"):
            from edgeclip_bench.quality.recipe_curves import prepare_folder
        prepare_folder(options.report)
    if options.to:
        check_place(options.out, 2 * source.weight_bytes)
    skipped: list[str] = []
    samples = _read_samples(options, source, skipped) if options.calibrate else None
    measures_here = options.to in (None, "auto")
    cpu = find_cpu(options.cpu or ("auto" if measures_here else "vnni"))
    comparison = _compare(options, samples, budget, cpu) if options.report or is_auto else None
    if not options.to:
        return bool(skipped)
    bundle, out = options.bundle, options.out
    with ProgressBar("quantise", 1, is_shown=is_wanted(None)) as bar:
        if is_auto:
            manifest = quantize_automatically(
                bundle, out, cpu=cpu, samples=samples, budget=budget, progress=bar.show, comparison=comparison
            )
        else:
            manifest = quantize_bundle(
                bundle, out, to=options.to, cpu=cpu, samples=samples, budget=budget, progress=bar.show
            )
    print(_summary(options.out, source, manifest), file=sys.stderr)
    if not is_auto and source.target == "cpu" and is_guarded(manifest, probe_products()):
        print(f"this machine should run {advise_here()}", file=sys.stderr)
    return bool(skipped)


def _read_samples(options: argparse.Namespace, source: Manifest, skipped: list[str]) -> "Samples":
    """The samples of --calibrate; with --skip-broken what was skipped is said, and counted in `skipped`."""
    with needs_extra("bench,quant"):
        from edgeclip_bench.quality.calibration_folder import read_samples

    def skip(reason: str) -> None:
        print(f"edgeclip: skipped: {reason}", file=sys.stderr)
        skipped.append(reason)

    on_skip = skip if options.skip_broken else None
    return read_samples(options.calibrate, options.bundle, source, is_recursive=options.recursive, on_skip=on_skip)


def _check_usage(options: argparse.Namespace) -> None:
    """Status 2 for what cannot be meant, as argparse has it for what it knows itself."""
    if options.out and not options.to:
        options.usage_error(f"OUT {options.out} without --to: what is to be written there?")
    if options.to and not options.out:
        options.usage_error(f"--to {options.to} without OUT: where is the bundle to be written?")
    if not options.to and not options.report:
        options.usage_error("nothing to do: give OUT and --to, or --report, or all of them")
    if options.budget is not None and not options.to:
        options.usage_error("--budget is for a bundle that is written: give OUT and --to")
    if (options.recursive or options.skip_broken) and not options.calibrate:
        options.usage_error("--recursive and --skip-broken are for a folder: give --calibrate")
    if options.json and not options.report:
        options.usage_error("--json is for --report")
    if options.to and options.report and options.report.resolve().is_relative_to(options.out.resolve()):
        options.usage_error(f"--report {options.report} would lie in OUT: choose another folder")


def _compare(
    options: argparse.Namespace, samples: "Samples | None", budget: "Budget | None", cpu: "Cpu"
) -> "Comparison":
    """Recipes side by side: a table or JSON on stdout, files where a report is asked for, words on stderr."""
    from edgeclip_quant import calibration_and_proof, recipes
    from edgeclip_quant.pick import pareto as choice
    from edgeclip_quant.pick.comparison import compare_recipes

    is_made_up, is_auto = samples is None, options.to == "auto"
    with ProgressBar("compare", 1, is_shown=is_wanted(None)) as bar:
        halves = calibration_and_proof(options.bundle, samples)
        comparison = compare_recipes(
            options.bundle,
            *halves,
            bar.show,
            is_made_up=is_made_up,
            cosine=budget.cosine if is_auto and budget else None,
            # What is never picked only costs time where nobody reads of it.
            recipes=[recipes.for_cpu(one, cpu) for one in recipes.COMPARED]
            if options.report
            else recipes.usable_recipes(is_made_up=is_made_up, cpu=cpu),
        )
    picked = choice.pick(comparison, budget) if is_auto and budget else None
    document = None
    if options.report:
        with needs_extra("bench"):
            from edgeclip_bench.quality import recipe_curves as curves
        document = curves.report_document(comparison, budget, picked)
        paths = curves.save_report(options.report, comparison, budget, picked, document)
        print(f"{options.report}: {', '.join(path.name for path in paths)}", file=sys.stderr)
    print(json.dumps(document, indent=2, allow_nan=False) if options.json else format_recipes(comparison, picked))
    if picked:
        slower = [f"{one.modality} {one.latency:.2f}" for one in picked.choice.candidates if one.latency > 1]
        here = f"; of fp32's time here: {', '.join(slower)}, so the fp32 bundle is faster" if slower else ""
        print(
            f"picked {picked.choice}: of {picked.within} choices within {budget}, {picked.choices} compared, "
            f"the fastest, or within {choice.ALIKE_TIME:.0%} of its time and losing least{here}; "
            f"this machine should run {advise_here()}",
            file=sys.stderr,
        )
    return comparison


def _summary(out: Path, source: Manifest, manifest: Manifest) -> str:
    """One line; of the user's own data where there are, for they come last."""
    of_source = [one for one in manifest.measured if one.against == "fp32 bundle"]
    proved = [one for one in of_source if one.data == of_source[-1].data]
    cosines = ", ".join(f"{one.modality} {one.worst_cosine:.4f}" for one in proved)
    changes = [one.retrieval for one in proved if one.retrieval]
    recall = "".join(
        f"; {one.metric} {one.points:+.2f} points [{one.low:.2f}, {one.high:.2f}] of {one.queries} queries"
        for one in changes
    )
    return (
        f"{out}: {format_bytes(manifest.weight_bytes)}, was {format_bytes(source.weight_bytes)}; "
        f"worst cosine on {proved[0].data}: {cosines}{recall}"
    )
