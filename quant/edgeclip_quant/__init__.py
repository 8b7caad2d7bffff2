"""Turn an fp32 bundle into a smaller one, with a proof of what that cost.

`quantize_bundle` does everything; `quantize` is where its steps can be followed. The modules, by what they make:

- integers, layer by layer: `passes.narrowing`, `passes.rotation`, `inputs.layer_inputs`;
- integers for the CPU: `passes.integer_layers`, `passes.smoothing`, `passes.weight_blocks`, `passes.token_table`,
  `kernels`, `pick.kernel_plan`;
- fp16 for CUDA: `passes.float16`, `passes.operator_types`, `inputs.value_ranges`, and `emulation`, which runs it on a
  CPU;
- int8 for TensorRT: `passes.qdq`, `passes.tensorrt_parser`;
- the proof of any of them: `inputs.made_up`, `inputs.feeder`, `graph_runner`, `proof.measurement`, `proof.timing`,
  `proof.retrieval`, `budget`;
- integers without data, while a checkpoint is exported: `data_free`;
- the recipes for the CPU, their comparison, and the choice of one for each graph: `recipes`, `pick.comparison`,
  `pick.pareto`.

Each graph is lowered from its portable form by the passes of `edgeclip_graph`, and then rewritten.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclip.bundle.staging import check_place
from edgeclip.errors import BuildError
from edgeclip.host.installation import missing_package
from edgeclip.manifest import Manifest, Precision

if TYPE_CHECKING:
    from edgeclip_graph.narrowing import Narrow
    from edgeclip_quant.budget import Budget
    from edgeclip_quant.inputs.made_up import Samples
    from edgeclip_quant.pick.pareto import Comparison
    from edgeclip_quant.recipes import CpuChoice

_TEXTS, _IMAGES = 32, 8
# Where inputs only say which kernel is better, and move no outliers into weights.
_IMAGES_OF_BLOCKS = 4


def quantize_bundle(
    bundle: str | Path,
    out: str | Path,
    *,
    to: Precision = "int8",
    cpu: "CpuChoice" = "vnni",
    samples: "Samples | None" = None,
    budget: "Budget | None" = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Write an fp32 bundle as `to` to `out`, and leave the source as it is.

    `to` is int8 or int4 for a source with the target cpu, fp16 for cuda, int8 for tensorrt. `cpu` is the kind of
    processor that a bundle for the CPU is for: "vnni" (x86 with VNNI, and arm64), "avx2" (x86 without VNNI, where
    weights of 7 bits need no guard against overflow), or "auto" (this machine's). Both kinds of bundles are right on
    every processor. Every other one of `samples` calibrates, the rest proves. Without samples, made-up ones do both.
    `budget` None is the precision's own (`edgeclip_quant.budget`).

    Raises BuildError, with nothing left at `out`, when the bundle lost more than its budget, when the source is not
    fp32 or its target has no such precision, or when `out` exists or cannot be written; MissingExtraError when the
    extra `quant`, or an onnxruntime, is missing.
    """
    with _named_extras():
        from edgeclip_quant.budget import DEFAULT_BUDGETS, with_tokens
        from edgeclip_quant.proof.allowance import is_followed
        from edgeclip_quant.quantize import Order, check_cpu, find_cpu, quantize
        from edgeclip_quant.recipes import DEFAULT_RECIPES, for_cpu, precision_of

    manifest = Manifest.read(bundle)
    check_cpu(Path(bundle), manifest, None if cpu == "vnni" else cpu)
    kind = find_cpu(cpu)
    images = _IMAGES_OF_BLOCKS if to == "int4" else _IMAGES
    calibration, proof = calibration_and_proof(Path(bundle), samples, images)
    precisions = {name: precision_of(to, is_followed=is_followed(manifest, name)) for name in manifest.graphs}
    order = Order(
        to=precisions,
        recipes={
            name: for_cpu(DEFAULT_RECIPES[one], kind) for name, one in precisions.items() if one in DEFAULT_RECIPES
        },
        calibration=calibration,
        is_made_up=samples is None,
        proof=proof,
        budget=with_tokens(budget or DEFAULT_BUDGETS[to], to, manifest),
    )
    return quantize(Path(bundle), Path(out), order, progress or (lambda what, done, total: None))


def quantize_automatically(
    bundle: str | Path,
    out: str | Path,
    *,
    cpu: "CpuChoice" = "auto",
    samples: "Samples | None" = None,
    budget: "Budget | None" = None,
    progress: Callable[[str, int, int], None] | None = None,
    comparison: "Comparison | None" = None,
) -> Manifest:
    """Try the recipes for the CPU on each graph, take the fastest choice within the budget, and write its bundle.

    `comparison` is the result of `edgeclip_quant.pick.comparison.compare_recipes` for the same samples and the
    budget's cosine; None: it is made now, of the recipes that a bundle for `cpu` may be made by. Options and errors
    as in `quantize_bundle`; the budget's default is int8's. BuildError also when no choice is within it; it names the
    nearest.
    """
    with _named_extras():
        from edgeclip_quant.budget import DEFAULT_BUDGETS, with_tokens
        from edgeclip_quant.pick.comparison import compare_recipes
        from edgeclip_quant.pick.pareto import nearest, pick
        from edgeclip_quant.quantize import Order, find_cpu, quantize
        from edgeclip_quant.recipes import usable_recipes

    report = progress or (lambda what, done, total: None)
    manifest, is_made_up = Manifest.read(bundle), samples is None
    budget = with_tokens(budget or DEFAULT_BUDGETS["int8"], "int8", manifest)
    check_place(Path(out), 2 * manifest.weight_bytes)
    calibration, proof = calibration_and_proof(Path(bundle), samples)
    comparison = comparison or compare_recipes(
        Path(bundle),
        calibration,
        proof,
        report,
        is_made_up=is_made_up,
        cosine=budget.cosine,
        recipes=usable_recipes(is_made_up=is_made_up, cpu=find_cpu(cpu)),
    )
    picked = pick(comparison, budget)
    if picked is None:
        raise BuildError(
            f"no choice of recipes is within the budget: {nearest(comparison, budget)}; allow more (--budget)"
        )
    recipes = {one.graph: one.recipe for one in picked.choice.candidates}
    order = Order(
        to={name: recipe.precision for name, recipe in recipes.items()},
        recipes=recipes,
        calibration=calibration,
        is_made_up=is_made_up,
        proof=proof,
        budget=budget,
        kept={one.graph: one.kept for one in picked.choice.candidates},
    )
    return quantize(Path(bundle), Path(out), order, report)


def narrow_without_data(to: Precision) -> "Narrow":
    """What `edgeclip_export.export_checkpoint` narrows graphs for the CPU by, to int8 or int4, as it writes them.

    BuildError for another precision, MissingExtraError when the extra `quant` is missing.
    """
    with _named_extras():
        from edgeclip_quant.data_free import NARROWINGS
    if to not in NARROWINGS:
        raise BuildError(f"no checkpoint is exported as {to} at once; wanted {' or '.join(NARROWINGS)}")
    return NARROWINGS[to]


def calibration_and_proof(
    bundle: Path, samples: "Samples | None", images: int = _IMAGES
) -> "tuple[Samples, Samples | None]":
    """The two halves of a user's samples; without samples, made-up ones, so many `images` among them, and None."""
    with _named_extras():
        from edgeclip_quant.inputs.feeder import Feeder
        from edgeclip_quant.inputs.made_up import made_up_samples
    if samples is not None:
        return samples.halves()
    return made_up_samples(Feeder(bundle, Manifest.read(bundle)), texts=_TEXTS, images=images), None


@contextmanager
def _named_extras() -> Iterator[None]:
    """Turn the ImportError of a missing package into an error that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_package(error, "quant") from error


__all__ = ["calibration_and_proof", "narrow_without_data", "quantize_automatically", "quantize_bundle"]
