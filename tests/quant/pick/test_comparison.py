"""What is compared is what would be written, and what is picked is written as it was compared."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeclip import BuildError, Manifest
from edgeclip.manifest import MODALITIES, PROOF_DATA, Target
from edgeclip_quant import calibration_and_proof, quantize_automatically
from edgeclip_quant.budget import Budget, parse_budget
from edgeclip_quant.inputs.made_up import Samples
from edgeclip_quant.pick.comparison import check_comparable, compare_recipes
from edgeclip_quant.pick.pareto import Comparison, pick
from edgeclip_quant.recipes import COMPARED, INT4, INT8
from tests.scenes.damage import reseal
from tests.scenes.graph_feeds import GRAPHS, made_up
from tests.scenes.pauses import no_pauses as no_pauses

(DYNAMIC,) = (one for one in COMPARED if one.name == "int8-dynamic")
# Of the golden bundle: the proof's answers are compressed a little differently from noise. Measured: 0.05 %.
OTHER_BYTES = 0.005


@pytest.fixture(scope="module")
def samples(bundle: Path) -> Samples:
    """A user's, as it were: eight texts for each of eight pictures."""
    made = made_up(bundle, texts=64, images=8, seed=3)
    pairs = tuple(index // 8 for index in range(64))
    return Samples(name="photos", text=made.text, image=made.image, pairs=pairs)


def compare(bundle: Path, samples: Samples | None = None, told: list[str] | None = None, **how: object) -> Comparison:
    said = [] if told is None else told
    calibration, proof = calibration_and_proof(bundle, samples)
    return compare_recipes(
        bundle,
        calibration,
        proof,
        lambda what, done, total: said.append(what),
        is_made_up=samples is None,
        **how,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What progress said while the fixture below was made."""
    return []


@pytest.fixture(scope="module")
def found(bundle: Path, samples: Samples, told: list[str]) -> Comparison:
    """Three recipes as they are."""
    return compare(bundle, samples, told, recipes=(INT8, DYNAMIC, INT4))


def test_a_candidate_is_what_would_be_written(bundle: Path, int8_bundle: Path) -> None:
    """To the last bit of its figures, but for the time."""
    found = compare(bundle, recipes=(INT8,))
    written = Manifest.read(int8_bundle)
    for modality in MODALITIES:
        (one,) = found.of(modality)
        wanted = written.measurement(modality, "single", "fp32 bundle", PROOF_DATA)
        assert wanted is not None
        assert (one.measured.worst_cosine, one.measured.weight_bytes) == (wanted.worst_cosine, wanted.weight_bytes)
        assert one.measured.size_ratio == wanted.size_ratio
        assert one.kernels == written.graphs[one.graph].kernels
        assert one.measured.latency_ratio
    assert found.source_bytes["text"] == sum(path.stat().st_size for path in bundle.glob("text.onnx*"))
    others = sum(file.size_bytes for file in written.files if ".onnx" not in file.name)
    assert found.other_bytes == pytest.approx(others, rel=OTHER_BYTES)


def test_every_recipe_stands_beside_the_same_inputs(found: Comparison) -> None:
    """Searches too: the recall of a candidate is with the other graph as it was."""
    assert [(one.modality, one.recipe) for one in found.candidates] == [
        (modality, recipe) for modality in MODALITIES for recipe in (INT8, DYNAMIC, INT4)
    ]
    text, image = found.of("text"), found.of("image")
    assert {one.measured.samples for one in text} == {32} and {one.measured.samples for one in image} == {4}
    assert {one.measured.data for one in found.candidates} == {"photos"}
    assert all(one.kept is None for one in found.candidates)
    assert text[2].loss > 5 * text[0].loss
    change = text[0].measured.retrieval
    assert change is None, "4 images are too few to be searched"
    searched = image[0].measured.retrieval
    assert searched is not None and (searched.queries, searched.truth) == (4, "captions")
    for one in found.candidates:
        wanted = found.source[one.modality].astype(np.float64)
        cosines = (one.answers * wanted).sum(axis=1) / np.linalg.norm(one.answers, axis=1)
        assert cosines.min() == pytest.approx(one.measured.worst_cosine, abs=1e-6)


def test_layers_move_until_a_cosine_is_kept(bundle: Path, samples: Samples, found: Comparison) -> None:
    """Layers of the graph that misses it move; the other graph stays as its recipe has it."""
    worse, better = sorted((one for one in found.candidates if one.recipe is INT4), key=lambda one: -one.loss)
    between = (worse.measured.worst_cosine + better.measured.worst_cosine) / 2
    kept = compare(bundle, samples, recipes=(INT4,), cosine=between)
    (raised,), (same,) = kept.of(worse.modality), kept.of(better.modality)
    assert (same.kept, same.kernels) == (None, better.kernels)
    assert raised.kept == between
    assert raised.kernels != worse.kernels
    assert raised.measured.worst_cosine > worse.measured.worst_cosine


def test_what_no_bundle_is_made_by_is_shown_as_it_is(bundle: Path, samples: Samples) -> None:
    for one in compare(bundle, samples, recipes=(DYNAMIC,), cosine=1.0).candidates:
        assert (one.kept, set(one.kernels)) == (None, {"int8 per call"})


def test_progress_says_what_is_tried(found: Comparison, told: list[str]) -> None:
    recipes = [one.recipe.name for one in found.of("text")]
    wanted = ["hashing", *(f"asking the source for {modality} vectors" for modality in MODALITIES)]
    for modality, name in zip(MODALITIES, GRAPHS, strict=True):
        steps = (f"planning the {name} graph", f"writing the {name} graph")
        steps += (f"proving {modality} vectors", f"timing {modality} vectors")
        wanted.append(f"calibrating, {name}")
        wanted += [f"{recipe}: {step}" for recipe in recipes for step in steps]
    assert list(dict.fromkeys(told)) == wanted


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_a_bundle_for_another_target_is_refused(bundles: dict[Target, Path], target: Target) -> None:
    told = f"is fp32/fp32 for {target}; recipes are compared on an fp32 bundle for cpu"
    with pytest.raises(BuildError, match=told):
        compare(bundles[target])


def test_a_narrowed_or_damaged_bundle_is_refused(int8_bundle: Path, copied_bundle: Path) -> None:
    with pytest.raises(BuildError, match="is int8/int8 for cpu; recipes are compared on an fp32 bundle"):
        check_comparable(int8_bundle, Manifest.read(int8_bundle))
    path = copied_bundle / "text.onnx_data"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BuildError, match=r"text\.onnx_data is not what was exported"):
        compare(copied_bundle)


def test_a_graph_that_is_no_exports_is_one_line(bundle: Path, copied_bundle: Path) -> None:
    for path in copied_bundle.glob("text.onnx*"):
        path.unlink()
    for path in bundle.glob("vision.onnx*"):
        shutil.copy(path, copied_bundle / path.name.replace("vision", "text"))
    reseal(copied_bundle)
    with pytest.raises(BuildError, match="the text graph cannot be quantised|onnxruntime cannot run text"):
        compare(copied_bundle, recipes=(INT8,))


def test_what_is_picked_is_written_as_it_was_compared(bundle: Path, samples: Samples, tmp_path: Path) -> None:
    """Layers that were not moved then are not moved now, though the budget would have more of them."""
    found = compare(bundle, samples, recipes=(INT4,))
    before = {path: path.read_bytes() for path in bundle.iterdir()}
    worst = min(one.measured.worst_cosine for one in found.candidates)
    budget = Budget(cosine=worst, recall_points=None, size_mb=None)
    manifest = quantize_automatically(bundle, tmp_path / "out", samples=samples, budget=budget, comparison=found)
    for modality in MODALITIES:
        (one,) = found.of(modality)
        written = manifest.graphs[one.graph]
        assert (written.precision, written.kernels) == ("int4", one.kernels)
        assert manifest.measured[-2 + MODALITIES.index(modality)].worst_cosine == one.measured.worst_cosine
    assert Manifest.read(tmp_path / "out") == manifest
    assert {path: path.read_bytes() for path in bundle.iterdir()} == before


def test_automatically_it_is_within_the_budget(
    bundle: Path, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a comparison the recipes are tried that a bundle may be made by."""
    monkeypatch.setattr("edgeclip_quant.recipes.COMPARED", (INT8, DYNAMIC))
    told: list[str] = []
    budget = parse_budget("cosine=0.5,recall=100", "int8")
    manifest = quantize_automatically(
        bundle,
        tmp_path / "out",
        samples=samples,
        budget=budget,
        cpu="vnni",
        progress=lambda what, done, total: told.append(what),
    )
    assert {one.split(":")[0] for one in told if ": planning" in one} == {"int8"}
    assert all(one.worst_cosine >= 0.5 for one in manifest.measured[-2:])


def test_nothing_is_written_when_nothing_is_within_the_budget(
    bundle: Path, found: Comparison, tmp_path: Path
) -> None:
    budget = parse_budget("size_mb=0.01", "int8")
    assert pick(found, budget) is None
    with pytest.raises(BuildError, match=r"^no choice of recipes is within the budget: the smallest bundle that"):
        quantize_automatically(bundle, tmp_path / "out", budget=budget, comparison=found)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_found_before_the_work(bundle: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(BuildError, match="exists already"):
        quantize_automatically(bundle, tmp_path, progress=lambda what, done, total: told.append(what))
    assert told == []
