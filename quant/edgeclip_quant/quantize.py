"""A bundle to a smaller bundle: every tower narrowed, held against what it was, and written only if it kept enough.

One tower is in memory at a time. What a layer sees on the calibration samples decides whether its input is smoothed
and whether it can be int8 at all; the proof is on other samples.
"""

import gc
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes import PassError, common

from edgeclip.errors import BuildError
from edgeclip.manifest import MANIFEST_NAME, TOWERS, Manifest, Measurement, TowerFacts, TowerName
from edgeclip.staging import file_facts, staged
from edgeclip_quant.calibration import Observation, observe
from edgeclip_quant.kernels import quantized_product, replace_layer
from edgeclip_quant.linear import linear_layers
from edgeclip_quant.plain import MakePlain
from edgeclip_quant.samples import Batches, Samples
from edgeclip_quant.smoothing import smoothing_factors
from edgeclip_quant.table import replace_table

Progress = Callable[[str, int, int], None]

# Relative error (Frobenius) of a layer's output up to which it becomes int8; Gaussian data give 1.1e-2.
_MAX_ERROR = 4e-2
# Smoothing costs a multiplication where no norm takes it in, so it must be worth it.
_WORTH_SMOOTHING = 0.8
_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A layer's error as int8 on what it saw, and the factors that smooth its input, None without."""

    error: float
    factors: NDArray[np.float32] | None

    @property
    def is_int8(self) -> bool:
        """Or fp32."""
        return self.error <= _MAX_ERROR


def quantize(
    bundle: Path, out: Path, calibration: Samples, proof: Samples, worst_cosine: float, progress: Progress
) -> Manifest:
    """`edgeclip_quant.quantize_bundle`, after the imports."""
    manifest = Manifest.read(bundle)
    if manifest.target != "cpu" or any(manifest.tower(name).precision != "fp32" for name in TOWERS):
        precisions = "/".join(manifest.tower(name).precision for name in TOWERS)
        raise BuildError(f"{bundle}: is {precisions} for {manifest.target}; int8 is made of an fp32 bundle for cpu")
    _check_source(bundle, manifest, progress)
    with staged(out, needed_bytes=2 * manifest.weight_bytes) as stage:
        facts: dict[TowerName, TowerFacts] = {}
        measured = []
        for name in TOWERS:
            facts[name], plans = _narrow(name, bundle, manifest, stage, calibration.of(name), progress)
            measured.append(_prove(name, bundle, manifest, stage, proof, plans, worst_cosine, progress))
        for copied in (manifest.tokenizer.file, manifest.selftest):
            shutil.copyfile(bundle / copied, stage / copied)
        smaller = replace(
            manifest,
            text=facts["text"],
            vision=facts["vision"],
            files=file_facts(stage, progress),
            measured=(*manifest.measured, *measured),
            built_with={**manifest.built_with, "onnxruntime": version("onnxruntime")},
        )
        (stage / MANIFEST_NAME).write_text(smaller.to_json(), encoding="utf-8")
    return smaller


def _check_source(bundle: Path, manifest: Manifest, progress: Progress) -> None:
    """A damaged source would be signed anew, and agree with itself in every proof."""
    found = {file.name: file for file in file_facts(bundle, progress)}
    for file in manifest.files:
        if found.get(file.name) != file:
            raise BuildError(
                f"{bundle}: {file.name} is not what was exported (its sha256 differs from the manifest's); "
                "export or copy the bundle again"
            )


def _plan(weight: NDArray[np.float32], seen: Observation) -> Plan:
    factors = smoothing_factors(seen.largest, weight)
    exact = seen.rows @ weight
    plain = _relative(quantized_product(seen.rows, weight), exact)
    smoothed = _relative(quantized_product(seen.rows / factors, weight * factors[:, None]), exact)
    if smoothed < _WORTH_SMOOTHING * plain:
        return Plan(error=smoothed, factors=factors)
    return Plan(error=plain, factors=None)


def _relative(found: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(found - exact)) / size if size else 0.0


def _narrow(
    name: TowerName, bundle: Path, manifest: Manifest, stage: Path, samples: Batches, progress: Progress
) -> tuple[TowerFacts, dict[str, Plan]]:
    facts = manifest.tower(name)
    try:
        model = ir.load(bundle / facts.file)
        model = MakePlain()(model).model
        seen = observe(model, samples, stage, lambda what, done, total: progress(f"{what}, {name}", done, total))
        plans = {}
        layers = linear_layers(model.graph)
        for done, layer in enumerate(layers):
            progress(f"quantising the {name} tower", done, len(layers))
            plan = plans[layer.name] = _plan(layer.weight, seen[layer.name])
            if plan.is_int8:
                replace_layer(model.graph, layer, plan.factors)
        if name == "text":
            replace_table(model.graph)
        for step in (common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.NameFixPass()):
            model = step(model).model
        common.TopologicalSortPass()(model)
    except (ir.passes.InvariantError, PassError) as error:
        raise BuildError(f"{bundle}: the {name} graph cannot be quantised ({error.__cause__ or error})") from error
    ir.save(model, stage / facts.file, external_data=f"{facts.file}_data")
    operators = _census(model)
    del model
    gc.collect()
    return replace(facts, precision="int8", operators=operators), plans


def _census(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        counts[operator] = counts.get(operator, 0) + 1
    return dict(sorted(counts.items()))


def _prove(
    name: TowerName,
    bundle: Path,
    manifest: Manifest,
    stage: Path,
    proof: Samples,
    plans: Mapping[str, Plan],
    worst_cosine: float,
    progress: Progress,
) -> Measurement:
    """Hold the narrowed tower against the source's; BuildError names the worst layers when it lost too much."""
    file = manifest.tower(name).file
    wanted = _run(bundle / file, proof.of(name), f"asking the {name} tower", progress)
    found = _run(stage / file, proof.of(name), f"proving the {name} tower", progress)
    cosines = (found.astype(np.float64) * wanted).sum(axis=1)
    worst = float(cosines.min())
    if not worst >= worst_cosine:  # NaN fails too
        ranked = sorted(plans.items(), key=lambda item: -item[1].error)[:_NAMED]
        named = ", ".join(f"{layer} {plan.error:.1%}" for layer, plan in ranked)
        raise BuildError(
            f"the {name} tower as int8 has a worst cosine of {worst:.4f} on {proof.name}, wanted {worst_cosine}; "
            f"layers with the largest errors: {named}; calibrate on data like yours (--calibrate), or allow more"
        )
    return Measurement(
        tower=name,
        against="fp32 bundle",
        data=proof.name,
        samples=len(cosines),
        worst_cosine=worst,
        mean_cosine=float(cosines.mean()),
        largest_difference=float(np.abs(found - wanted).max()),
    )


def _run(path: Path, batches: Batches, what: str, progress: Progress) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would print, it raises
    rows = []
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for done, batch in enumerate(batches):
            progress(what, done, len(batches))
            rows.append(session.run(None, {session.get_inputs()[0].name: batch})[0])
    except Exception as error:  # onnxruntime's share no base class
        words = str(error).strip().split("\n")[0]
        raise BuildError(f"onnxruntime cannot run {path.name} ({words})") from error
    return np.concatenate(rows)
