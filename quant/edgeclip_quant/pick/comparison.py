"""Compare recipes: narrow each graph by each, measure what it lost and how fast it is, and delete the graph again."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx_ir.passes import InvariantError, PassError

from edgeclip.errors import BuildError
from edgeclip.host.malloc_bounds import give_back
from edgeclip.manifest import FIRST_GRAPH, Manifest, Modality, RetrievalChange, Space
from edgeclip_quant.graph_runner import Graphs, Progress
from edgeclip_quant.inputs.feeder import Feeder
from edgeclip_quant.inputs.made_up import Samples
from edgeclip_quant.passes.integer_layers import IntegerNarrowing, plain_graph
from edgeclip_quant.passes.narrowing import Prepared, prepare
from edgeclip_quant.pick.pareto import Candidate, Comparison
from edgeclip_quant.proof.measurement import PROOF, bytes_of, graph_files, measure, proof_samples, save_proof
from edgeclip_quant.proof.retrieval import Vectors, retrieval_changes
from edgeclip_quant.proof.timing import time_modality
from edgeclip_quant.quantize import check_source, copied_files, feeds_of, precisions_of
from edgeclip_quant.recipes import COMPARED, Recipe, recipes_for


def check_comparable(bundle: Path, manifest: Manifest) -> None:
    """BuildError for a bundle that no recipe applies to."""
    is_fp32 = all(facts.precision == "fp32" for facts in manifest.graphs.values())
    if not is_fp32 or manifest.target != "cpu":
        raise BuildError(
            f"{bundle}: is {precisions_of(manifest)} for {manifest.target}; recipes are compared on an fp32 bundle "
            "for cpu (edgeclip export)"
        )


def compare_recipes(
    bundle: Path,
    calibration: Samples,
    proof: Samples | None,
    progress: Progress,
    *,
    is_made_up: bool,
    cosine: float | None = None,
    recipes: Sequence[Recipe] = COMPARED,
) -> Comparison:
    """The figures of each recipe on each graph of an fp32 bundle for the CPU; no graph is kept.

    A graph is judged by the vectors of the modality that enters by it, with all other graphs in fp32. `proof` None:
    made-up inputs, others than the calibration's. `cosine` is the least that vectors should keep: where a recipe
    loses more, and a bundle may be made by it, layers move to finer kernels until it does not. Takes room for two
    copies of a graph in the temporary folder. Raises BuildError for another bundle, or a damaged one.
    """
    manifest = Manifest.read(bundle)
    check_comparable(bundle, manifest)
    check_source(bundle, manifest, progress)
    feeder = Feeder(bundle, manifest)
    made_up = proof_samples(feeder)
    proof = proof or made_up
    files = graph_files(bundle, manifest)
    source = _ask_source(feeder, proof, progress)
    candidates: list[Candidate] = []
    for modality in manifest.modalities:
        name = FIRST_GRAPH[modality]
        with tempfile.TemporaryDirectory() as scratch:
            feeds = feeds_of(name, feeder, calibration)
            try:
                trial = _Trial(
                    modality=modality,
                    feeder=feeder,
                    out=Path(scratch) / files[name].name,
                    prepared=prepare(
                        name, plain_graph(name, files[name]), feeds, Path(scratch), progress, original=files[name]
                    ),
                    is_made_up=is_made_up,
                    proof=proof,
                    source=source,
                    progress=progress,
                )
                some = recipes_for(recipes, has_table=trial.prepared.has_table)
                candidates += [_try(trial, recipe, cosine) for recipe in some]
            except (InvariantError, PassError) as error:
                raise BuildError(
                    f"{bundle}: the {name} graph cannot be quantised ({error.__cause__ or error})"
                ) from error
    return Comparison(
        model=manifest.source.name,
        candidates=tuple(candidates),
        source=source,
        pairs=proof.pairs,
        source_bytes={modality: bytes_of(files, (FIRST_GRAPH[modality],)) for modality in manifest.modalities},
        other_bytes=_other_bytes(manifest, made_up),
        is_made_up=is_made_up,
    )


def _ask_source(feeder: Feeder, proof: Samples, progress: Progress) -> Vectors:
    """The fp32 bundle's single vectors of the proof."""
    source: dict[Modality, NDArray[np.float32]] = {}
    for modality in feeder.manifest.modalities:
        with Graphs(feeder, graph_files(feeder.folder, feeder.manifest)) as graphs:
            what = f"asking the source for {modality} vectors"
            source[modality] = graphs.vectors(proof.of(modality), ("single",), what, progress)["single"]
    return source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    """A graph that every recipe is tried on, which writes its result to `out`; `source` as in `Comparison`."""

    modality: Modality
    feeder: Feeder
    out: Path
    prepared: Prepared
    is_made_up: bool
    proof: Samples
    source: Vectors
    progress: Progress


def _try(trial: _Trial, recipe: Recipe, cosine: float | None) -> Candidate:
    def tell(what: str, done: int, total: int) -> None:
        trial.progress(f"{recipe.name}: {what}", done, total)

    graph = IntegerNarrowing(trial.prepared, recipe, tell, may_fix=not trial.is_made_up)
    found = _make(trial, recipe, graph, None, tell)
    is_usable = recipe.objection(is_made_up=trial.is_made_up) is None
    if cosine is None or not is_usable or found.measured.worst_cosine >= cosine:
        return found
    return _make(trial, recipe, graph, cosine, tell)


def _make(trial: _Trial, recipe: Recipe, graph: IntegerNarrowing, kept: float | None, tell: Progress) -> Candidate:
    modality, name, feeder = trial.modality, trial.prepared.name, trial.feeder
    narrowed = graph.write(trial.out, kept)
    files = graph_files(feeder.folder, feeder.manifest)
    narrow_files = {**files, name: trial.out}
    ours = Feeder(feeder.folder, feeder.manifest, narrowed.fed)
    with Graphs(feeder, files) as source, Graphs(ours, narrow_files, kernels={name: narrowed.kernels}) as graphs:
        found = graphs.vectors(trial.proof.of(modality), ("single",), f"proving {modality} vectors", tell)
        answers = found["single"]
        tell(f"timing {modality} vectors", 0, 1)
        timing = time_modality(modality, feeder, source, graphs, trial.proof)
    give_back(feeder.manifest.weight_bytes)
    return Candidate(
        modality=modality,
        recipe=recipe,
        measured=measure(
            modality,
            "single",
            against="fp32 bundle",
            data=trial.proof.name,
            wanted=trial.source[modality],
            found=answers,
            weight_bytes=bytes_of(narrow_files, (name,)),
            source_bytes=bytes_of(files, (name,)),
            timing=timing,
            retrieval=_change_alone(modality, trial.source, answers, trial.proof.pairs),
        ),
        answers=answers,
        kernels=narrowed.kernels,
        largest_layer_error=max(narrowed.errors.values()),
        kept=kept,
    )


def _change_alone(
    modality: Modality, source: Vectors, answers: NDArray[np.float32], pairs: tuple[int, ...] | None
) -> RetrievalChange | None:
    """The change of the searches when only this graph is narrowed."""
    return retrieval_changes(source, {**source, modality: answers}, pairs)[modality]


def _other_bytes(manifest: Manifest, made_up: Samples) -> int:
    """The bytes of the files that are copied and of the proof that will be written: answers are compressed no better
    than noise.
    """
    draw = np.random.default_rng(0)
    noise: dict[Modality, dict[Space, list[NDArray[np.float32]]]] = {
        modality: {
            "single": [draw.normal(size=(1, manifest.embedding_dim)).astype(np.float32) for _ in made_up.of(modality)]
        }
        for modality in manifest.modalities
    }
    with tempfile.TemporaryDirectory() as scratch:
        save_proof(Path(scratch) / PROOF, made_up, noise)
        proof_bytes = (Path(scratch) / PROOF).stat().st_size
    return proof_bytes + sum(manifest.file(name).size_bytes for name in copied_files(manifest))
