"""Compare recipes: narrow each tower by each, measure what it lost and how fast it is, and delete the graph again."""

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx_ir.passes import InvariantError, PassError

from edgeclip.errors import BuildError
from edgeclip.manifest import TOWERS, Manifest, RetrievalChange, TowerName
from edgeclip_quant.graph_runner import answer, open_tower
from edgeclip_quant.inputs.made_up import Samples
from edgeclip_quant.passes.integer_layers import Prepared, narrow_to_integers, prepare
from edgeclip_quant.pick.pareto import Candidate, Comparison
from edgeclip_quant.proof.measurement import PROOF, measure, proof_samples, save_proof, time_tower
from edgeclip_quant.proof.retrieval import Vectors, retrieval_changes
from edgeclip_quant.quantize import check_source
from edgeclip_quant.recipes import COMPARED, Recipe, recipes_for

Progress = Callable[[str, int, int], None]


def check_comparable(bundle: Path, manifest: Manifest) -> None:
    """BuildError for a bundle that no recipe applies to."""
    precisions = "/".join(manifest.tower(name).precision for name in TOWERS)
    if precisions != "fp32/fp32" or manifest.target != "cpu":
        raise BuildError(
            f"{bundle}: is {precisions} for {manifest.target}; recipes are compared on an fp32 bundle for cpu "
            "(edgeclip export)"
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
    """The figures of each recipe on both towers of an fp32 bundle for the CPU; no graph is kept.

    `proof` None: made-up inputs, others than the calibration's. `cosine` is the least that a tower should keep: where
    a recipe loses more, and a bundle may be made by it, layers move to finer kernels until it does not. Takes room
    for two copies of a tower in the temporary folder. Raises BuildError for another bundle, or a damaged one.
    """
    manifest = Manifest.read(bundle)
    check_comparable(bundle, manifest)
    check_source(bundle, manifest, progress)
    made_up = proof_samples(bundle, manifest)
    proof = proof or made_up
    graphs = {name: bundle / manifest.tower(name).file for name in TOWERS}
    wanted = {name: answer(graphs[name], proof.of(name), f"asking the {name} tower", progress) for name in TOWERS}
    source = Vectors(text=wanted["text"], vision=wanted["vision"])
    candidates: list[Candidate] = []
    for name, graph in graphs.items():
        with tempfile.TemporaryDirectory() as scratch:
            try:
                tower = _Tower(
                    graph=graph,
                    out=Path(scratch) / graph.name,
                    prepared=prepare(name, graph, calibration.of(name), Path(scratch), progress),
                    is_made_up=is_made_up,
                    proof=proof,
                    source=source,
                    progress=progress,
                )
                candidates += [_try(tower, recipe, cosine) for recipe in recipes_for(name, recipes)]
            except (InvariantError, PassError) as error:
                raise BuildError(
                    f"{bundle}: the {name} graph cannot be quantised ({error.__cause__ or error})"
                ) from error
    return Comparison(
        model=manifest.source.name,
        candidates=tuple(candidates),
        source=source,
        pairs=proof.pairs,
        source_bytes={name: _size(graph) for name, graph in graphs.items()},
        other_bytes=_other_bytes(manifest, made_up),
        is_made_up=is_made_up,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tower:
    """A tower that every recipe is tried on; each writes its graph to `out`."""

    graph: Path
    out: Path
    prepared: Prepared
    is_made_up: bool
    proof: Samples
    source: Vectors
    progress: Progress


def _try(tower: _Tower, recipe: Recipe, cosine: float | None) -> Candidate:
    found = _make(tower, recipe, None)
    is_usable = recipe.objection(is_made_up=tower.is_made_up) is None
    if cosine is None or not is_usable or found.measured.worst_cosine >= cosine:
        return found
    return _make(tower, recipe, cosine)


def _make(tower: _Tower, recipe: Recipe, kept: float | None) -> Candidate:
    def tell(what: str, done: int, total: int) -> None:
        tower.progress(f"{recipe.name}: {what}", done, total)

    name, out = tower.prepared.name, tower.out
    narrowed = narrow_to_integers(tower.prepared, out, recipe, kept, tell, may_fix=not tower.is_made_up)
    answers = answer(out, tower.proof.of(name), f"proving the {name} tower", tell)
    tell(f"timing the {name} tower", 0, 1)
    timing = time_tower(name, open_tower(tower.graph), open_tower(out), tower.proof)
    gc.collect()
    return Candidate(
        tower=name,
        recipe=recipe,
        measured=measure(
            name,
            against="fp32 bundle",
            data=tower.proof.name,
            wanted=tower.source.of(name),
            found=answers,
            weight_bytes=_size(out),
            source_bytes=_size(tower.graph),
            timing=timing,
            retrieval=_change_alone(name, tower.source, answers, tower.proof.pairs),
        ),
        answers=answers,
        kernels=narrowed.kernels,
        largest_layer_error=max(narrowed.errors.values()),
        kept=kept,
    )


def _change_alone(
    name: TowerName, source: Vectors, answers: NDArray[np.float32], pairs: tuple[int, ...] | None
) -> RetrievalChange | None:
    """The change of the searches when only this tower is narrowed."""
    narrowed = replace(source, text=answers) if name == "text" else replace(source, vision=answers)
    return retrieval_changes(source, narrowed, pairs)[TOWERS.index(name)]


def _other_bytes(manifest: Manifest, made_up: Samples) -> int:
    """The bytes of tokenizer, self-test and the proof that will be written: answers are compressed no better than
    noise.
    """
    draw = np.random.default_rng(0)
    text, vision = (
        draw.normal(size=(len(made_up.of(name)), manifest.embedding_dim)).astype(np.float32) for name in TOWERS
    )
    with tempfile.TemporaryDirectory() as scratch:
        save_proof(Path(scratch) / PROOF, made_up, Vectors(text=text, vision=vision))
        proof_bytes = (Path(scratch) / PROOF).stat().st_size
    return proof_bytes + sum(manifest.file(name).size_bytes for name in (manifest.tokenizer.file, manifest.selftest))


def _size(graph: Path) -> int:
    """The size of a graph with its weights, which lie beside it."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
